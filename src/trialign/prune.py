"""Prune: remove models that no open artifact needs, leaves first, by a manifest that says what it costs.

What is open is Snakemake's word: a model goes only if its job is done and no job that waits reads it. Snakemake does
not make an input anew that is missing when what was made of it is up to date, so finished artifacts stay finished. A
parent is another matter: a new row on it makes Snakemake train it again, and with it all that was trained on it and is
gone, too. So parents stay unless they are asked for, and their price counts those.

A model is two names of the same files, in `runs/` and in `.store/`: both go. Its `run.json` and log stay beside it, and
`pruned.jsonl` in the results tree keeps the manifest. When a recipe changes, the new model takes the name in `runs/`
and the old one is left in `.store/` alone: it goes too, unless it is what a job that waits would make (Snakemake
deletes outputs of failed jobs, and the store gives them back).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trialign import lease, paths, steps, study
from trialign.config import Experiment
from trialign.plan import MODEL_RULES, Dag, Job

MANIFEST = "pruned.jsonl"
MODEL_STEPS = ("pretrain", "import", "train", "choose")
READERS_OF_RECORDS = ("index",)  # rules that read what is said of runs, and no model
PARTS = "prune-"  # of names in .work: what a killed prune left


@dataclass(frozen=True)
class Entry:
    """A model that may go, with the folders that hold it, or a work folder.

    bytes: what its removal frees; hours, gpu_hours: what it takes to have it again, with all that comes back along with
    it (`again`, names of other models); parent: other runs were trained on it.
    """

    name: str
    folders: tuple[Path, ...]
    bytes: int
    hours: float = 0.0
    gpu_hours: float = 0.0
    again: tuple[str, ...] = ()
    parent: bool = False


@dataclass(frozen=True)
class _Model:
    lineage: str
    seed: str
    folder: Path
    fingerprint: str
    seconds: float
    gpu_seconds: float

    @property
    def name(self) -> str:
        return f"{self.lineage} seed{self.seed}"

    def descends_from(self, other: _Model) -> bool:
        return self.seed == other.seed and self.lineage.startswith(other.lineage + "+")


def manifest(dag: Dag, *, parents: bool, work: bool) -> list[Entry]:
    """Return what may go, leaves first.

    parents: also models that other runs were trained on. work: also the work folders of steps that are still to come,
    which then begin anew instead of at their last checkpoint.
    """
    root = Path(dag.experiment.results_dir)
    there = list(_models(dag, root))
    open_jobs = [job for job in dag.jobs if job.needed and job.rule not in READERS_OF_RECORDS]
    kept = {path for job in open_jobs for path in _reads(dag, job)}
    names = {lineage for lineage, _ in _runs(dag, there)}
    going = []
    for model in sorted(there, key=lambda model: (-model.lineage.count("+"), model.name)):
        parent = any(name.startswith(model.lineage + "+") for name in names)
        if model.folder not in kept and (parents or not parent) and _freed(root, model):
            going.append(model)
    return [
        *(_entry(root, model, going, names) for model in going),
        *_superseded(dag, root),
        *_work(dag, root, everything=work),
    ]


def remove(experiment: Experiment, entries: Iterable[Entry]) -> int:
    """Remove what a manifest lists, in its order, and keep the manifest. Returns how many bytes came free.

    Each folder leaves its place by a rename before a byte is deleted: a kill leaves no half.
    """
    root, freed = Path(experiment.results_dir), 0
    for entry in entries:
        for folder in entry.folders:
            if folder.exists():
                aside = root / paths.WORK / f"{PARTS}{os.getpid()}"
                aside.parent.mkdir(exist_ok=True)
                folder.rename(aside)
                shutil.rmtree(aside)
        freed += entry.bytes
        with (root / MANIFEST).open("a") as file:
            record = {"removed": datetime.now(UTC).isoformat(timespec="seconds")} | asdict(entry)
            file.write(json.dumps(record, default=str) + "\n")
    return freed


def _models(dag: Dag, root: Path) -> Iterator[_Model]:
    """Yield the models that lie in the results tree, those that no artifact names any more included."""
    jobs = {Path(output): job for job in dag.jobs if job.rule in MODEL_RULES for output in job.output}
    for folder in sorted((root / "runs").glob("*/seed*/model")):
        record_file = folder.with_name(steps.RUN_JSON)
        if not record_file.is_file():
            continue
        record = _json(record_file)
        job = jobs.get(folder)
        seconds = job.seconds if job else record["seconds"]
        gpus = job.resources.get("gpu", 0) if job else dag.experiment.resources.train.gpus_in_all
        seed = folder.parent.name.removeprefix("seed")
        yield _Model(folder.parts[-3], seed, folder, record["fingerprint"], seconds, seconds * gpus)


def _runs(dag: Dag, there: Sequence[_Model]) -> Iterator[tuple[str, str]]:
    """Yield (lineage, seed) of every run that the experiment asks for or that lies in the tree."""
    for job in dag.jobs:
        if job.rule in MODEL_RULES:
            yield job.wildcards["lineage"], job.wildcards["seed"]
    for model in there:
        yield model.lineage, model.seed


def _reads(dag: Dag, job: Job) -> Iterator[Path]:
    """Yield what a job makes, and what those make that it waits for."""
    for other in (job, *(dag.by_id[number] for number in job.after)):
        yield from map(Path, other.output)


def _entry(root: Path, model: _Model, going: Sequence[_Model], names: Iterable[str]) -> Entry:
    """Return a model's entry: it comes back with those that it was trained on and those trained on it, if they go."""
    again = [other for other in going if other.descends_from(model) or model.descends_from(other)]
    return Entry(
        name=model.name,
        folders=_folders(root, model),
        bytes=_freed(root, model),
        hours=round(sum(other.seconds for other in [model, *again]) / 3600, 2),
        gpu_hours=round(sum(other.gpu_seconds for other in [model, *again]) / 3600, 2),
        again=tuple(other.name for other in again),
        parent=any(name.startswith(model.lineage + "+") for name in names),
    )


def _freed(root: Path, model: _Model) -> int:
    """Return the bytes that no other name holds: an imported model's are those of its download."""
    return _bytes(_folders(root, model))


def _folders(root: Path, model: _Model) -> tuple[Path, ...]:
    """Return where a model lies, the store first: what is not there is not restored."""
    return root / paths.STORE / model.fingerprint, model.folder


def _bytes(folders: Iterable[Path]) -> int:
    links: dict[tuple[int, int], list[int]] = {}
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file():
                status = file.stat()
                links.setdefault((status.st_dev, status.st_ino), [status.st_nlink, status.st_size, 0])[2] += 1
    return sum(size for there, size, seen in links.values() if seen >= there)


def _superseded(dag: Dag, root: Path) -> Iterator[Entry]:
    """Yield the models of the store that no run names, but those that a waiting job would find there."""
    named = {_json(file).get("fingerprint") for file in (root / "runs").glob(f"*/seed*/{steps.RUN_JSON}")}
    waiting = [json.loads(_recipe(dag, job)) for job in dag.needed if job.rule in MODEL_RULES]
    for file in sorted((root / paths.STORE).glob(f"*/{steps.RUN_JSON}")):
        record = _json(file)
        recipe = record.get("recipe", {})
        if recipe.get("step") not in MODEL_STEPS or file.parent.name in named:
            continue
        freed = _bytes([file.parent])
        if freed and recipe not in waiting:
            split = (record.get("facts") or {}).get("split", {})
            gpus = min(dag.experiment.resources.train.gpus, split.get("processes", 1))
            what = " ".join(str(recipe[key]) for key in ("step", "method") if key in recipe)
            yield Entry(
                name=f"{paths.STORE}/{file.parent.name[:8]} ({what}, superseded)",
                folders=(file.parent,),
                bytes=freed,
                hours=round(record["seconds"] / 3600, 2),
                gpu_hours=round(record["seconds"] * gpus / 3600, 2),
            )


def _recipe(dag: Dag, job: Job) -> str:
    """Return the canonical recipe of a job that makes a model."""
    lineage, seed = dag.experiment.lineage(job.wildcards["lineage"]), int(job.wildcards["seed"])
    match job.rule:
        case "pretrain":
            return study.pretrain_recipe(dag.experiment, lineage, seed).canonical()
        case "import_model":
            return study.import_recipe(dag.experiment).canonical()
        case "choose":
            return study.choose_recipe(dag.experiment, lineage).canonical()
        case _:
            return study.train_recipe(dag.experiment, lineage, seed).canonical()


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def _work(dag: Dag, root: Path, *, everything: bool) -> Iterator[Entry]:
    """Yield work folders without a live lease: of finished steps; others if no step is to come or `everything`."""
    for folder in sorted((root / paths.WORK).glob("*")):
        if not folder.is_dir() or lease.is_held(folder):
            continue
        over = folder.name.startswith(PARTS) or (root / paths.STORE / folder.name / steps.RUN_JSON).is_file()
        if over or everything or not dag.needed:
            yield Entry(f"{paths.WORK}/{folder.name}", (folder,), _bytes([folder]))


def show(entries: Sequence[Entry]) -> None:
    """Print a manifest."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from trialign import terminal

    table = Table(title="May go, leaves first", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("what", overflow="fold")
    for column in ("GB", "hours to have it again", "GPU-hours", "come back with it"):
        table.add_column(column, justify="right")
    for entry in entries:
        what = escape(entry.name) + (" (parent)" if entry.parent else "")
        numbers = (f"{entry.bytes / 1e9:,.3f}", f"{entry.hours:,.2f}", f"{entry.gpu_hours:,.1f}", str(len(entry.again)))
        table.add_row(what, *numbers)
    terminal.console().print(table)
