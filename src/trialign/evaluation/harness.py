"""Harness benchmarks: one suite on one loaded model through lm-eval's Python API, with a record of every item.

For each benchmark (and each of its subsets) a task file is written that includes the harness's own, so that prompts,
choices and metrics are the harness's (or one of `tasks`, where they are an older harness's), and states what the study
fixes: data, scored split, few-shot examples.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import lm_eval.evaluator
import numpy as np
import torch
from datasets.exceptions import DatasetGenerationError
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, hash_string

from trialign import diverged
from trialign.data.sources import origin, splits
from trialign.errors import UserError, nearest
from trialign.evaluation import language_model, models
from trialign.evaluation import tasks as task_files
from trialign.evaluation.records import Item, mean, mean_of_subsets, publish
from trialign.recipes import EvaluateRecipe
from trialign.settings import HarnessTask
from trialign.steps import Step

SEED = 1234  # lm-eval's own default for few-shot sampling and for torch; one seed for every model
FEWSHOT_KEYS = ("fewshot_split", "training_split", "validation_split")  # where the harness looks, in its order


@dataclass(frozen=True)
class Task:
    """A harness task: a benchmark, or one subset of it. `definition` is what our task file says."""

    benchmark: str
    subset: str
    definition: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name under which the harness knows it."""
        return f"{self.benchmark}/{self.subset}" if self.subset else self.benchmark


class Document(NamedTuple):
    """An item as the harness has it: its subset, its id in `items.parquet`, its fields."""

    subset: str
    item: str
    content: Mapping[str, Any]


def evaluate(step: Step[EvaluateRecipe]) -> dict[str, Any]:
    """Evaluate a suite. Writes `items.parquet` and `results.json` (see `records`); returns what they sum up to.

    A value that is not finite (a broken model; an underflow) stays in the items as NaN, is counted as `not_finite`,
    and leaves its benchmark without a score. The model of a diverged run is not evaluated: its mark is passed on.
    A restart goes on after the last batch that was written down. Raises UserError for a task file, split or metric that
    is not there, and where a batch does not fit the GPU; Again where the time of its job is up.
    """
    if mark := diverged.pass_on(step.input("model"), step.out):
        return mark
    recipe = step.recipe
    tasks = [
        task
        for name, benchmark in recipe.benchmarks.items()
        for task in _tasks(name, benchmark, step.input(f"data.{name}"), step.scratch / "datasets")
    ]
    language_model.compile_templates_once()
    model = language_model.LanguageModel(
        step.input("model"), batch_size=recipe.batch_size, bos=recipe.bos, scratch=step.scratch
    )
    with models.fitting("eval_batch_size", recipe.batch_size):
        outcome = _run(model, tasks, recipe.benchmarks, _write(tasks, step.scratch / "tasks"))

    items = [item for task in tasks for item in _items(task, outcome["samples"][task.name])]
    results = {
        "benchmarks": {
            name: _result(
                benchmark, [task for task in tasks if task.benchmark == name], items, outcome, model.truncated
            )
            | _data(step.input(f"data.{name}"))
            for name, benchmark in recipe.benchmarks.items()
        },
        "protocol": {
            "batch_size": recipe.batch_size,
            "bos": recipe.bos,
            "template": "none",
            "fewshot_seed": SEED,
            "max_length": model.max_length,
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "device": model.device.type,
        },
        "versions": _versions(),
    }
    publish(step.out, items, results)
    return results


def _tasks(name: str, benchmark: HarnessTask, source: Path, cache: Path) -> list[Task]:
    return [_task(name, benchmark, subset, source, cache) for subset in benchmark.subsets or ("",)]


def _task(name: str, benchmark: HarnessTask, subset: str, source: Path, cache: Path) -> Task:
    """Return the harness's task on the files of the source: those of the scored split and of the few-shot examples."""
    include = task_files.locate(benchmark.include.format(subset=subset))
    harness = task_files.definition(include)
    examples = next((harness[key] for key in FEWSHOT_KEYS if harness.get(key)), benchmark.split)
    needed = {benchmark.split, examples} if benchmark.shots else {benchmark.split}
    folder = _folder(source, subset, harness.get("dataset_name"))
    there = splits(folder)
    if missing := sorted(needed - there.keys()):
        raise UserError(
            f"benchmark {name}: {folder} has no split '{missing[0]}' (a .jsonl, .json or .parquet file of that name), "
            f"which the harness's {benchmark.include} needs for split '{benchmark.split}' at {benchmark.shots} shots; "
            f"it has: {', '.join(there) or 'none'}"
        )
    files = {split: [str(file.resolve()) for file in there[split]] for split in sorted(needed)}
    ours: dict[str, Any] = {
        "include": str(include),
        "task": f"{name}/{subset}" if subset else name,
        "num_fewshot": benchmark.shots,
        "test_split": benchmark.split,
        "dataset_path": _format(name, folder, [file for split in files for file in there[split]]),
        "dataset_name": None,  # the files are named, so that `datasets` needs no card to find them
        "dataset_kwargs": {"data_files": files, "cache_dir": str(cache)},
        **{key: None for key in FEWSHOT_KEYS if harness.get(key) and harness[key] not in files},
    }
    if examples == benchmark.split:
        # named, so that the harness leaves an item out of its own few-shot examples
        ours["fewshot_split"] = benchmark.split
    return Task(name, subset, ours)


def _folder(source: Path, subset: str, config: str | None) -> Path:
    """Return where a task's files are: a hub snapshot has a folder per config, other sources may have one per subset.

    A source without either is one data set. Not so if the harness has a config for each subset: then a missing folder
    is missing data, and the whole source must not stand in for it.
    """
    for name in (config, subset):
        if name and (source / name).is_dir():
            return source / name
    return source / subset if config else source


def _format(name: str, folder: Path, files: Iterable[Path]) -> str:
    """Return the `datasets` builder that reads the files."""
    formats = {"parquet" if file.suffix == ".parquet" else "json" for file in files}
    if len(formats) > 1:
        raise UserError(f"benchmark {name}: {folder} has its splits both as parquet and as JSON; keep one of them.")
    return formats.pop()


def _write(tasks: Iterable[Task], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, task in enumerate(tasks):
        (folder / f"{number}.yaml").write_text(json.dumps(task.definition))  # JSON is YAML
    return folder


def _run(model: Any, tasks: list[Task], benchmarks: Mapping[str, HarnessTask], folder: Path) -> dict[str, Any]:
    """Run the harness's own evaluation loop.

    `simple_evaluate` is not used: it has one limit for all tasks, and spends 2 s on describing the machine.
    """
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    loaded, samples = _load(tasks, folder), {}
    for task in tasks:
        loaded[task.name].set_fewshot_seed(SEED)
        if limit := benchmarks[task.benchmark].limit:
            samples[task.name] = list(range(min(limit, len(loaded[task.name].eval_docs))))
    return lm_eval.evaluator.evaluate(model, {"tasks": loaded}, samples=samples, bootstrap_iters=0, log_samples=True)


def _load(tasks: list[Task], folder: Path) -> dict[str, Any]:
    """Return the harness's own task objects by name."""
    datasets.disable_progress_bars()
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    loaded = {}
    for task in tasks:
        try:
            (loaded[task.name],) = manager.load([task.name])["tasks"].values()
        except (KeyError, ValueError, FileNotFoundError, DatasetGenerationError) as error:  # data that does not fit
            cause = error.__cause__ or error
            raise UserError(
                f"benchmark {task.name}: its data cannot be read: {type(cause).__name__}: {cause}"
            ) from error
    return loaded


def documents(name: str, benchmark: HarnessTask, source: Path, scratch: Path) -> Iterator[Document]:
    """Yield every item of a benchmark, whatever its limit, under the id that it has in `items.parquet`.

    Raises UserError for a task file or split that is not there.
    """
    tasks = _tasks(name, benchmark, source, scratch / "datasets")
    loaded = _load(tasks, _write(tasks, scratch / "tasks" / name))
    for task in tasks:
        for number, content in enumerate(loaded[task.name].eval_docs):
            # the hash is the harness's (lm_eval.evaluator.evaluate, "doc_hash")
            text = json.dumps(content, indent=2, default=handle_non_serializable, ensure_ascii=False)
            yield Document(task.subset, _item_id(number, hash_string(text)), content)


def _item_id(number: int, digest: str) -> str:
    return f"{number}-{digest[:8]}"


def _items(task: Task, samples: Iterable[Mapping[str, Any]]) -> list[Item]:
    """Return an item per document and scalar metric; that of a named filter is `metric,filter`, as in the harness."""
    return [
        Item(
            task.benchmark,
            task.subset,
            _item_id(sample["doc_id"], sample["doc_hash"]),
            metric if sample["filter"] == "none" else f"{metric},{sample['filter']}",
            float(sample[metric]) if _finite(sample) else math.nan,
        )
        for sample in samples
        for metric in sample["metrics"]
        if isinstance(sample[metric], Real)
    ]


def _finite(sample: Mapping[str, Any]) -> bool:
    """Return False if a log-likelihood is not finite: the harness's argmax would take such a choice for the best."""
    responses = [response for group in sample["resps"] for response in group]
    return all(math.isfinite(response[0]) for response in responses if isinstance(response, tuple))


def _result(
    benchmark: HarnessTask,
    tasks: list[Task],
    items: list[Item],
    outcome: Mapping[str, Any],
    truncated: set[tuple[str, str]],
) -> dict[str, Any]:
    """Return a benchmark's entry of `results.json`."""
    name = tasks[0].benchmark
    values: dict[str, list[float]] = defaultdict(list)
    for item in items:
        if item.benchmark == name and item.metric == benchmark.metric:
            values[item.subset].append(item.value)
    if not values:
        there = sorted({item.metric for item in items if item.benchmark == name})
        raise UserError(
            f"benchmark {name}: the harness gives no metric '{benchmark.metric}' per item; "
            f"it gives: {', '.join(there)}{nearest(benchmark.metric, there)}"
        )
    for task in tasks:
        _check_mean(task, benchmark.metric, values[task.subset], outcome["results"][task.name])
    every = [value for part in values.values() for value in part]
    value, error = mean_of_subsets(values.values()) if benchmark.aggregate == "subsets" else mean(every)
    samples = [sample for task in tasks for sample in outcome["samples"][task.name]]
    return {
        "metric": benchmark.metric,
        "value": value,
        "stderr": error,
        "n": len(every),
        "shots": benchmark.shots,
        "split": benchmark.split,
        "limit": benchmark.limit,
        "aggregate": benchmark.aggregate,
        "subsets": {subset: {"value": mean(part)[0], "n": len(part)} for subset, part in values.items() if subset},
        "truncated": sum(any(tuple(request) in truncated for request in sample["arguments"]) for sample in samples),
        "not_finite": sum(not math.isfinite(value) for value in every),
        "tasks": {task.name: _made(outcome, task.name) for task in tasks},
    }


def _data(source: Path) -> dict[str, Any]:
    """Return where a benchmark's data was downloaded from, at which revision; nothing for data that was not."""
    downloaded = origin(source)
    return {"data": downloaded} if downloaded else {}


def _made(outcome: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a task's version, the hash of its config, and what a task file of ours declares beside its version."""
    config = outcome["configs"][name]
    declared = {key: value for key, value in config["metadata"].items() if key not in ("version", "config_source")}
    return {"version": str(outcome["versions"][name]), "config": _hash(config), **declared}


def _check_mean(task: Task, metric: str, values: list[float], harness: Mapping[str, Any]) -> None:
    """Raise UserError if the harness's own number is not the mean of the items: only such metrics are supported."""
    ours, _ = mean(values)
    theirs = harness[metric if "," in metric else f"{metric},none"]
    if ours is not None and not math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-12):
        raise UserError(
            f"benchmark {task.name}: metric '{metric}' is no mean over items (harness {theirs}, mean of items {ours}); "
            f"choose a metric that is"
        )


def _hash(config: Mapping[str, Any]) -> str:
    """Return the hash of a task's resolved config, less where its files lie on this machine."""
    metadata = {key: value for key, value in config.get("metadata", {}).items() if key != "config_source"}
    rest = {key: value for key, value in config.items() if key not in ("dataset_path", "dataset_kwargs", "metadata")}
    text = json.dumps(rest | {"metadata": metadata}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("lm-eval", "transformers", "torch", "datasets")}
