"""What is asked of a judge: FastChat's single-answer grading (fastchat/llm_judge at lm-sys/FastChat@587d5cf).

Turn 1 shows a question and its answer, turn 2 the whole conversation; where the category needs one, the reference
answer comes with it (`gen_judgment.py`, `common.py:run_judge_single`). The texts are FastChat's `judge_prompts.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trialign.errors import UserError
from trialign.evaluation.questions import TURNS, place, read_lines
from trialign.evaluation.ratings import Rating
from trialign.evaluation.responses import Tokens
from trialign.settings import JudgeRules
from trialign.steps import digest

PROMPTS = "judge_prompts.jsonl"
REFERENCES = "reference_answer/gpt-4.jsonl"
WITH_REFERENCE = ("math", "reasoning", "coding")  # common.py: NEED_REF_CATS
RUBRIC = "rubric.jsonl"


@dataclass(frozen=True)
class Request:
    """One answer to judge: what a model said at `turn` of `question`.

    turns: all it said to that question; choice: which of its answers this is; repeat: the how many-th judgment of it.
    """

    question: Mapping[str, Any]
    turn: int
    model: str
    turns: tuple[str, ...]
    choice: int = 0
    repeat: int = 0

    @property
    def key(self) -> tuple[Any, int, int, int]:
        """What identifies it within one model's answers: question, choice, turn, repeat."""
        return self.question["question_id"], self.choice, self.turn, self.repeat

    @property
    def answer(self) -> str:
        """The answer to judge."""
        return self.turns[self.turn - 1]


class Judgment(NamedTuple):
    """A response of a judge and what it says.

    prompt: the name of the prompt; asked: its text, for a reader; served: the model that the endpoint says responded;
    refusal: why the endpoint would not respond, if it would not.
    """

    prompt: str
    asked: str
    text: str
    rating: Rating
    served: str | None = None
    tokens: Tokens = Tokens()
    refusal: str | None = None


class Prompt:
    """A judge's prompts with the reference answers, read from the folder of the questions."""

    def __init__(self, folder: Path) -> None:
        """Read the folder. UserError where prompts or reference answers are missing."""
        if not (folder / PROMPTS).is_file():
            raise UserError(
                f"{folder / PROMPTS}: no such file; a judge behind an endpoint needs FastChat's prompts and reference "
                "answers beside the questions (sources.mt_bench of config/config.yaml fetches all three)"
            )
        prompts = {prompt["name"]: prompt for prompt in read_lines(folder / PROMPTS)}
        names = [_name(category, turn) for category in ("", WITH_REFERENCE[0]) for turn in TURNS]
        if missing := [name for name in names if name not in prompts]:
            raise UserError(f"{folder / PROMPTS}: no prompt '{missing[0]}'; FastChat's file has {', '.join(names)}")
        self._prompts = {name: prompts[name] for name in names}
        path = place(folder) / REFERENCES
        self._references = {line["question_id"]: line["choices"][0]["turns"] for line in read_lines(path)}
        self._where = path
        self.digest = digest([self._prompts, sorted((str(key), text) for key, text in self._references.items())])

    def name(self, request: Request) -> str:
        """Return the name of the prompt that a request takes."""
        return _name(request.question["category"], request.turn)

    def messages(self, request: Request) -> list[dict[str, str]]:
        """Return the messages of a request. UserError for a question whose reference answer is missing."""
        prompt = self._prompts[self.name(request)]
        user = _unicode(prompt["prompt_template"].format(**self._fields(request)))
        system = [{"role": "system", "content": prompt["system_prompt"]}] if prompt["system_prompt"] else []
        return [*system, {"role": "user", "content": user}]

    def _fields(self, request: Request) -> dict[str, str]:
        question, turns = request.question["turns"], request.turns
        fields = {"question": question[0], "answer": turns[0]}
        if request.turn == 2:
            fields = {
                "question_1": question[0], "question_2": question[1], "answer_1": turns[0], "answer_2": turns[1],
            }  # fmt: skip
        if request.question["category"] in WITH_REFERENCE:
            number = request.question["question_id"]
            if number not in self._references:
                raise UserError(f"{self._where}: no reference answer to question {number}, which its category needs")
            references = self._references[number]
            fields |= {"ref_answer_1": references[0], "ref_answer_2": references[1]}
        return fields


def body(rules: JudgeRules, messages: list[dict[str, str]]) -> dict[str, Any]:
    """Return the body of a chat completion (`common.py:chat_completion_openai`), with the config's own additions."""
    fixed = {
        "model": rules.model,
        "messages": messages,
        "n": 1,
        "temperature": rules.temperature,
        "max_tokens": rules.max_tokens,
    }
    return {key: value for key, value in fixed.items() if key not in rules.leave_out} | rules.body


def size(body: Mapping[str, Any]) -> int:
    """Return the bytes of a request's texts."""
    return sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in body["messages"])


def content(completion: Mapping[str, Any]) -> str:
    """Return the text of a chat completion: parts joined, nothing where it has none, halves of characters replaced."""
    message = completion["choices"][0].get("message")
    said = message.get("content") if isinstance(message, dict) else None
    if isinstance(said, list):
        said = "".join(str(part.get("text", "")) for part in said if isinstance(part, dict))
    return _unicode(said) if isinstance(said, str) else ""


def _unicode(text: str) -> str:
    """Replace halves of characters, which JSON can hold and nothing can send or store."""
    return text.encode("utf-8", "replace").decode()


def number(request: Request, attempt: int) -> tuple[int, int, int]:
    """Return what tells equal requests apart: which of a model's answers, which judgment of it, which attempt."""
    return request.choice, request.repeat, attempt


def key(judge: str, body: Mapping[str, Any], number: tuple[int, ...]) -> str:
    """Return the hash of all that is asked of a judge: its name in the config, the body, and the number."""
    asked = json.dumps([judge, body, number], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()


def _name(category: str, turn: int) -> str:
    kind = "single-math-v1" if category in WITH_REFERENCE else "single-v1"
    return kind if turn == 1 else f"{kind}-multi-turn"
