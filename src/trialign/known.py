"""What is known of a job: its recipe, and its inputs as the config declares them or as the results tree shows them.

`estimate(experiment, rule, wildcards)` is the one entry: rules' resources, and through Snakemake's dry run the plan,
come from it. Of what has run, three things replace assumptions: the data's cards (rows, lengths), an imported model's
config.json (shape), and the seconds in `run.json` of the same kind of step and model (`correction`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pydantic import ValidationError

from trialign import cost, methods, paths, recipes, study
from trialign.assumptions import ExpectedData, Shape
from trialign.config import Experiment, Resources
from trialign.cost import Estimate, Known, Rows
from trialign.errors import UserError
from trialign.lineage import Lineage
from trialign.settings import HubRepository

ALWAYS = ("mem_mb", "runtime", "seconds")
RESOURCES = {  # the rules whose jobs differ, and what they take besides
    "fetch": ("disk_mb",),
    "prepare": ("disk_mb",),
    "tokens": ("disk_mb",),
    "import_model": (),
    "reference": ("gpu_minutes",),
    "pretrain": ("gpu_minutes", "disk_mb", "scratch_mb"),
    "train": ("gpu_minutes", "disk_mb", "scratch_mb"),
    "evaluate": ("gpu_minutes",),
    "answer": ("gpu_minutes",),
}
FIXED = {"judge": ("judge_tokens_in", "judge_tokens_out")}  # of rules whose jobs are all alike, if of one judge
MEASURED = ("train", "pretrain", "reference", "evaluate", "answer")
SHORTEST = 256  # tokens: a max_length that is still worth proposing
RECORDS = 400  # of the newest records at most, measured times are taken
KINDS = {
    "world": "prepare", "fetch": "fetch", "tokenizer": "prepare", "prepare": "prepare", "overlap": "prepare",
    "tokens": "prepare", "choose": "prepare",
    "pretrain": "pretrain", "import_model": "fetch", "reference": "evaluate", "train": "train",
    "evaluate": "evaluate", "answer": "answer",
    "judge": "judge",
}  # fmt: skip
Key = tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """One finished step: its kind of work (see `_key`), how long it took, and how long it was thought to take.

    before: by the config's assumptions alone; now: with the data's cards, less any correction.
    """

    key: Key
    seconds: float
    before: float
    now: float


def resources(experiment: Experiment, rule: str) -> Resources:
    """Return what the config gives the jobs of a rule."""
    return getattr(experiment.resources, KINDS.get(rule, "report"))


def estimate(experiment: Experiment, rule: str, wildcards: Mapping[str, str]) -> Estimate:
    """Return what a job takes; UserError for wildcards that are no job of the experiment."""
    names = {name: value for name, value in wildcards.items() if name != "seed"}
    return _estimate(experiment, rule, tuple(sorted(names.items())))


@lru_cache(maxsize=100_000)
def _estimate(experiment: Experiment, rule: str, wildcards: tuple[tuple[str, str], ...]) -> Estimate:
    values = dict(wildcards)
    recipe = _recipe(experiment, rule, values)
    if recipe is None:
        return Estimate(10)
    known = _known(experiment, rule, values, seen=True)
    if rule not in MEASURED:
        return cost.estimate(recipe, known)
    correction, runs = _correction(experiment, _key(recipe, values))
    return cost.estimate(recipe, replace(known, correction=correction, runs=runs))


def memory_problems(experiment: Experiment, lineages: Iterable[str], memory_gb: float | None = None) -> list[str]:
    """Return a line for each model whose training does not fit the declared GPUs, with what would.

    Methods whose batch must be whole on one GPU have a line of their own: more GPUs are no help to them.
    memory_gb: of a GPU; None: as `hardware` says.
    """
    memory_gb = experiment.hardware.memory_gb if memory_gb is None else memory_gb
    groups: dict[tuple[str, bool], list[_TooLarge]] = defaultdict(list)
    for text in lineages if memory_gb else ():
        if found := _too_large(experiment, experiment.lineage(text), memory_gb):
            stock = found.recipe.training.engine == "trl"
            groups[found.base, stock and methods.get(found.recipe.method).micro_batch_is_global].append(found)
    return [
        _whole_batch_problem(group, memory_gb) if whole else _split_problem(group, memory_gb)
        for (_, whole), group in sorted(groups.items())
    ]


@dataclass(frozen=True)
class _TooLarge:
    """A training that does not fit: what it needs in MB on each of its GPUs, and the longest sequence of its data."""

    base: str
    stage: str
    recipe: recipes.TrainRecipe
    shape: Shape
    data: str
    longest: int
    gpus: int
    needed: float


def _too_large(experiment: Experiment, lineage: Lineage, memory_gb: float) -> _TooLarge | None:
    """Return what a training needs, if that is more than its GPUs have; None also where it has none or no shape."""
    shape = shape_of(experiment, lineage.base, seen=True)
    if shape is None or lineage.last is None or not (gpus := study.train_gpus(experiment, lineage)):
        return None
    recipe, data = study.train_recipe(experiment, lineage, 0), experiment.preset(lineage.last).data
    longest = experiment.data[data].max_length
    needed = cost.train_memory_mb(recipe, shape, longest, gpus)
    if cost.fits(needed, memory_gb):
        return None
    return _TooLarge(lineage.base, lineage.last.name, recipe, shape, data, longest, gpus, needed)


def _split_problem(group: Sequence[_TooLarge], memory_gb: float) -> str:
    """Return the line of trainings whose batch can be split: over more GPUs, or in smaller micro-batches."""
    worst = max(group, key=lambda item: item.needed)
    enough = cost.enough_gpus(worst.recipe, worst.shape, worst.longest)
    ways = [f"{' or '.join(enough)} (resources.train.gpus)"] if enough else []
    ways += _fewer_at_a_time(worst, memory_gb)
    would = "enough would be " + ", or ".join(ways) if ways else f"lower data.{worst.data}.max_length"
    return (
        f"training {worst.base} takes up to {worst.needed / 1000:.0f} GB ({worst.stage}) on each of {worst.gpus} "
        f"GPU(s), of {memory_gb:g}: {would}"
    )


def _fewer_at_a_time(worst: _TooLarge, memory_gb: float) -> list[str]:
    """Return the setting that computes less of a batch at a time, if there is one that fits."""
    training, where = worst.recipe.training, f"stages.{worst.stage}.training"
    if training.engine == "packed":
        smaller = dict.fromkeys(2**power for power in range(14, 9, -1) if 2**power < training.micro_batch_tokens)
        states = cost.states_mb(worst.recipe, worst.shape) / worst.gpus
        needed = {size: states + cost.packed_mb(worst.recipe, worst.shape, worst.longest, size) for size in smaller}
        return [f"{where}.micro_batch_tokens: {size}" for size in smaller if cost.fits(needed[size], memory_gb)][:1]
    held, _ = cost.room(worst.recipe, worst.shape, worst.longest, worst.gpus, memory_gb)
    share = training.batch // worst.gpus
    micro = next((prompts for prompts in range(min(held, share), 0, -1) if share % prompts == 0), None)
    return [f"{where}.micro_batch: {micro}"] if micro else []


def _whole_batch_problem(group: Sequence[_TooLarge], memory_gb: float) -> str:
    """Return the line of trainings that keep to one GPU: what is smaller is all that helps."""
    worst = max(group, key=lambda item: item.needed)
    names = list(dict.fromkeys(item.recipe.method for item in group))
    each = [cost.room(item.recipe, item.shape, item.longest, item.gpus, memory_gb) for item in group]
    batch, length = min(prompts for prompts, _ in each), min(tokens for _, tokens in each)
    # a power of two; no text is left of a prompt and a response much shorter
    smaller = [f"a batch of {1 << batch.bit_length() - 1}"] if batch else []
    smaller += [f"data.{worst.data}.max_length: {length // 64 * 64}"] if length >= SHORTEST else []
    states = max(cost.states_mb(item.recipe, item.shape) for item in group)
    alone = f": weights and optimiser alone take {states / 1000:.0f} GB"
    would = f", or with {' or '.join(smaller)}" if smaller else alone
    return (
        f"training {worst.base} takes up to {worst.needed / 1000:.0f} GB ({worst.stage}) on one GPU, of {memory_gb:g}: "
        f"TRL's loss of {', '.join(names)} needs its batch whole on one GPU, and more GPUs do not help; it does not "
        f"fit: set training.engine: packed, which trains it on several{would}"
    )


def _recipe(experiment: Experiment, rule: str, values: Mapping[str, str]) -> recipes.Recipe | None:
    """Return the recipe of a job; None for the small ones (tables, tokenizers, the world)."""
    lineage = Lineage.parse(values["lineage"]) if "lineage" in values else None
    match rule:
        case "fetch":
            return study.fetch_recipe(experiment, values["source"])
        case "prepare":
            return study.data_recipe(experiment, values["data"])
        case "tokens":
            return study.tokens_recipe(experiment, values["model"], values["data"])
        case "import_model":
            return study.import_recipe(experiment)
        case "judge":
            return study.judge_recipe(experiment, values["judge"])
    if lineage is None:
        return None
    match rule:
        case "reference":
            return study.reference_recipe(experiment, values["reading"])
        case "pretrain":
            return study.pretrain_recipe(experiment, lineage, 0)
        case "train":
            return study.train_recipe(experiment, lineage, 0)
        case "evaluate":
            return study.evaluate_recipe(experiment, lineage, values["suite"])
        case "answer":
            return study.answer_recipe(experiment, lineage, 0)
    return None


def _known(experiment: Experiment, rule: str, values: Mapping[str, str], *, seen: bool) -> Known:
    """Return what is known of a job's inputs; `seen` says whether the results tree is asked."""
    asked = resources(experiment, rule)
    known = Known(experiment.hardware, experiment.expect, gpus=asked.gpus, threads=asked.threads)
    match rule:
        case "fetch":
            return replace(known, download_mb=source_mb(experiment, values["source"]))
        case "prepare":
            source = experiment.data[values["data"]].source
            return replace(known, download_mb=source_mb(experiment, source))
        case "tokens":
            return replace(known, rows=_rows(experiment, values["model"], values["data"], seen=seen))
        case "import_model":
            source = study.imported(experiment)[values["lineage"]]
            return replace(known, download_mb=source_mb(experiment, source))
    if "lineage" not in values:
        return known
    lineage = Lineage.parse(values["lineage"])
    read = lineage.parent if rule == "train" and lineage.parent else lineage
    known = replace(
        known, shape=shape_of(experiment, lineage.base, seen=seen), weight_bytes=_weight_bytes(experiment, read)
    )
    if rule == "reference":
        return replace(known, rows=_rows(experiment, lineage.base, values["data"], seen=seen))
    if rule == "train" and lineage.last:
        data = experiment.preset(lineage.last).data
        gpus = study.train_gpus(experiment, lineage)
        nodes = study.train_nodes(experiment, lineage)
        return replace(known, gpus=gpus, nodes=nodes, rows=_rows(experiment, lineage.base, data, seen=seen))
    return known


def _weight_bytes(experiment: Experiment, lineage: Lineage) -> int:
    """Return the bytes of a parameter of a model as it lies on disk."""
    if str(lineage) in study.imported(experiment):
        return cost.PUBLISHED_BYTES
    if lineage.last is None:
        return cost.MASTER_BYTES
    return cost.SAVED_BYTES[experiment.training_of(lineage.last).published_dtype]


# --- data -------------------------------------------------------------------------------------------------------------


def _rows(experiment: Experiment, model: str, name: str, *, seen: bool) -> Rows:
    """Return the rows of a data set: from its card where there is one, else as declared."""
    data, expected = experiment.data[name], experiment.expect.data.get(name, ExpectedData())
    card = _json(study.fill(experiment, paths.TOKENS, model=model, data=name) + "/card.json") if seen else None
    if card:
        lengths = card["lengths"]["train"]
        length = (
            lengths["input_ids"]["mean"]
            if data.kind == "chat"
            else lengths["prompt"]["mean"]
            + fmean(lengths[branch]["mean"] for branch in ("reference", "chosen", "rejected"))
        )
        return Rows(card["rows"]["train"], card["rows"]["eval"], length, data.max_length)
    return Rows(
        data.train_rows or expected.train_rows or 1000,  # none: all that there are
        data.eval_rows or expected.eval_rows or 100,
        min(expected.length or data.max_length / 2, data.max_length),
        data.max_length,
    )


def source_mb(experiment: Experiment, name: str) -> int:
    """Return the size of a download in MB: as locked, or declared, or of a published model's weights, or 100."""
    source = experiment.sources[name]
    locked = study.locked(experiment, source)
    if locked:
        return round(locked.bytes / cost.MB)
    if name in experiment.expect.sources_mb:
        return experiment.expect.sources_mb[name]
    if isinstance(source, HubRepository) and source.type == "model":
        imported = study.imported(experiment)
        shapes = (
            shape_of(experiment, Lineage.parse(text).base, seen=True) for text in imported if imported[text] == name
        )
        shape = next(shapes, None)
        return round(cost.PUBLISHED_BYTES * shape.parameters / cost.MB) if shape else 1000
    return 100 if isinstance(source, HubRepository) else 0


# --- models -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=100)
def shape_of(experiment: Experiment, model: str, *, seen: bool) -> Shape | None:
    """Return a model's shape: of its config.json where it is there (`seen`), of `pretrain`, else as declared."""
    settings = experiment.models[model]
    if settings.pretrain and settings.vocab_size:
        made = settings.pretrain
        return Shape(
            layers=made.layers,
            hidden_size=made.hidden_size,
            intermediate_size=made.intermediate_size,
            heads=made.heads,
            kv_heads=made.kv_heads,
            head_dim=2 * made.hidden_size // made.heads if made.architecture == "mistral" else None,
            vocab_size=settings.vocab_size,
            gated=made.architecture == "mistral",
            tied=True,
        )
    return (_found_shape(experiment, model) if seen else None) or settings.shape


def shape_problems(experiment: Experiment) -> list[str]:
    """Return a line for each model whose config.json is there and says something else than the config's `shape`."""
    lines = []
    for name, model in experiment.models.items():
        found = _found_shape(experiment, name) if model.shape else None
        if found and model.shape:
            differing = [key for key, value in found if value != getattr(model.shape, key) and key != "head_dim"]
            lines += [
                f"models.{name}.shape: {key}: {getattr(model.shape, key)} is declared, its config.json has "
                f"{getattr(found, key)}, which is taken"
                for key in differing
            ]
    return lines


def _found_shape(experiment: Experiment, model: str) -> Shape | None:
    source = experiment.models[model].source
    found = _json(f"{study.source_path(experiment, source)}/config.json") if source else None
    return shape_from_config(found) if found else None


def shape_from_config(config: Mapping[str, Any]) -> Shape | None:
    """Return the shape that a transformers config.json describes (Llama, Mistral, Qwen, Phi); None if it is none."""
    names = {
        "layers": "num_hidden_layers", "hidden_size": "hidden_size", "intermediate_size": "intermediate_size",
        "heads": "num_attention_heads", "vocab_size": "vocab_size",
    }  # fmt: skip
    try:
        values = {name: config[key] for name, key in names.items()}
        return Shape(
            **values,
            kv_heads=config.get("num_key_value_heads") or values["heads"],
            head_dim=config.get("head_dim"),
            gated=config.get("hidden_act", "").startswith(("silu", "swish")),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, ValidationError):
        return None


# --- what was measured ------------------------------------------------------------------------------------------------


def _key(recipe: recipes.Recipe, values: Mapping[str, str]) -> Key:
    """Return what makes two steps comparable: step, base model, and method or suite."""
    base = values.get("lineage", "").partition("+")[0]
    match recipe:
        case recipes.TrainRecipe(step=step, method=method):
            return (step, base, method)
        case recipes.EvaluateRecipe(step=step):
            return (step, base, values["suite"])
    return (getattr(recipe, "step", ""), base)


def _correction(experiment: Experiment, key: Key) -> tuple[float, int]:
    """Return measured over estimated time for a kind of work, and of how many runs: the nearest kind that has any."""
    ratios = _ratios(experiment)
    while key:
        if key in ratios:
            return median(ratios[key]), len(ratios[key])
        key = key[:-1]
    return 1.0, 0


@lru_cache(maxsize=8)
def _ratios(experiment: Experiment) -> dict[Key, list[float]]:
    """Return kind of work, and each shorter kind that it belongs to -> measured over estimated times."""
    found: dict[Key, list[float]] = defaultdict(list)
    for item in measured(experiment):
        for end in range(1, len(item.key) + 1):
            found[item.key[:end]].append(item.seconds / item.now)
    return found


@lru_cache(maxsize=8)
def measured(experiment: Experiment) -> tuple[Measured, ...]:
    """Return the finished steps of the results tree whose time tells something, from its newest records."""
    return tuple(item for path in _records(Path(experiment.results_dir)) if (item := _measured(experiment, path)))


def _records(root: Path) -> list[Path]:
    """Return the newest records below runs/<lineage>/seed<k>: of the model, of each suite, of answers and judge."""
    patterns = ("*/seed*/run.json", "*/seed*/*/run.json", "*/seed*/mtbench/*/run.json")
    found = [path for pattern in patterns for path in (root / "runs").glob(pattern)]
    return sorted(found, key=lambda path: -path.stat().st_mtime)[:RECORDS]


def _measured(experiment: Experiment, path: Path) -> Measured | None:
    """Return a record's time beside its estimates; None for one of another config, a resumed or a diverged run."""
    record = _json(path)
    facts = (record or {}).get("facts") or {}
    if not record or facts.get("resumed_at") is not None or "diverged" in facts or facts.get("final", {}) is None:
        return None
    try:
        recipe = recipes.parse(json.dumps(record["recipe"]))
        lineage = path.relative_to(Path(experiment.results_dir) / "runs").parts[0]
        experiment.lineage(lineage)
        rule = getattr(recipe, "step", "")
        if rule not in MEASURED:
            return None
        before, now = (
            cost.estimate(recipe, _known(experiment, rule, {"lineage": lineage}, seen=seen)).seconds
            for seen in (False, True)
        )
    except (UserError, ValidationError, KeyError):
        return None
    return Measured(_key(recipe, {"lineage": lineage, "suite": path.parent.name}), record["seconds"], before, now)


def past_error(experiment: Experiment) -> list[dict[str, Any]]:
    """Return a row for each kind of work that has run: runs, and medians of estimated-before and measured seconds."""
    groups: dict[Key, list[Measured]] = defaultdict(list)
    for item in measured(experiment):
        groups[item.key].append(item)
    return [
        {
            "work": " ".join(key),
            "runs": len(items),
            "estimated_seconds": round(median(item.before for item in items), 1),
            "measured_seconds": round(median(item.seconds for item in items), 1),
            "measured_over_estimated": round(median(item.seconds / item.before for item in items), 3),
        }
        for key, items in sorted(groups.items())
    ]


# --- resources --------------------------------------------------------------------------------------------------------


def resource_names(rule: str) -> tuple[str, ...]:
    """Return which of `rule_resources` the jobs of a rule declare."""
    return ALWAYS + RESOURCES.get(rule, FIXED.get(rule, ()))


def fixed_resources(experiment: Experiment, rule: str) -> dict[str, int]:
    """Return the resources that are the same for all jobs of a rule: as numbers they cost Snakemake a tenth."""
    if rule not in RESOURCES:
        judges = list(study.judges(experiment)) if rule == "judge" else [""]
        if len(judges) != 1:
            return {}
        alike = rule_resources(experiment, rule, {"judge": judges[0]} if rule == "judge" else {})
        return {name: alike[name] for name in resource_names(rule)}
    return {"gpu": resources(experiment, rule).gpus} if rule in MEASURED else {}


def rule_resources(experiment: Experiment, rule: str, wildcards: Mapping[str, str], attempt: int = 1) -> dict[str, int]:
    """Return the resources of a job, whole numbers: what the config gives, the rest from its estimate.

    Each attempt after the first has half as much memory and time again. mem_mb; runtime (minutes, the limit); seconds
    (expected); gpu_minutes; disk_mb (what stays) and scratch_mb (what it holds besides while it runs); judge_tokens_in
    and judge_tokens_out. Rules declare those of `resource_names`.
    """
    given, found = resources(experiment, rule), estimate(experiment, rule, wildcards)
    minutes = 5 + experiment.resources.safety * found.seconds / 60
    more = (attempt + 1) / 2
    return {
        "mem_mb": _up(more * (given.mem_mb or _up(found.mem_mb, 1000)), 1),
        "runtime": _up(more * (given.runtime or _up(minutes, 5)), 1),
        "seconds": max(1, round(found.seconds)),
        "gpu_minutes": _up(found.gpu_hours * 60, 1),
        "disk_mb": _up(found.disk_mb, 1),
        "scratch_mb": _up(found.scratch_mb, 1),
        "judge_tokens_in": round(found.tokens_in),
        "judge_tokens_out": round(found.tokens_out),
    }


def _up(value: float, step: int) -> int:
    return -int(-value // step) * step


def _json(path: Path | str) -> dict[str, Any] | None:
    """Return a JSON object; None where there is no such file or it is not one (a link of a job that just ends)."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
