"""Two-turn questions, answers and lines of JSON, in FastChat's files (fastchat/llm_judge/common.py).

A folder of questions is FastChat's `data` folder (`mt_bench/question.jsonl`, `judge_prompts.jsonl`), or has
`question.jsonl` itself, as the demo's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trialign.errors import UserError

TURNS = (1, 2)
QUESTIONS = "question.jsonl"
ANSWERS = "answers.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; UserError if there is no such file, naming a line that is no object."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    rows = []
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: a JSON object is wanted, this is a {type(row).__name__}")
        rows.append(row)
    return rows


def place(folder: Path) -> Path:
    """Return where in a folder of questions they lie."""
    return folder / "mt_bench" if (folder / "mt_bench" / QUESTIONS).is_file() else folder


def read_questions(folder: Path) -> list[dict[str, Any]]:
    """Return the questions of `question.jsonl`, in order; UserError unless each has two turns and an id of its own."""
    path = place(folder) / QUESTIONS
    questions = read_lines(path)
    seen = set()
    for question in questions:
        if len(question["turns"]) != len(TURNS) or question["question_id"] in seen:
            raise UserError(
                f"{path}: question {question['question_id']} stands there twice or has "
                f"{len(question['turns'])} turns; each question needs an id of its own and two turns"
            )
        seen.add(question["question_id"])
    return questions


def line(record: Mapping[str, Any]) -> str:
    """Return a record as one line."""
    return json.dumps(record, ensure_ascii=False) + "\n"
