"""Two-turn questions, answers and lines of JSON, in FastChat's files (fastchat/llm_judge/common.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
