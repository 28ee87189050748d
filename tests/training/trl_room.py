"""What the trainers' tests share besides fixtures: token files of random ids, the methods' parameters, recipes."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow as pa

from trialign import methods
from trialign.recipes import ReferenceRecipe, TrainRecipe
from trialign.settings import Training
from trialign.steps import Step
from trialign.training import packed, reference, train, trl

BOS, EOS, PAD, VOCAB = 0, 1, 2, 96
VIEWS = {"sft": "reference", "tpo": "triple"}
PARAMS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"beta": 0.1},
    "ipo": {"beta": 0.2},
    "kto": {"beta": 0.1},
    "cpo": {"beta": 0.1},
    "orpo": {"beta": 0.3},
    "simpo": {"beta": 2.0, "gamma": 0.5},
    "tpo": {"alpha": 0.9, "beta": 0.2},
}


def triples(n: int, seed: int) -> pa.Table:
    """Triples of random ids: BOS first, EOS last, lengths that differ."""
    rng = random.Random(seed)

    def some(low: int, high: int) -> list[int]:
        return [rng.randrange(3, VOCAB) for _ in range(rng.randrange(low, high))]

    ids = pa.list_(pa.int32())
    columns: dict[str, Any] = {"prompt_id": [f"{seed}-{i}" for i in range(n)]}
    columns["prompt"] = pa.array([[BOS, *some(2, 9)] for _ in range(n)], ids)
    for branch in ("reference", "chosen", "rejected"):
        columns[branch] = pa.array([[*some(1, 12), EOS] for _ in range(n)], ids)
    return pa.table(columns)


def recipe(method: str, params: dict[str, Any] | None = None, view: str = "", seed: int = 0, **training: Any):
    """A recipe of `method` with the tests' parameters and view, batch 4, fp32, for stock TRL."""
    settings = {"learning_rate": 1e-2, "precision": "fp32", "batch": 4, "engine": "trl", **training}
    return TrainRecipe(
        method=method,
        params=PARAMS[method] if params is None else params,
        view=view or VIEWS.get(method, "chosen-rejected"),
        training=Training(**settings),
        seed=seed,
    )


def run_of(
    step: Any, folder_of_all: Path, method: str, parent: Path, tokens: Path, name: str, **training: Any
) -> Step[TrainRecipe]:  # fmt: skip
    """Make a step; with the packed engine and a method that compares with the parent, after the step that reads it."""
    made = step(recipe(method, **{"learning_rate": 1e-3} | training), parent, tokens, name)
    if made.recipe.training.engine == "packed" and methods.get(method).needs_reference:
        out = folder_of_all / f"{name} reference"
        out.mkdir()
        recipe_of = ReferenceRecipe(
            view=made.recipe.view, mismatched=method == "kto", precision=made.recipe.training.precision
        )
        reference.compute(Step(recipe_of, {"model": (parent,), "tokens": (tokens,)}, out, out))
        made = dataclasses.replace(made, inputs={**made.inputs, "reference": (out,)})
    return made


def training_process(step: Step[TrainRecipe]) -> BaseProcess:
    """Start a step's training in a process of its own, forked from one that has imported the trainers."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([train.__name__, trl.__name__, packed.__name__])
    process = server.Process(target=_train, args=(step, dict(os.environ)))
    process.start()
    return process


def _train(step: Step[TrainRecipe], environment: dict[str, str]) -> None:
    os.environ.update(environment)  # the server has that of its own start
    train.train(step)


def assert_same_run(one: Step[TrainRecipe], other: Step[TrainRecipe]) -> None:
    """Assert that two steps left the same bits of weights, and the same losses in their logs."""
    weights = [(run.out / "model" / "model.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]
    losses = [[json.loads(line).get("loss") for line in (run.out / "log.jsonl").open()] for run in (one, other)]
    assert losses[0] == losses[1]
