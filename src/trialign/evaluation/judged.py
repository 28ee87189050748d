"""What judging publishes: judgments in FastChat's format, items, scores, and a card of what became of each response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from trialign.data.cards import write_card
from trialign.evaluation import ratings, records, scores
from trialign.evaluation.questions import line
from trialign.evaluation.records import Item
from trialign.evaluation.requests import Judgment, Request
from trialign.recipes import JudgeRecipe
from trialign.steps import Step

JUDGMENTS = "judgments.jsonl"
TURN_METRICS = {1: "first_turn", 2: "second_turn"}
Pairs = Sequence[tuple[Request, Judgment]]


def publish(step: Step[JudgeRecipe], pairs: Pairs, prompts: str) -> dict[str, Any]:
    """Write judgments.jsonl, items.parquet, results.json and the card; return the results.

    pairs: each response with its request, in the requests' order, responses to one request in theirs. prompts: the
    digest of the judge's texts. UserError where more than `max_unjudged` of the answers have no usable rating.
    """
    recipe = step.recipe
    _write_judgments(step.out / JUDGMENTS, recipe, pairs)
    table = scores.frame(_row(request, judgment) for request, judgment in pairs)
    _check(recipe, table, pairs, step.input("answers"))
    counts = scores.statuses(table)
    items = _items(recipe.benchmark, table, pairs)
    results = {
        "benchmarks": {recipe.benchmark: _result(table, items) | {"statuses": counts}},
        "judge": {
            "name": recipe.name,
            **recipe.judge.model_dump(mode="json"),
            "prompts": prompts,
            "served": sorted({judgment.served for _, judgment in pairs if judgment.served}),
        },
        "versions": {"trialign": version("trialign")},
    }
    records.publish(step.out, items, results)
    write_card(step.out, _card(pairs, counts))
    return results


def _row(request: Request, judgment: Judgment) -> scores.Row:
    question_id, choice, turn, repeat = request.key
    rating = judgment.rating
    return scores.Row(
        str(question_id), turn, choice, repeat, request.question["category"], rating.status, rating.score,
        ratings.fastchat(judgment.text),
    )  # fmt: skip


def _write_judgments(path: Path, recipe: JudgeRecipe, pairs: Pairs) -> None:
    """Write FastChat's lines with the score that FastChat reads, and beside it which answer and who responded."""
    with path.open("w", encoding="utf-8") as file:
        for request, judgment in pairs:
            record = {
                "question_id": request.question["question_id"],
                "model": request.model,
                "judge": [recipe.judge.model or recipe.name, judgment.prompt],
                "user_prompt": judgment.asked,
                "judgment": judgment.text,
                "score": ratings.fastchat(judgment.text),
                "turn": request.turn,
                "tstamp": 0.0,
                "choice": request.choice,
                "repeat": request.repeat,
                "served": judgment.served,
            }
            file.write(line(record))


def _check(recipe: JudgeRecipe, table: pd.DataFrame, pairs: Pairs, where: Path) -> None:
    """Raise UserError where too many answers have no usable rating; with the endpoint's words, where it refused."""
    refusal = next((judgment.refusal for _, judgment in pairs if judgment.refusal), None)
    why = f" (the endpoint refused one: {refusal})" if refusal else ""
    ratings.check(scores.per_answer(table), recipe.judge.max_unjudged, f"judge {recipe.name}, {where}{why}")


def _items(benchmark: str, table: pd.DataFrame, pairs: Pairs) -> list[Item]:
    """Return an item for each question and turn and metric: the mean over its answers of their judgments' means."""
    values: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for (request, judgment), counts, reading in zip(pairs, table["counts"], table["fastchat"], strict=True):
        question_id, choice, turn, _ = request.key
        named: dict[str, float | None] = {}
        if counts:
            rating = judgment.rating
            named = {"score": rating.score, TURN_METRICS[turn]: rating.score, **rating.components}
        if reading != ratings.UNRATED:
            named["fastchat"] = reading
        for metric, value in named.items():
            where = (request.question["category"], f"{question_id}/{turn}", metric)
            values.setdefault(where, {}).setdefault(choice, []).append(value)
    return [
        Item(benchmark, subset, item, metric, _mean([_mean(each) for each in choices.values()]))
        for (subset, item, metric), choices in values.items()
    ]


def _result(table: pd.DataFrame, items: list[Item]) -> dict[str, Any]:
    """Return the entry of `results.json`: the strict mean, and all that `scores.summary` says.

    `stderr` takes the two turns of a question together (`records.mean_of_clusters`).
    """
    value, error = records.mean_of_clusters(
        [(item.item.rpartition("/")[0], item.value) for item in items if item.metric == "score"]
    )
    components: dict[str, list[float]] = {}
    for item in items:
        if item.metric in ratings.COMPONENTS:
            components.setdefault(item.metric, []).append(item.value)
    return {
        "metric": "score",
        "value": value,
        "stderr": error,
        **scores.summary(table),
        "components": {name: _mean(each) for name, each in components.items()},
    }


def _card(pairs: Pairs, counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "kind": "judgments",
        "rows_in": len(pairs),
        "rows": {"judged": counts["ok"]},
        "dropped": {status: n for status, n in counts.items() if status != "ok"},
        "empty_answers": len({request.key for request, _ in pairs if not request.answer.strip()}),
        "tokens_in": sum(judgment.tokens.into for _, judgment in pairs),
        "tokens_out": sum(judgment.tokens.out for _, judgment in pairs),
        "served": dict(Counter(judgment.served for _, judgment in pairs if judgment.served)),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
