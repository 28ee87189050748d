"""Runs as a page shows them: the stages behind each, its losses, its scores, and the record of how it was made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trialign import diverged, paths
from trialign.lineage import Lineage
from trialign.recipes import Column, IndexRecipe
from trialign.reporting import sparkline, work
from trialign.reporting.gather import NO_SCORE
from trialign.steps import RUN_JSON

# settings of a training that a reader asks for first, and what they are called
TRAINING = {
    "learning_rate": "learning rate",
    "batch": "batch",
    "epochs": "epochs",
    "max_steps": "steps at most",
    "schedule": "schedule",
    "precision": "precision",
    "engine": "engine",
}
LOG = "log.jsonl"
FILES = (LOG, "card.html", "results.json")  # of a run, its answers and its suites: what a reader may want
Identity = tuple[str, int]  # lineage and seed


@dataclass(frozen=True)
class Score:
    """A number of a run, in the units of tables. column: the benchmark, if the metric is its own."""

    benchmark: str
    metric: str
    value: float
    stderr: float
    n: int
    judge: str
    column: Column | None


@dataclass(frozen=True)
class Stage:
    """One step of training of a run, with the id of the run that it ended in. params, training: name -> value."""

    run: str
    label: str
    method: str
    view: str
    params: Mapping[str, Any]
    training: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Run:
    """A run. id: of its place on the page; folder: from the results root, with the `files` that a reader may want.

    missing: why it has no scores, if it has none.
    """

    id: str
    lineage: str
    label: str
    seed: int
    folder: str
    record: work.Record
    stages: Sequence[Stage]
    curve: sparkline.Curve | None
    scores: Sequence[Score]
    missing: str
    files: Sequence[str]

    @property
    def parent(self) -> Stage | None:
        """The stage that this run was trained on."""
        return self.stages[-2] if len(self.stages) > 1 else None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its training said of itself."""
        return self.record["facts"]

    @property
    def final(self) -> Mapping[str, float]:
        """The measures on the eval split at the end of its training; of a base model the training loss."""
        found = self.facts.get("final") or {name: self.facts[name] for name in ("loss",) if name in self.facts}
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    def score(self, column: Column) -> Score | None:
        """Return the run's number for a benchmark by its own metric."""
        return next((score for score in self.scores if score.column == column), None)


def place(lineage: str, seed: int) -> str:
    """Return the id of a run's place on the page."""
    return f"run/{lineage}/seed{seed}"


def read(recipe: IndexRecipe, run_files: Iterable[Path], suites: Iterable[Path], results: pd.DataFrame) -> list[Run]:
    """Return all runs in the order of their records' files. suites: their suite folders; results: the tidy results."""
    folders = {(file.parts[-3], int(file.parts[-2].removeprefix("seed"))): file.parent for file in run_files}
    records = {identity: work.read(folder) for identity, folder in folders.items()}
    scores: dict[Identity, list[Score]] = {identity: [] for identity in folders}
    for row in results.to_dict("records"):
        if score := _score(recipe, row):
            scores[row["lineage"], row["seed"]].append(score)
    files: dict[Identity, list[str]] = {identity: [RUN_JSON] for identity in folders}
    for identity, folder in folders.items():
        files[identity] += _files(folder, folder)
    for suite in suites:
        found = paths.parse_suite(suite)
        folder = folders[found.lineage, found.seed]
        places = [folder / Path(paths.ANSWERS).relative_to(paths.RUN), suite] if found.judge else [suite]
        files[found.lineage, found.seed] += [file for place in places for file in _files(place, folder)]
    return [
        _run(recipe, identity, folder, records, scores[identity], list(dict.fromkeys(files[identity])))
        for identity, folder in folders.items()
    ]


def _files(place: Path, folder: Path) -> list[str]:
    """Return the files of FILES that a step has published in its place, from the run's folder."""
    published = work.read(place)["files"]
    return [(place / name).relative_to(folder).as_posix() for name in FILES if name in published]


def _run(
    recipe: IndexRecipe,
    identity: Identity,
    folder: Path,
    records: Mapping[Identity, work.Record],
    scores: list[Score],
    files: list[str],
) -> Run:
    lineage, seed = identity
    mark = diverged.read(folder / "model")
    order = {column.label: i for i, column in enumerate(recipe.columns)}
    return Run(
        id=place(lineage, seed),
        lineage=lineage,
        label=recipe.labels[lineage],
        seed=seed,
        folder="/".join(folder.parts[-3:]),
        record=records[identity],
        stages=_stages(recipe, identity, records),
        curve=sparkline.curve(folder / LOG) if LOG in records[identity]["files"] else None,
        scores=sorted(scores, key=lambda score: (order[score.benchmark], score.column is None, score.metric)),
        missing=f"{NO_SCORE.missing} at step {mark['step']}" if mark else "" if scores else "not evaluated",
        files=files,
    )


def _stages(recipe: IndexRecipe, identity: Identity, records: Mapping[Identity, work.Record]) -> list[Stage]:
    """Return the stages of a run from the first that was made here, back from the run itself."""
    found: list[Stage] = []
    lineage, seed = identity
    ancestor: Lineage | None = Lineage.parse(lineage)
    while ancestor and (record := records.get((str(ancestor), seed))):
        settings = record["recipe"]
        training = settings.get("training") or settings.get("settings") or {}
        found.insert(
            0,
            Stage(
                run=place(str(ancestor), seed),
                label=recipe.labels[str(ancestor)],
                method=settings.get("method", settings["step"]),
                view=settings.get("view", ""),
                params=settings.get("params", {}),
                training={TRAINING[name]: training[name] for name in TRAINING if training.get(name) is not None},
                seconds=record["seconds"],
            ),
        )
        ancestor = ancestor.parent
    return found


def _score(recipe: IndexRecipe, row: Mapping[str, Any]) -> Score | None:
    """Return a row of the tidy results as a score; None for a row without a value, whose run diverged."""
    column = next((column for column in recipe.columns if column.benchmark == row["benchmark"]), None)
    if column is None or math.isnan(row["value"]):
        return None
    scale = 100.0 if row["metric"] in recipe.shares else 1.0
    return Score(
        benchmark=column.label,
        metric=f"{row['metric']}{' (%)' if scale == 100 else ''}",
        value=row["value"] * scale,
        stderr=row["stderr"] * scale,
        n=int(row["n"]),
        judge=row["judge"],
        column=column if row["metric"] == column.metric else None,
    )
