"""Judging stored answers: who judges is asked, raw responses are stored before they are read.

A judge is the demo's rubric or a model behind an endpoint; what judgments come to is the same for both: `judged.py`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from trialign import diverged
from trialign.deadline import Deadline
from trialign.demo import judge as rubric_judge
from trialign.errors import UserError
from trialign.evaluation import ratings, requests
from trialign.evaluation.parallel import in_parallel
from trialign.evaluation.questions import ANSWERS, TURNS, place, read_lines, read_questions
from trialign.evaluation.requests import RUBRIC, Judgment, Prompt, Request
from trialign.evaluation.responses import FILE, Responses, Stored, Tokens
from trialign.paths import ENDPOINTS
from trialign.progress import Progress
from trialign.recipes import JudgeRecipe
from trialign.settings import EndpointSettings
from trialign.steps import Step, digest

PROGRESS_SECONDS = 10.0


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
        rubrics = read_lines(place(step.input("questions")) / RUBRIC)
        self.digest, self._rubrics = digest(rubrics), {rubric["question_id"]: rubric for rubric in rubrics}
        self._stored, self._name, self._rules = Responses(step.scratch / FILE), step.recipe.name, step.recipe.judge

    def ask(self, request: Request) -> list[Judgment]:
        """Rate an answer by the rubric of its question."""
        question = request.question
        asked = {"question_id": question["question_id"], "turn": request.turn, "answer": request.answer}
        key = requests.key(self._name, asked, requests.number(request, 0))
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
        """Read the prompts, and how the judge is reached. UserError where one or the other is missing."""
        from trialign.evaluation.endpoint import Endpoint

        recipe, shared = step.recipe, step.shared or step.scratch
        self._rules, self._prompt = recipe.judge, Prompt(step.input("questions"))
        settings = _reached(shared / ENDPOINTS, recipe.name)
        self._endpoint = Endpoint(recipe.name, recipe.judge, settings, Responses(shared / FILE))
        self.digest, self.workers = self._prompt.digest, settings.concurrency

    def ask(self, request: Request) -> list[Judgment]:
        """Ask for a judgment, and again where the response has no usable rating and `reasks` allows."""
        messages = self._prompt.messages(request)
        body = requests.body(self._rules, messages)
        judgments: list[Judgment] = []
        for attempt in range(1 + self._rules.reasks):
            stored = self._endpoint.ask(body, requests.number(request, attempt))
            judgments.append(self._read(stored, request, messages[-1]["content"]))
            if judgments[-1].rating.status in ("ok", "error"):  # what the endpoint refuses, it refuses again
                break
        return judgments

    def end(self) -> None:
        """Begin no attempt any more."""
        print("ends when the requests under way have come", file=sys.stderr, flush=True)
        self._endpoint.end()

    def _read(self, stored: Stored, request: Request, asked: str) -> Judgment:
        completion, name, text = json.loads(stored.text), self._prompt.name(request), said(stored.text)
        if "choices" not in completion:
            return Judgment(name, asked, text, ratings.parse(text), refusal=completion["error"])
        rating = ratings.parse(text, request.answer)
        return Judgment(name, asked, text, rating, completion.get("model"), stored.tokens)


def said(response: str) -> str:
    """Return the text of a judgment from the stored response of an endpoint."""
    completion = json.loads(response)
    return requests.content(completion) if "choices" in completion else ratings.ERROR


def stored_under(recipe: JudgeRecipe, questions: Path, answers: Path) -> dict[tuple[Any, ...], list[str]]:
    """Return, by `Request.key`, the keys under which a model's responses are stored, one for each attempt.

    UserError as for `judge`.
    """
    prompt = Prompt(questions)
    return {
        request.key: [
            requests.key(recipe.name, body, requests.number(request, attempt))
            for body in [requests.body(recipe.judge, prompt.messages(request))]
            for attempt in range(1 + recipe.judge.reasks)
        ]
        for request in requests_of(read_questions(questions), answers, recipe.judge.repeats)
    }


def _reached(path: Path, name: str) -> EndpointSettings:
    endpoints = json.loads(path.read_text()) if path.is_file() else {}
    if name not in endpoints:
        raise UserError(f"{path}: says nothing of judge {name}; a start of snakemake writes it")
    return EndpointSettings.model_validate(endpoints[name])


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
    questions = read_questions(step.input("questions"))
    asked = requests_of(questions, step.input("answers"), step.recipe.judge.repeats)
    who: Judge = Rubric(step) if step.recipe.judge.kind == "rubric" else Model(step)
    found = dict(_ask(who, asked, step.progress))
    from trialign.evaluation import judged

    pairs = [(request, judgment) for request in asked for judgment in found[request.key]]
    return judged.publish(step, pairs, who.digest)


def _ask(
    who: Judge, asked: list[Request], progress: Progress
) -> Iterator[tuple[tuple[Any, ...], list[Judgment]]]:  # fmt: skip
    """Yield the key and the judgments of each request, as they come, and say how far it is."""
    began = told = time.monotonic()
    work = Deadline().each(asked, "judgments")
    responses = in_parallel(who.ask, work, who.workers, who.end, meanwhile=_import_the_rest)
    for done, (request, judgments) in enumerate(responses, start=1):
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            print(f"judged {done}/{len(asked)}  {told - began:.0f} s", file=sys.stderr, flush=True)
        progress.tell(done, len(asked), "judgments")
        yield request.key, judgments


def _import_the_rest() -> None:
    """Load what publishes, while nothing is to be done but wait: pandas takes half a second."""
    from trialign.evaluation import judged

    del judged


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


def _conversation(request: Request) -> str:
    """Return the conversation up to the answer, for a reader of a judgment that had no prompt."""
    said = zip(request.question["turns"][: request.turn], request.turns, strict=False)
    return "\n\n".join(f"[User]\n{question}\n\n[Assistant]\n{answer}" for question, answer in said)
