"""Judging stored answers: raw responses are written down before they are read, then rated, counted and published.

Who judges is behind `responses`, which yields raw texts; storage, parser, card and items are the same for every judge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trialign import diverged
from trialign.data.cards import write_card
from trialign.deadline import Deadline
from trialign.demo import judge as rubric_judge
from trialign.errors import UserError
from trialign.evaluation import ratings
from trialign.evaluation.journal import Journal
from trialign.evaluation.questions import ANSWERS, BENCHMARK, TURNS, line, read_lines, read_questions
from trialign.evaluation.ratings import Rating
from trialign.evaluation.records import Item, mean, mean_of_clusters, publish
from trialign.recipes import JudgeRecipe
from trialign.settings import JudgeSettings
from trialign.steps import Step

JUDGMENTS = "judgments.jsonl"
RUBRIC = "rubric.jsonl"
TURN_METRICS = {1: "first_turn", 2: "second_turn"}


@dataclass(frozen=True)
class Request:
    """One answer to judge: what a model said at `turn` of `question`. `turns`: all it said to that question."""

    question: Mapping[str, Any]
    turn: int
    model: str
    turns: tuple[str, ...]

    @property
    def key(self) -> tuple[Any, int]:
        """What identifies the request within one model's answers."""
        return self.question["question_id"], self.turn

    @property
    def answer(self) -> str:
        """The answer to judge."""
        return self.turns[self.turn - 1]

    @property
    def text(self) -> str:
        """The conversation up to the answer, for a reader of the stored judgment."""
        said = zip(self.question["turns"][: self.turn], self.turns, strict=False)
        return "\n\n".join(f"[User]\n{request}\n\n[Assistant]\n{answer}" for request, answer in said)


def judge(step: Step[JudgeRecipe]) -> dict[str, Any]:
    """Judge answers. Writes items.parquet, results.json, judgments.jsonl (FastChat's format, raw texts) and card.json.

    Items: `score` of "<question_id>/<turn>" with the question's category as subset, the same value as `first_turn` or
    `second_turn`, and the components that the judge names. Returns what they sum up to. A restart goes on after the
    last response that was written down. Of a diverged run there are no answers: its mark is passed on. Raises UserError
    where more than `max_unjudged` is unjudged; Again where the time of its job is up.
    """
    if mark := diverged.pass_on(step.input("answers"), step.out):
        return mark
    settings = step.recipe.judge
    folder = step.input("questions")
    requests = _requests(read_questions(folder), step.input("answers") / ANSWERS)
    journal = Journal(step.scratch / "responses.jsonl")
    done = {(record["question_id"], record["turn"]) for record in journal.records}
    left = [request for request in requests if request.key not in done]
    for request, response in responses(settings, folder, Deadline().each(left, "answers")):
        question_id, turn = request.key
        journal.append([{"question_id": question_id, "turn": turn, "judgment": response}])
    stored = {(record["question_id"], record["turn"]): record["judgment"] for record in journal.records}
    rated = [(request, ratings.parse(stored[request.key], request.answer)) for request in requests]

    _write_judgments(step.out / JUDGMENTS, settings, rated, stored)
    counts = ratings.count(rating for _, rating in rated)
    ratings.check(counts, settings.max_unjudged, f"judge {settings.name}, {step.input('answers')}")
    items = [item for request, rating in rated for item in _items(request, rating)]
    results = {
        "benchmarks": {BENCHMARK: _result(items) | {"statuses": counts}},
        "judge": settings.model_dump(mode="json"),
        "versions": {"trialign": version("trialign")},
    }
    publish(step.out, items, results)
    write_card(step.out, _card(rated, counts))
    return results


def responses(settings: JudgeSettings, questions: Path, requests: Iterable[Request]) -> Iterator[tuple[Request, str]]:
    """Yield the raw text with which the judge responds to each request.

    questions: the folder of the questions, with what else the judge needs to know of them.
    """
    if settings.kind == "openai":
        raise UserError(
            f"judge {settings.name}: kind 'openai' (a model behind an endpoint) is not built yet: the answers stay; "
            f"this one has kind 'rubric'"
        )
    rubrics = {rubric["question_id"]: rubric for rubric in read_lines(questions / RUBRIC)}
    for request in requests:
        rubric = rubrics[request.question["question_id"]]
        yield request, rubric_judge.rate(request.question, request.turn, request.answer, rubric)


def _requests(questions: list[dict[str, Any]], path: Path) -> list[Request]:
    """Return a request for each question and turn, in order; UserError if a question has no answer."""
    answers = {answer["question_id"]: answer for answer in read_lines(path)}
    if missing := [q["question_id"] for q in questions if q["question_id"] not in answers]:
        raise UserError(f"{path}: no answer to question {missing[0]} ({len(missing)} missing of {len(questions)})")
    return [
        Request(question, turn, answer["model_id"], tuple(answer["choices"][0]["turns"]))
        for question in questions
        for answer in [answers[question["question_id"]]]
        for turn in TURNS
    ]


def _write_judgments(
    path: Path, settings: JudgeSettings, rated: list[tuple[Request, Rating]], stored: Mapping[tuple[Any, int], str]
) -> None:
    with path.open("w", encoding="utf-8") as file:
        for request, rating in rated:
            record = {
                "question_id": request.question["question_id"],
                "model": request.model,
                "judge": [settings.model or settings.name, settings.kind],
                "user_prompt": request.text,
                "judgment": stored[request.key],
                "score": ratings.UNRATED if rating.score is None else rating.score,
                "turn": request.turn,
                "tstamp": 0.0,
            }
            file.write(line(record))


def _items(request: Request, rating: Rating) -> list[Item]:
    if rating.score is None:
        return []
    values = {"score": rating.score, TURN_METRICS[request.turn]: rating.score, **rating.components}
    question_id, turn = request.key
    place = (BENCHMARK, request.question["category"], f"{question_id}/{turn}")
    return [Item(*place, metric, value) for metric, value in values.items()]


def _result(items: list[Item]) -> dict[str, Any]:
    """Return the entry of `results.json`: the mean over judged turns, as FastChat has it (show_result.py).

    `stderr` takes the two turns of a question together (`records.mean_of_clusters`).
    """
    values: dict[str, list[float]] = defaultdict(list)
    categories: dict[str, list[float]] = defaultdict(list)
    scores = []
    for item in items:
        values[item.metric].append(item.value)
        if item.metric == "score":
            categories[item.subset].append(item.value)
            scores.append((item.item.rpartition("/")[0], item.value))
    value, error = mean_of_clusters(scores)
    return {
        "metric": "score",
        "value": value,
        "stderr": error,
        "n": len(scores),
        "metrics": {name: {"value": mean(each)[0], "n": len(each)} for name, each in values.items()},
        "subsets": {name: {"value": mean(each)[0], "n": len(each)} for name, each in categories.items()},
    }


def _card(rated: list[tuple[Request, Rating]], counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "kind": "judgments",
        "rows_in": len(rated),
        "rows": {"judged": counts["ok"]},
        "dropped": {status: n for status, n in counts.items() if status != "ok"},
        "empty_answers": sum(not request.answer.strip() for request, _ in rated),
    }
