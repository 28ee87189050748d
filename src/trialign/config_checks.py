"""What the parts of a config ask of each other, and of the files that they name, beyond the type of each value."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trialign import claims, methods
from trialign.artifact_settings import (
    ClaimsArtifact,
    ColumnSpec,
    CurvesArtifact,
    DistributionsArtifact,
    FactsArtifact,
    ForestArtifact,
    GridArtifact,
    PivotArtifact,
    TableArtifact,
    grid_lineages,
    splits_items,
)
from trialign.errors import UserError, nearest, unknown
from trialign.evaluation import tasks
from trialign.lineage import Stage
from trialign.lock import is_mistyped
from trialign.settings import HarnessBenchmark, HubRepository, JudgedBenchmark, WorldPart
from trialign.templates import templates

if TYPE_CHECKING:
    from trialign.config import Experiment, StagePreset

JUDGED_METRICS = ("score", "first_turn", "second_turn", "fastchat", "correct", "format", "polite", "concise")
FEEDBACK = "openbmb/UltraFeedback"
FEEDBACK_SOURCES = (
    "evol_instruct", "false_qa", "flan_v2_cot", "flan_v2_niv2", "sharegpt", "truthful_qa", "ultrachat",
)  # fmt: skip
_DATED = re.compile(r"-\d{4}(-\d{2}-\d{2})?$")
RUN_ENTRIES = ("model", "mtbench")  # what lies beside the suites in a run's folder


def problems(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Yield (where, what) for every reference between parts of the config that does not hold."""
    if experiment.mirror and is_mistyped(experiment.mirror):
        yield "mirror", f"'{experiment.mirror}': write an address as https://..., a folder as ./... or /..."
    yield from _model_problems(experiment)
    yield from _source_problems(experiment)
    yield from _benchmark_problems(experiment)
    yield from _judge_problems(experiment)
    if len(set(experiment.seeds)) < len(experiment.seeds):
        yield "seeds", f"{list(experiment.seeds)} holds a seed twice: leave one"
    if "results" in experiment.artifacts:
        yield "artifacts.results", "results.csv is made anyway: choose another name"
    if "index" in experiment.artifacts:
        yield "artifacts.index", "index.html is made anyway: choose another name"
    if experiment.published and not Path(experiment.published).is_file():
        yield "published", f"'{experiment.published}' does not exist; name the file with the published values"
    yield from _data_problems(experiment)
    train = experiment.resources.train
    if train.nodes > 1 and not train.gpus:
        yield (
            "resources.train.nodes",
            f"{train.nodes} nodes train on GPUs alone: give resources.train.gpus, those of each node, or one node",
        )
    for name, preset in experiment.stages.items():
        yield from _stage_problems(experiment, name, preset)
    for section, there in (("data", experiment.data), ("benchmarks", experiment.benchmarks)):
        for name in getattr(experiment.expect, section):
            if name not in there:
                yield f"expect.{section}", unknown(section.removesuffix("s"), name, there)
    for name in experiment.expect.sources_mb:
        if name not in experiment.sources:
            yield "expect.sources_mb", unknown("source", name, experiment.sources)
    for section in ("stages", "artifacts"):
        for name, item in getattr(experiment, section).items():
            yield from ((f"{section}.{name}.ours", problem) for problem in _torn(item.ours))
    for name, artifact in experiment.artifacts.items():
        try:
            _check_artifact(experiment, artifact)
        except UserError as error:
            yield f"artifacts.{name}", str(error)


def _torn(choices: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with sentences in a list of YAML: a comma tears one apart where it is not quoted."""
    for text in choices:
        if text.count("(") != text.count(")"):
            yield f"'{text}' has a bracket alone: a comma has torn it from the next, put the sentence in quotes"


def _stage_problems(experiment: Experiment, name: str, preset: StagePreset) -> Iterator[tuple[str, str]]:
    where = f"stages.{name}"
    if preset.method not in methods.names():
        yield f"{where}.method", unknown("method", preset.method, methods.names())
        return
    if preset.data not in experiment.data:
        yield f"{where}.data", unknown("data set", preset.data, experiment.data)
        return
    for key in preset.params:
        if key not in methods.get(preset.method).Params.model_fields:
            yield f"{where}.params", unknown("parameter", key, methods.get(preset.method).Params.model_fields)
    yield from _import_problems(experiment, where, preset)
    try:
        experiment.lineage(f"{next(iter(experiment.models))}+{name}")
    except UserError as error:
        yield where, str(error)
    yield from _candidate_problems(experiment, where, preset)
    yield from _split_problems(experiment, where, preset)


def _import_problems(experiment: Experiment, where: str, preset: StagePreset) -> Iterator[tuple[str, str]]:
    for model, source in preset.imported.items():
        if model not in experiment.models:
            yield f"{where}.imported", unknown("model", model, experiment.models)
        if source not in experiment.sources:
            yield f"{where}.imported.{model}", unknown("source", source, experiment.sources)
        elif getattr(experiment.sources[source], "type", "model") != "model":
            yield f"{where}.imported.{model}", f"'{source}' is not a model repository"


def _candidate_problems(experiment: Experiment, where: str, preset: StagePreset) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the candidates of a stage: they differ in their settings alone."""
    where = f"{where}.candidates"
    if len(set(preset.candidates)) != len(preset.candidates) or len(preset.candidates) == 1:
        yield where, "there is nothing to choose: give two or more stages, each once"
    for text in preset.candidates:
        try:
            stage = Stage.parse(text)
            other = experiment.preset(stage)
            experiment.lineage(f"{next(iter(experiment.models))}+{text}")
        except UserError as error:
            yield where, str(error)
            continue
        if (other.method, other.data) != (preset.method, preset.data):
            yield where, f"'{text}' is {other.method} on {other.data}, not {preset.method} on {preset.data}"
        if other.candidates or other.imported:
            yield where, f"'{text}' is not trained here: name stages that are"


def _split_problems(experiment: Experiment, where: str, preset: StagePreset) -> Iterator[tuple[str, str]]:
    training, gpus = preset.training, experiment.resources.train.gpus_in_all
    if training.engine == "packed":
        yield from _packed_problems(where, preset)
    elif methods.get(preset.method).micro_batch_is_global:
        if training.micro_batch:
            yield (
                f"{where}.training.micro_batch",
                f"TRL's loss of {preset.method} depends on how a batch is split: leave it out, the batch stays whole",
            )
    elif training.batch % ((training.micro_batch or 1) * max(1, gpus)):
        yield (
            f"{where}.training.batch",
            f"{training.batch} does not divide into micro-batches of {training.micro_batch or 1} on {gpus} GPUs "
            "(resources.train: gpus x nodes)",
        )
    if training.packing and preset.method != "sft":
        yield f"{where}.training.packing", f"only sft packs what it reads, not {preset.method}: leave it out"


def _packed_problems(where: str, preset: StagePreset) -> Iterator[tuple[str, str]]:
    if methods.get(preset.method).loss is None:
        yield f"{where}.training.engine", f"method {preset.method} has no loss for the packed engine: set trl"
    if preset.training.micro_batch:
        yield (
            f"{where}.training.micro_batch",
            "the packed engine goes by micro_batch_tokens: leave it out, or set engine: trl",
        )


def _source_problems(experiment: Experiment) -> Iterator[tuple[str, str]]:
    for name, source in experiment.sources.items():
        if isinstance(source, WorldPart) and experiment.world is None:
            yield (
                f"sources.{name}",
                "it is a part of the demo world, but there is no `world`: add one or take another source",
            )
    for section in ("data", "benchmarks"):
        for name, item in getattr(experiment, section).items():
            if item.source not in experiment.sources:
                yield f"{section}.{name}.source", unknown("source", item.source, experiment.sources)
            elif getattr(experiment.sources[item.source], "type", None) == "model":
                yield f"{section}.{name}.source", f"'{item.source}' is a model repository: no data is there"


def _model_problems(experiment: Experiment) -> Iterator[tuple[str, str]]:
    for name, model in experiment.models.items():
        if (model.source is None) == (model.pretrain is None):
            yield (
                f"models.{name}",
                "give either `source` (a published model) or `pretrain` (a tiny one), not both, not none",
            )
        if model.pretrain and (model.corpus is None or model.vocab_size is None):
            yield f"models.{name}", "a model that is pre-trained needs `corpus` and `vocab_size`"
        if model.chat_template not in templates():
            yield f"models.{name}.chat_template", unknown("chat template", model.chat_template, templates())
        for key in ("source", "corpus"):
            value = getattr(model, key)
            if value is not None and value not in experiment.sources:
                yield f"models.{name}.{key}", unknown("source", value, experiment.sources)
        source = experiment.sources.get(model.source or "")
        if isinstance(source, HubRepository) and source.type != "model":
            yield f"models.{name}.source", f"'{model.source}' is a {source.type} repository, not a model"


def _benchmark_problems(experiment: Experiment) -> Iterator[tuple[str, str]]:
    for name, benchmark in experiment.benchmarks.items():
        if benchmark.kind == "harness" and benchmark.suite in RUN_ENTRIES:
            yield f"benchmarks.{name}.suite", f"'{benchmark.suite}' is taken in a run's folder: choose another name"
        if benchmark.kind == "harness" and ("{subset}" in benchmark.include) != bool(benchmark.subsets):
            yield f"benchmarks.{name}", "`subsets` and '{subset}' in `include` go together: give both or neither"
        elif benchmark.kind == "harness":
            yield from _include_problems(name, benchmark)


def _data_problems(experiment: Experiment) -> Iterator[tuple[str, str]]:
    for name, data in experiment.data.items():
        if data.kind == "triples" and getattr(experiment.sources[data.source], "repo", None) == FEEDBACK:
            for origin in data.exclude_sources:
                if origin not in FEEDBACK_SOURCES and not origin.startswith("flan_v2_"):
                    yield f"data.{name}.exclude_sources", unknown("source of prompts", origin, FEEDBACK_SOURCES)
        if data.kind == "triples" and data.max_prompt_length >= data.max_length:
            yield f"data.{name}.max_prompt_length", f"{data.max_prompt_length} leaves no room in {data.max_length}"


def _judge_problems(experiment: Experiment) -> Iterator[tuple[str, str]]:
    judged = {name: item for name, item in experiment.benchmarks.items() if isinstance(item, JudgedBenchmark)}
    by_judge: dict[str, str] = {}
    for name, item in judged.items():
        if item.judge not in experiment.judges:
            yield f"benchmarks.{name}.judge", unknown("judge", item.judge, experiment.judges)
        if (other := by_judge.setdefault(item.judge, name)) != name:
            yield f"benchmarks.{name}.judge", f"'{item.judge}' judges '{other}' already: give a column its metric"
        first = next(iter(judged))
        if item.source != judged[first].source:
            yield (
                f"benchmarks.{name}.source",
                f"'{item.source}' is not that of '{first}' ({judged[first].source}): all judges see the same answers",
            )
    for name, judge in experiment.judges.items():
        if name == "answers":
            yield "judges.answers", "'answers' is the folder of the answers: choose another name"
        if judge.kind == "openai" and judge.model is None:
            yield f"judges.{name}.model", "it is missing: name the model to ask"
        if fixed := sorted({"model", "messages", "n", "stream"} & judge.body.keys()):
            yield f"judges.{name}.body.{fixed[0]}", "it is set by what is judged: leave it out"
        if judge.endpoint.max_cost and not (judge.endpoint.price_in and judge.endpoint.price_out):
            yield f"judges.{name}.endpoint.max_cost", "without price_in and price_out it stops nothing: give both"
        budget = judge.endpoint.max_cost or judge.endpoint.max_tokens
        if budget and "max_tokens" in judge.leave_out and not judge.body.get("max_completion_tokens"):
            yield f"judges.{name}.endpoint", "a budget needs a longest response: give body.max_completion_tokens"
        if (
            judge.kind == "openai"
            and judge.model
            and judge.endpoint.base_url is None
            and not _DATED.search(str(judge.model))
        ):
            yield (
                f"judges.{name}.model",
                (
                    f"'{judge.model}' is an alias that OpenAI moves: pin a dated snapshot, such as gpt-4-0613 or "
                    "gpt-4o-2024-08-06"
                ),
            )


def _include_problems(name: str, benchmark: HarnessBenchmark) -> Iterator[tuple[str, str]]:
    """Yield the first task file that is not there, or a metric that the last one does not have."""
    try:
        for subset in benchmark.subsets or ("",):
            file = tasks.locate(benchmark.include.replace("{subset}", subset))
    except UserError as error:
        yield f"benchmarks.{name}.include", str(error)
        return
    metrics = tasks.metrics(file)
    if metrics and benchmark.metric not in metrics:
        yield f"benchmarks.{name}.metric", unknown("metric", benchmark.metric, metrics)


def _check_artifact(experiment: Experiment, artifact: Any) -> None:
    match artifact:
        case TableArtifact():
            lineages = list(artifact.rows)
            _check_columns(experiment, artifact.columns)
        case PivotArtifact():
            lineages = [f"{row}+{column}" for row in artifact.rows.values() for column in artifact.columns.values()]
            _check_columns(experiment, (artifact.benchmark,))
        case GridArtifact():
            stage = experiment.lineage(artifact.lineage).last
            grid = methods.get(experiment.preset(stage).method).grid if stage else ()
            if not {"alpha", "beta"} <= set(grid):
                raise UserError(f"lineage: '{artifact.lineage}' does not end in a stage that takes alpha and beta")
            for key in ("alpha", "beta"):
                if len(set(values := getattr(artifact, key))) < len(values):
                    raise UserError(f"{key}: {list(values)} holds a value twice: leave one")
            lineages = [artifact.baseline, *grid_lineages(artifact)]
            _check_columns(experiment, artifact.columns)
        case ForestArtifact():
            lineages = list(artifact.rows)
            _check_columns(experiment, artifact.columns)
            if experiment.lineage(artifact.baseline) in map(experiment.lineage, lineages):
                raise UserError(f"rows: '{artifact.baseline}' is the baseline: leave it out of the rows")
        case CurvesArtifact():
            lineages = list(artifact.rows)
            _check_trained(experiment, lineages)
        case DistributionsArtifact():
            lineages = []
            _check_data(experiment, artifact)
        case FactsArtifact():
            lineages = [artifact.lineage]
            _check_columns(experiment, artifact.benchmarks)
        case ClaimsArtifact():
            return _check_claims(experiment, artifact)
    if splits_items(artifact) and not any(experiment.lineage(text).stages for text in lineages):
        raise UserError("columns: seen or unseen items are asked for, but no lineage here is trained on any data")
    seen: dict[str, str] = {}
    for text in lineages:
        canonical = str(experiment.lineage(text))
        if canonical in seen and isinstance(artifact, TableArtifact | ForestArtifact | CurvesArtifact):
            raise UserError(f"rows: '{text}' and '{seen[canonical]}' are the same lineage: leave one")
        seen[canonical] = text


def _check_trained(experiment: Experiment, lineages: Sequence[str]) -> None:
    for text in lineages:
        lineage = experiment.lineage(text)
        stage = lineage.last
        if stage is None:
            raise UserError(f"rows: '{text}' is a base model, which no stage trains: name a lineage with a stage")
        if str(lineage) == f"{lineage.base}+{stage.name}" and lineage.base in experiment.preset(stage).imported:
            raise UserError(f"rows: '{text}' is taken as published, there is no log of its training: leave it out")


def _check_data(experiment: Experiment, artifact: DistributionsArtifact) -> None:
    for name in artifact.data:
        if name not in experiment.data:
            raise UserError(f"data: {unknown('data set', name, experiment.data)}")
        if artifact.data.count(name) > 1:
            raise UserError(f"data: '{name}' is there twice: leave one")
    if artifact.model is not None and artifact.model not in experiment.models:
        raise UserError(f"model: {unknown('model', artifact.model, experiment.models)}")


def _check_claims(experiment: Experiment, artifact: ClaimsArtifact) -> None:
    """Raise UserError where a claim does not fit. A model or stage that is not here is none: the claim is not run."""
    found = claims.read(Path(artifact.file))
    for claim in found:
        where = f"{artifact.file}: claim '{claim.id}'"
        for name in claim.benchmarks if claim.kind != "orders" else ():
            if name not in experiment.benchmarks:
                raise UserError(f"{where}: column: {unknown('benchmark', name, experiment.benchmarks)}")
        for members in claim.columns if claim.kind != "orders" else ():
            if len({experiment.benchmarks[name].kind for name in members}) > 1:
                raise UserError(f"{where}: column: it is a mean of accuracies and judged scores: take one kind")
        for text in claim.lineages:
            if not experiment.lacks(text):
                try:
                    experiment.lineage(text)
                except UserError as error:
                    raise UserError(f"{where}: {error}") from None
    named = list(dict.fromkeys(text for claim in found for text in claim.lineages))
    for text, other in artifact.instead.items():
        if text not in named:
            raise UserError(f"instead: no claim of {artifact.file} names '{text}'{nearest(text, named)}")
        experiment.lineage(other)


def _check_columns(experiment: Experiment, columns: Sequence[str | ColumnSpec]) -> None:
    labels: set[str] = set()
    for column in columns:
        if isinstance(column, str):
            names: Sequence[str] = (column,)
        elif (column.benchmark is None) == (not column.mean_of):
            raise UserError(f"columns: '{column.label}' needs either `benchmark` or `mean_of`")
        else:
            names = column.mean_of or (typing.cast(str, column.benchmark),)
        for name in names:
            if name not in experiment.benchmarks:
                raise UserError(f"columns: {unknown('benchmark', name, experiment.benchmarks)}")
        label = experiment.benchmarks[column].label if isinstance(column, str) else column.label
        if label in labels:
            raise UserError(f"columns: two are called '{label}': give one another label")
        labels.add(label)
        kinds = {experiment.benchmarks[name].kind for name in names}
        if len(kinds) > 1:
            raise UserError(f"columns: '{label}' is a mean of accuracies and judged scores: take one kind")
        judges = {item.judge for item in map(experiment.benchmarks.get, names) if isinstance(item, JudgedBenchmark)}
        if len(judges) > 1:
            raise UserError(f"columns: '{label}' is a mean of {' and '.join(sorted(judges))}: take one judge")
        metric = None if isinstance(column, str) else column.metric
        if metric is not None and kinds == {"judged"} and metric not in JUDGED_METRICS:
            raise UserError(f"columns: '{label}': {unknown('metric', metric, JUDGED_METRICS)}")
