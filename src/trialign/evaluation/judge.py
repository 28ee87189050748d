"""Judging stored answers: raw responses are written down before they are read, then rated, counted and published.

Who judges is behind `_judge`: the demo's rubric, or a model behind an endpoint. Storage, parser, card, scores and items
are the same for both.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from trialign import diverged
from trialign.data.cards import sha256, write_card
from trialign.deadline import Deadline
from trialign.demo import judge as rubric_judge
from trialign.errors import UserError
from trialign.evaluation import ratings, requests, scores
from trialign.evaluation.parallel import in_parallel
from trialign.evaluation.questions import ANSWERS, TURNS, line, place, read_lines, read_questions
from trialign.evaluation.ratings import Rating
from trialign.evaluation.records import Item, mean_of_clusters, publish
from trialign.evaluation.requests import RUBRIC, Prompt, Request
from trialign.evaluation.responses import FILE, Responses, Stored, Tokens
from trialign.recipes import JudgeRecipe
from trialign.settings import EndpointSettings
from trialign.steps import Step

JUDGMENTS = "judgments.jsonl"
TURN_METRICS = {1: "first_turn", 2: "second_turn"}
PROGRESS_SECONDS = 10.0


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


class Judge(Protocol):
    """Who judges. digest: of the texts that shape its judgments; workers: how many requests it takes at a time."""

    digest: str
    workers: int

    def ask(self, request: Request) -> list[Judgment]:
        """Return the judgments of an answer, in order: more than one where a response had no usable rating."""

    def end(self) -> None:
        """Begin no request any more."""


class Rubric:
    """The demo's judge. Its responses are stored for a restart alone: they cost nothing."""

    workers = 1

    def __init__(self, step: Step[JudgeRecipe]) -> None:
        """Read the rubric beside the questions."""
        path = place(step.input("questions")) / RUBRIC
        self.digest = sha256(path)[:32] if path.is_file() else ""
        self._rubrics = {rubric["question_id"]: rubric for rubric in read_lines(path)}
        self._stored, self._name, self._rules = Responses(step.scratch / FILE), step.recipe.name, step.recipe.judge

    def ask(self, request: Request) -> list[Judgment]:
        """Rate an answer by the rubric of its question."""
        question = request.question
        asked = {"question_id": question["question_id"], "turn": request.turn, "answer": request.answer}
        key = requests.key(self._name, asked, requests.number(request, self._rules, 0))
        stored = self._stored.get(key)
        if stored is None:
            rubric = self._rubrics[question["question_id"]]
            stored = Stored(rubric_judge.rate(question, request.turn, request.answer, rubric), Tokens())
            self._stored.keep(key, self._name, asked, 0, stored)
        return [Judgment("rubric", _conversation(request), stored.text, ratings.parse(stored.text, request.answer))]

    def end(self) -> None:
        """Nothing is under way."""


class Model:
    """A model behind an endpoint, whose responses all judging of a results tree shares."""

    def __init__(self, step: Step[JudgeRecipe]) -> None:
        """Read the prompts. UserError where the questions come without them."""
        from trialign.evaluation.endpoint import Endpoint

        recipe, settings = step.recipe, step.endpoint or EndpointSettings()
        self._rules, self._prompt = recipe.judge, Prompt(step.input("questions"))
        self._endpoint = Endpoint(recipe.name, recipe.judge, settings, Responses((step.shared or step.scratch) / FILE))
        self.digest, self.workers = self._prompt.digest, settings.concurrency

    def ask(self, request: Request) -> list[Judgment]:
        """Ask for a judgment, and again where the response has no usable rating and `reasks` allows."""
        messages = self._prompt.messages(request)
        body = requests.body(self._rules, messages)
        judgments: list[Judgment] = []
        for attempt in range(1 + self._rules.reasks):
            stored = self._endpoint.ask(body, requests.number(request, self._rules, attempt))
            judgments.append(self._read(stored, request, messages[-1]["content"]))
            if judgments[-1].rating.status in ("ok", "error"):  # what the endpoint refuses, it refuses again
                break
        return judgments

    def end(self) -> None:
        """Begin no attempt any more."""
        print("ends when the requests under way have come", file=sys.stderr, flush=True)
        self._endpoint.end()

    def _read(self, stored: Stored, request: Request, asked: str) -> Judgment:
        completion, name = json.loads(stored.text), self._prompt.name(request)
        if "choices" not in completion:
            return Judgment(name, asked, ratings.ERROR, ratings.parse(ratings.ERROR), refusal=completion["error"])
        text = completion["choices"][0]["message"].get("content") or ""
        rating = ratings.parse(text, request.answer)
        return Judgment(name, asked, text, rating, completion.get("model"), stored.tokens)


def judge(step: Step[JudgeRecipe]) -> dict[str, Any]:
    """Judge answers. Writes items.parquet, results.json, judgments.jsonl (FastChat's format, raw texts) and card.json.

    Input `answers`: the folder that the answer step published, or a file of FastChat's answers.
    Items: `score` of "<question_id>/<turn>" with the question's category as subset, the same value as `first_turn` or
    `second_turn`, `fastchat`, and the components that the judge names. Returns what they sum up to. A restart goes on
    after the last response that was stored. Of a diverged run there are no answers: its mark is passed on. Raises
    UserError where more than `max_unjudged` is unjudged, and what `endpoint.Endpoint.ask` raises; Again where the time
    of its job is up.
    """
    if mark := diverged.pass_on(step.input("answers"), step.out):
        return mark
    recipe = step.recipe
    asked = requests_of(read_questions(step.input("questions")), step.input("answers"), recipe.judge.repeats)
    who: Judge = Rubric(step) if recipe.judge.kind == "rubric" else Model(step)
    judged = dict(_ask(who, asked))
    pairs = [(request, judgment) for request in asked for judgment in judged[_key(request)]]

    _write_judgments(step.out / JUDGMENTS, recipe, pairs)
    table = scores.frame(_row(request, judgment) for request, judgment in pairs)
    counts = _statuses(table)
    _check(recipe, table, pairs, step.input("answers"))
    items = _items(recipe.benchmark, table, pairs)
    results = {
        "benchmarks": {recipe.benchmark: _result(table, items) | {"statuses": counts}},
        "judge": {
            "name": recipe.name,
            **recipe.judge.model_dump(mode="json"),
            "prompts": who.digest,
            "served": sorted({judgment.served for _, judgment in pairs if judgment.served}),
        },
        "versions": {"trialign": version("trialign")},
    }
    publish(step.out, items, results)
    write_card(step.out, _card(pairs, counts))
    return results


def _ask(who: Judge, asked: list[Request]) -> Iterator[tuple[tuple[Any, ...], list[Judgment]]]:
    """Yield the key and the judgments of each request, as they come, and say how far it is."""
    began = told = time.monotonic()
    work = Deadline().each(asked, "judgments")
    for done, (request, judgments) in enumerate(in_parallel(who.ask, work, who.workers, who.end), start=1):
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            print(f"judged {done}/{len(asked)}  {told - began:.0f} s", file=sys.stderr, flush=True)
        yield _key(request), judgments


def requests_of(questions: list[dict[str, Any]], path: Path, repeats: int) -> list[Request]:
    """Return a request for each question, choice, turn and repeat, in order; UserError for a question not answered."""
    file = path / ANSWERS if path.is_dir() else path
    answers = {answer["question_id"]: answer for answer in read_lines(file)}
    if missing := [q["question_id"] for q in questions if q["question_id"] not in answers]:
        raise UserError(f"{file}: no answer to question {missing[0]} ({len(missing)} missing of {len(questions)})")
    return [
        Request(question, turn, answer["model_id"], tuple(choice["turns"]), number, repeat)
        for question in questions
        for answer in [answers[question["question_id"]]]
        for number, choice in enumerate(answer["choices"])
        for turn in TURNS
        for repeat in range(repeats)
    ]


def _key(request: Request) -> tuple[Any, ...]:
    return request.question["question_id"], request.choice, request.turn, request.repeat


def _conversation(request: Request) -> str:
    """Return the conversation up to the answer, for a reader of a judgment that had no prompt."""
    said = zip(request.question["turns"][: request.turn], request.turns, strict=False)
    return "\n\n".join(f"[User]\n{question}\n\n[Assistant]\n{answer}" for question, answer in said)


def _row(request: Request, judgment: Judgment) -> scores.Row:
    question_id, choice, turn, repeat = _key(request)
    rating = judgment.rating
    return scores.Row(
        str(question_id), turn, choice, repeat, request.question["category"], rating.status, rating.score,
        ratings.fastchat(judgment.text),
    )  # fmt: skip


def _write_judgments(path: Path, recipe: JudgeRecipe, pairs: list[tuple[Request, Judgment]]) -> None:
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


def _statuses(table: Any) -> dict[str, int]:
    """Return how many responses have each status, all statuses named."""
    found = table["status"].value_counts()
    return {status: int(found.get(status, 0)) for status in (*ratings.STATUSES, scores.RERUN)}


def _check(recipe: JudgeRecipe, table: Any, pairs: list[tuple[Request, Judgment]], where: Path) -> None:
    """Raise UserError where too many answers have no usable rating; with the endpoint's words, where it refused."""
    refusal = next((judgment.refusal for _, judgment in pairs if judgment.refusal), None)
    why = f" (the endpoint refused one: {refusal})" if refusal else ""
    ratings.check(scores.per_answer(table), recipe.judge.max_unjudged, f"judge {recipe.name}, {where}{why}")


def _items(benchmark: str, table: Any, pairs: list[tuple[Request, Judgment]]) -> list[Item]:
    """Return an item for each question and turn and metric: the mean of its answers' judgments."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for (request, judgment), counts, read_by_fastchat in zip(pairs, table["counts"], table["fastchat"], strict=True):
        question_id, _, turn, _ = _key(request)
        place_ = (request.question["category"], f"{question_id}/{turn}")
        if counts:
            rating = judgment.rating
            named = {"score": rating.score, TURN_METRICS[turn]: rating.score, **rating.components}
            for metric, value in named.items():
                values.setdefault((*place_, metric), []).append(value)
        if read_by_fastchat != ratings.UNRATED:
            values.setdefault((*place_, "fastchat"), []).append(read_by_fastchat)
    return [
        Item(benchmark, subset, item, metric, sum(each) / len(each)) for (subset, item, metric), each in values.items()
    ]


def _result(table: Any, items: list[Item]) -> dict[str, Any]:
    """Return the entry of `results.json`: the strict mean, and all that `scores.summary` says.

    `stderr` takes the two turns of a question together (`records.mean_of_clusters`).
    """
    value, error = mean_of_clusters(
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
        "components": {name: sum(each) / len(each) for name, each in components.items()},
    }


def _card(pairs: list[tuple[Request, Judgment]], counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "kind": "judgments",
        "rows_in": len(pairs),
        "rows": {"judged": counts["ok"]},
        "dropped": {status: n for status, n in counts.items() if status != "ok"},
        "empty_answers": len({_key(request) for request, _ in pairs if not request.answer.strip()}),
        "tokens_in": sum(judgment.tokens.into for _, judgment in pairs),
        "tokens_out": sum(judgment.tokens.out for _, judgment in pairs),
        "served": dict(Counter(judgment.served for _, judgment in pairs if judgment.served)),
    }
