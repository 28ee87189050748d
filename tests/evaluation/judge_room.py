"""Invented questions in FastChat's files, and judging in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from endpoint_room import KEY
from evaluation_helpers import write_lines

CATEGORIES = ("writing", "math", "reasoning", "stem")
PROMPTS = {
    "single-v1": ("Be helpful.", "[General]\n{question}\n[Answer]\n{answer}\n[End] Say \"[[rating]]\"."),
    "single-math-v1": ("Be right.", "[Math]\n{question}\n[Reference]\n{ref_answer_1}\n[Answer]\n{answer}"),
    "single-v1-multi-turn": ("Judge the second.", "{question_1}|{answer_1}|{question_2}|{answer_2}"),
    "single-math-v1-multi-turn": (
        "Judge the second answer.", "{question_1}|{ref_answer_1}|{question_2}|{ref_answer_2}||{answer_1}|{answer_2}"
    ),
}  # fmt: skip
_SCRIPT = """
import sys
from pathlib import Path
from trialign import recipes, steps
from trialign.errors import UserError
recipe, folder, output = sys.argv[1:]
folder = Path(folder)
inputs = {"answers": (folder / "answers.jsonl",), "questions": (folder / "questions",)}
try:
    steps.run(recipes.parse(recipe), inputs, folder / "root", folder / output)
except UserError as error:
    sys.exit(f"refused: {error}")
"""


def write_questions(folder: Path, number: int) -> None:
    """Write questions, prompts, reference answers and a model's answers; one answer has braces, one is empty."""
    questions = [
        {"question_id": i, "category": CATEGORIES[i % 4], "turns": [f"What is {i}?", f"And twice {i}?"]}
        for i in range(1, number + 1)
    ]
    data = folder / "questions"
    write_lines(data / "mt_bench/question.jsonl", questions)
    write_lines(
        data / "judge_prompts.jsonl",
        [
            {"name": name, "type": "single", "system_prompt": a, "prompt_template": b}
            for name, (a, b) in PROMPTS.items()
        ],
    )
    first, second = {3: "{0} {answer}"}, {4: ""}
    answered = [
        {"question_id": i, "model_id": "m", "choices": [{"index": 0, "turns": turns}], "tstamp": 0.0}
        for i in range(1, number + 1)
        for turns in [[first.get(i, f"It is {i}."), second.get(i, "So.")]]
    ]
    references = [
        {**row, "choices": [{"index": 0, "turns": [f"ref {row['question_id']}", "ref two"]}]} for row in answered
    ]
    write_lines(data / "mt_bench/reference_answer/gpt-4.jsonl", references)
    write_lines(folder / "answers.jsonl", answered)


def start(folder: Path, url: str, output: str = "judged", rules: Any = None, **endpoint: Any) -> subprocess.Popen[str]:
    """Start judging the answers of a folder."""
    recipe = {"step": "judge", "version": 3, "name": "gpt", "benchmark": "mtbench"}
    recipe["judge"] = {"kind": "openai", "model": "gpt-test", **(rules or {})}
    file = folder / "root/.shared/endpoints.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{output}")
    part.write_text(json.dumps({"gpt": {"base_url": url, "key": "TEST_KEY", "timeout": 1.0, **endpoint}}))
    part.rename(file)  # another process may be reading it
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, json.dumps(recipe), str(folder), output],
        env={**os.environ, "TEST_KEY": KEY}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(folder: Path, url: str, output: str = "judged", rules: Any = None, **endpoint: Any) -> tuple[int, str]:
    """Judge to the end. Returns the exit status and what was said."""
    process = start(folder, url, output, rules, **endpoint)
    said, _ = process.communicate(timeout=180)
    return process.returncode, said


def published(folder: Path, output: str = "judged") -> dict[str, bytes]:
    """Return what judging published, its record apart."""
    return {path.name: path.read_bytes() for path in (folder / output).iterdir() if path.name != "run.json"}
