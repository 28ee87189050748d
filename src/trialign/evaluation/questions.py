"""Two-turn questions, answers and lines of JSON, in FastChat's files (fastchat/llm_judge/common.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trialign.errors import UserError

BENCHMARK = "mtbench"
TURNS = (1, 2)
QUESTIONS = "question.jsonl"
ANSWERS = "answers.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_questions(folder: Path) -> list[dict[str, Any]]:
    """Return the questions of `question.jsonl`, in order; UserError unless each has two turns and an id of its own."""
    questions = read_lines(folder / QUESTIONS)
    seen = set()
    for question in questions:
        if len(question["turns"]) != len(TURNS) or question["question_id"] in seen:
            raise UserError(
                f"{folder / QUESTIONS}: question {question['question_id']} stands there twice or has "
                f"{len(question['turns'])} turns; each question needs an id of its own and two turns"
            )
        seen.add(question["question_id"])
    return questions


def line(record: Mapping[str, Any]) -> str:
    """Return a record as one line."""
    return json.dumps(record, ensure_ascii=False) + "\n"


class Journal:
    """A file of records that survives a kill: appended to as work goes on, and read again at the next start."""

    def __init__(self, path: Path) -> None:
        """Read what is there. A last line that a kill cut short is dropped from the file."""
        self._path = path
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            path.write_bytes(whole)
        self.records: list[dict[str, Any]] = [json.loads(part) for part in whole.splitlines()]

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records to the file and to `records`."""
        new = list(records)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(map(line, new)))
        self.records += new
