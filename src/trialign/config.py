"""The config: YAML files merged into one typed, checked `Experiment`. A wrong config is one clear line, at once.

`load` takes the merged mapping (Snakemake's `config`), `load_files` the files themselves with the same merging: maps
are merged, lists replaced, null deletes a key. `Experiment.lineage` makes a lineage canonical.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from trialign import claims, methods
from trialign.assumptions import Expectations, Hardware, Shape
from trialign.errors import UserError, nearest
from trialign.evaluation import tasks
from trialign.lineage import NAME, Lineage, Stage, Value, spell
from trialign.lock import is_mistyped
from trialign.recipes import Items, View
from trialign.settings import (
    AnswerSettings,
    Benchmark,
    Data,
    HarnessBenchmark,
    HubRepository,
    Judge,
    JudgedBenchmark,
    PretrainSettings,
    Settings,
    Source,
    Training,
    WorldPart,
    WorldSettings,
)
from trialign.templates import templates

PAPER = Path("config/config.yaml")  # which overlays are made for
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
JudgeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]  # a path segment
JUDGED_METRICS = ("score", "first_turn", "second_turn", "fastchat", "correct", "format", "polite", "concise")
FEEDBACK = "openbmb/UltraFeedback"
FEEDBACK_SOURCES = (
    "evol_instruct", "false_qa", "flan_v2_cot", "flan_v2_niv2", "sharegpt", "truthful_qa", "ultrachat",
)  # fmt: skip
_DATED = re.compile(r"-\d{4}(-\d{2}-\d{2})?$")
RUN_ENTRIES = ("model", "mtbench")  # what lies beside the suites in a run's folder


class Model(Settings):
    """A base model: taken from a source, or a tiny one that is pre-trained on the demo world."""

    label: str = Field(description="name in tables")
    source: str | None = Field(default=None, description="a name under `sources` (a model repository or folder)")
    pretrain: PretrainSettings | None = Field(default=None, description="pre-train a tiny model instead")
    corpus: str | None = Field(default=None, description="a name under `sources`: the text to pre-train on")
    vocab_size: int | None = Field(default=None, gt=0, description="size of the tokenizer trained on the corpus")
    chat_template: str = Field(default="zephyr", description="name of a chat template of trialign.templates")
    bos: bool = Field(default=False, description="whether sequences begin with BOS, in training and evaluation")
    shape: Shape | None = Field(default=None, description="its sizes, for estimates before it is there")


class StagePreset(Settings):
    """A named training step: a method, its data and its hyperparameters."""

    label: str | None = Field(default=None, description="name in tables; null: the method's")
    method: str = Field(description="a method: a module of trialign.methods")
    data: str = Field(description="a name under `data`")
    view: View | None = Field(default=None, description="which view of the data is read; null: derived")
    params: dict[str, float | int | bool | str] = Field(default={}, description="the method's parameters")
    training: Training = Field(default=Training(), description="what differs from the top-level `training`")
    imported: dict[str, str] = Field(
        default={}, description="model -> a name under `sources`: take this stage from there instead of training it"
    )
    candidates: tuple[str, ...] = Field(
        default=(),
        description="stages, such as dpo@beta=0.1: take the one of them that does best on the evaluation rows instead "
        "of training another (docs/methods.md)",
    )
    ours: tuple[str, ...] = Field(default=(), description="which of these settings the paper does not state")


class ColumnSpec(Settings):
    """A column of a table or a panel of a figure."""

    label: str = Field(description="heading")
    benchmark: str | None = Field(default=None, description="a name under `benchmarks`")
    metric: str | None = Field(default=None, description="another metric of it than its own")
    mean_of: tuple[str, ...] = Field(default=(), description="unweighted mean over these benchmarks instead")
    items: Items = Field(
        default="all",
        description="seen: only items whose question is in the training data of one of the artifact's lineages; "
        "unseen: only the others",
    )


class ArtifactSpec(Settings):
    """What all artifacts share."""

    title: str = Field(description="title, such as 'Table 1'")
    caption: str = Field(description="caption")
    ours: tuple[str, ...] = Field(default=(), description="which choices the paper does not state")


class TableArtifact(ArtifactSpec):
    """Rows are lineages, columns benchmarks."""

    kind: Literal["table"] = "table"
    rows: tuple[str, ...] = Field(min_length=1, description="lineages, in order")
    columns: tuple[str | ColumnSpec, ...] = Field(min_length=1, description="benchmarks or columns, in order")
    texts: tuple[Literal["Model", "Align", "Learning Rate", "Epoch", "Batch Size", "Chosen"], ...] = Field(
        default=("Model", "Align"), description="leading text columns; Chosen: which candidate a stage took"
    )


class PivotArtifact(ArtifactSpec):
    """One benchmark over rows x columns: the lineage of a cell is the row's followed by the column's stages."""

    kind: Literal["pivot"] = "pivot"
    rows: dict[str, str] = Field(min_length=1, description="label -> lineage")
    columns: dict[str, str] = Field(min_length=1, description="label -> stages that follow")
    benchmark: str = Field(description="a name under `benchmarks`")


class GridArtifact(ArtifactSpec):
    """A figure over alpha x beta."""

    kind: Literal["grid"] = "grid"
    lineage: str = Field(description="a lineage whose last stage takes alpha and beta")
    alpha: tuple[float, ...] = Field(min_length=1, description="values of alpha")
    beta: tuple[float, ...] = Field(min_length=1, description="values of beta")
    columns: tuple[str | ColumnSpec, ...] = Field(min_length=1, description="a panel each")
    baseline: str = Field(description="the lineage drawn as the baseline")


class HeatmapArtifact(GridArtifact):
    """A figure over alpha x beta as heat maps: values, intervals, and what differs from the baseline."""

    kind: Literal["heatmap"] = "heatmap"


class ForestArtifact(ArtifactSpec):
    """A forest plot: paired differences of lineages from a baseline."""

    kind: Literal["forest"] = "forest"
    rows: tuple[str, ...] = Field(min_length=1, description="lineages, in order")
    baseline: str = Field(description="the lineage that all are compared with, none of the rows")
    columns: tuple[str | ColumnSpec, ...] = Field(min_length=1, description="a panel each")


class CurvesArtifact(ArtifactSpec):
    """Training curves of lineages: loss, margins, log-probabilities, gradient norm and what else their logs hold."""

    kind: Literal["curves"] = "curves"
    rows: tuple[str, ...] = Field(min_length=1, description="lineages whose last stage is trained here, in order")
    smooth: int = Field(default=1, gt=0, description="how many steps a drawn point is the mean of")


class DistributionsArtifact(ArtifactSpec):
    """Distributions of data: lengths; of triples also scores and their gaps."""

    kind: Literal["distributions"] = "distributions"
    data: tuple[str, ...] = Field(min_length=1, description="names under `data`, in order")
    model: str | None = Field(
        default=None, description="a name under `models`: lengths in its tokens, of the rows it keeps; null: in words"
    )


class FactsArtifact(ArtifactSpec):
    """The table of benchmarks. Item counts come from the results of one lineage."""

    kind: Literal["facts"] = "facts"
    benchmarks: tuple[str, ...] = Field(min_length=1, description="names under `benchmarks`, in order")
    lineage: str = Field(description="the lineage whose results give the item counts")


class ClaimsArtifact(ArtifactSpec):
    """What a paper says of its results, each claim with its verdict. It asks for no runs of its own."""

    kind: Literal["claims"] = "claims"
    file: str = Field(description="the claims (docs/claims.md)")
    instead: dict[str, str] = Field(
        default={}, description="lineage of the file -> the lineage that stands for it in this experiment"
    )


AnyArtifact = Annotated[
    TableArtifact
    | PivotArtifact
    | GridArtifact
    | HeatmapArtifact
    | ForestArtifact
    | CurvesArtifact
    | DistributionsArtifact
    | FactsArtifact
    | ClaimsArtifact,
    Field(discriminator="kind"),
]
FIGURES = ("grid", "heatmap", "forest", "curves", "distributions")  # the kinds of artifacts that are pictures


class Resources(Settings):
    """What a job of a rule asks of the scheduler. What is not given is estimated."""

    threads: int = Field(default=1, gt=0, description="CPU threads")
    mem_mb: int | None = Field(default=None, gt=0, description="memory in MB; null: estimated")
    runtime: int | None = Field(default=None, gt=0, description="time limit in minutes; null: estimated, with `safety`")
    gpus: int = Field(default=0, ge=0, description="GPUs")


class TrainResources(Resources):
    """What a training asks of the scheduler: threads, memory and GPUs are those of each of its nodes."""

    gpus: int = Field(default=0, ge=0, description="GPUs on each node, with a process for each")
    nodes: int = Field(default=1, gt=0, description="nodes; more than one under SLURM alone, and with GPUs")

    @property
    def gpus_in_all(self) -> int:
        """GPUs of all nodes together."""
        return self.nodes * self.gpus


class RuleResources(Settings):
    """Resources by kind of job."""

    fetch: Resources = Field(default=Resources(), description="downloads")
    prepare: Resources = Field(default=Resources(), description="data preparation")
    pretrain: Resources = Field(default=Resources(), description="pre-training of tiny base models")
    train: TrainResources = Field(default=TrainResources(), description="training")
    evaluate: Resources = Field(default=Resources(), description="harness suites")
    answer: Resources = Field(default=Resources(), description="answers to the judged questions")
    judge: Resources = Field(default=Resources(), description="judging")
    report: Resources = Field(default=Resources(), description="tables, figures, results.csv")
    safety: float = Field(default=2.0, ge=1, description="an estimated time limit is this many times the estimate")


class Experiment(Settings):
    """A whole study."""

    name: Name = Field(description="name of the experiment")
    results_dir: str = Field(
        pattern=r"^[A-Za-z0-9._/-]+$", description="root of its results, relative to the repository"
    )
    title: str = Field(default="", description="title of the study, on its page; empty: its name")
    abstract: str = Field(default="", description="what the study asks and does, on its page")
    notice: str = Field(default="", description="a sentence that every artifact carries")
    published: str | None = Field(
        default=None, description="file with the published values that tables show beside ours"
    )
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1, description="seeds of the runs; cells are means over them")
    world: WorldSettings | None = Field(default=None, description="the generated demo world; null: none")
    sources: dict[Name, Source] = Field(description="where models and data come from")
    lock: str | None = Field(
        default=None,
        description="file with the commits and hashes of downloads, written by `trialign lock`; where it is "
        "named, no run starts with a source that is not locked; configs can share it; null: revisions as they are now",
    )
    mirror: str | None = Field(
        default=None,
        description="what stands for the hub: a URL, or a folder with models/<owner>/<name>/, datasets/..., "
        "spaces/...; null: the hub itself, or HF_ENDPOINT; `kind: web` sources do not come from it",
    )
    models: dict[Name, Model] = Field(min_length=1, description="base models")
    data: dict[Name, Data] = Field(min_length=1, description="prepared data sets")
    training: Training = Field(default=Training(), description="training settings that stages start from")
    stages: dict[Name, StagePreset] = Field(min_length=1, description="training steps")
    benchmarks: dict[Name, Benchmark] = Field(min_length=1, description="benchmarks")
    eval_batch_size: int = Field(default=8, gt=0, description="batch size of the harness, part of every result")
    answers: AnswerSettings = Field(default=AnswerSettings(), description="answers to the judged questions")
    judges: dict[JudgeName, Judge] = Field(default={}, description="who judges")
    artifacts: dict[Name, AnyArtifact] = Field(min_length=1, description="tables and figures")
    resources: RuleResources = Field(default=RuleResources(), description="what jobs ask of the scheduler")
    tracking: tuple[Literal["tensorboard"], ...] = Field(
        default=(),
        description="what trainings report to besides their log, in <results>/tracking; no result depends on it; "
        "tensorboard: pip install 'trialign[tensorboard]'",
    )
    hardware: Hardware = Field(default=Hardware(), description="the machine that estimates are for")
    expect: Expectations = Field(default=Expectations(), description="what estimates assume until it is measured")

    def __hash__(self) -> int:
        """By identity, so that what is derived from a whole experiment can be cached."""
        return id(self)

    def lineage(self, text: str) -> Lineage:
        """Return the canonical lineage: UserError where a model, stage, parameter or value does not exist."""
        return _canonical_lineage(self, text)

    def lacks(self, text: str) -> str:
        """Return which model or stage of a lineage is not in this experiment; empty where all are."""
        lineage = Lineage.parse(text)
        if lineage.base not in self.models:
            return f"there is no model '{lineage.base}'"
        missing = [stage.name for stage in lineage.stages if stage.name not in self.stages]
        return f"there is no stage '{missing[0]}'" if missing else ""

    def _parsed(self, text: str) -> Lineage:
        lineage = Lineage.parse(text)
        if lineage.base not in self.models:
            raise UserError(f"lineage '{text}': {_unknown('model', lineage.base, self.models)}")
        stages: tuple[Stage, ...] = ()
        for stage in lineage.stages:
            try:
                stages += (self._canonical(Lineage(lineage.base, stages), stage),)
            except UserError as error:
                raise UserError(f"lineage '{text}': {error}") from None
        return Lineage.parse(str(Lineage(lineage.base, stages)))

    def candidates(self, lineage: Lineage) -> list[Lineage]:
        """Return what the last stage of a lineage chooses from; none where it is trained."""
        if lineage.last is None or lineage.parent is None:
            return []
        return [self.lineage(f"{lineage.parent}+{text}") for text in self.preset(lineage.last).candidates]

    def preset(self, stage: Stage) -> StagePreset:
        """Return the preset of a stage; UserError where there is none."""
        if stage.name not in self.stages:
            raise UserError(_unknown("stage", stage.name, self.stages))
        return self.stages[stage.name]

    def params(self, stage: Stage) -> BaseModel:
        """Return the method's parameters for a stage: its preset's and those that it spells."""
        preset = self.preset(stage)
        method = methods.get(preset.method)
        spelled = {key: value for key, value in stage.params if key in method.Params.model_fields}
        return _checked(method.Params, preset.params | spelled, stage)

    def training_of(self, stage: Stage) -> Training:
        """Return the training settings of a stage: its preset's and those that it spells."""
        spelled = {key: value for key, value in stage.params if key in Training.model_fields}
        return _checked(Training, self.preset(stage).training.model_dump() | spelled, stage)

    def view(self, parent: Lineage, stage: Stage) -> View:
        """Return the view that a stage reads: spelled, preset, or derived.

        Derived as in the paper (Appendix B): pairwise methods read (chosen, rejected) after an SFT stage and
        (reference, rejected) from a base model; SFT reads conversations, or the references of triples.
        """
        preset = self.preset(stage)
        method = methods.get(preset.method)
        view = dict(stage.params).get("view", preset.view or self._derived_view(parent, preset))
        if view not in method.views:
            raise UserError(f"stage '{stage}': method '{method.name}' reads {_names(method.views)}, not '{view}'")
        if (view == "conversation") != (self.data[preset.data].kind == "chat"):
            raise UserError(f"stage '{stage}': the view '{view}' cannot be taken of the data '{preset.data}'")
        return typing.cast(View, view)

    def _derived_view(self, parent: Lineage, preset: StagePreset) -> str:
        views = methods.get(preset.method).views
        if preset.method == "sft":
            return "conversation" if self.data[preset.data].kind == "chat" else "reference"
        if "triple" in views:
            return "triple"
        after_sft = any(self.preset(stage).method == "sft" for stage in parent.stages)
        return "chosen-rejected" if after_sft else "reference-rejected"

    def _canonical(self, parent: Lineage, stage: Stage) -> Stage:
        preset = self.preset(stage)
        method = methods.get(preset.method)
        if preset.candidates:
            if stage.params:
                raise UserError(f"stage '{stage}' takes its parameters from its candidates: leave them out")
            return stage
        allowed = [*method.Params.model_fields, *Training.model_fields, "view"]
        for key, _ in stage.params:
            if key not in allowed:
                raise UserError(f"stage '{stage}': {_unknown('parameter', key, allowed)}")
        params, training = self.params(stage), self.training_of(stage)
        if training.tokens_of and (training.packing or self.data[preset.data].kind != "triples"):
            what = "packed rows" if training.packing else f"the conversations of '{preset.data}'"
            raise UserError(f"stage '{stage}': tokens_of: {what} have no views to count: leave it out")
        plain = Stage(stage.name)
        usual = self.params(plain).model_dump() | preset.training.model_dump() | {"view": self.view(parent, plain)}
        values = params.model_dump() | training.model_dump() | {"view": self.view(parent, stage)}
        spelled = {key: value for key, value in values.items() if key in method.grid or value != usual[key]}
        return Stage.parse(str(Stage(stage.name, tuple(sorted(spelled.items())))))


@lru_cache(maxsize=100_000)
def _canonical_lineage(experiment: Experiment, text: str) -> Lineage:
    """Once for each lineage: the DAG asks for each of its jobs."""
    return experiment._parsed(text)


def load(config: Mapping[str, Any]) -> Experiment:
    """Check a merged config and return it; UserError, one line, at the first mistake (and how many more there are)."""
    raw = _without_nulls(config)
    defaults = raw.get("training")
    for preset in _maps(raw.get("stages")):
        if isinstance(defaults, Mapping) and isinstance(preset.get("training", {}), Mapping):
            preset["training"] = {**defaults, **preset.get("training", {})}
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        raise UserError(_first_line(error, Experiment, "config")) from None
    for where, problem in _problems(experiment):
        raise UserError(f"config: {where}: {problem}")
    return experiment


def load_files(files: Sequence[Path]) -> Experiment:
    """Merge YAML files as Snakemake merges its config files, and check the result; UserError on any mistake."""
    from snakemake.common.configfile import load_configfile
    from snakemake.exceptions import WorkflowError
    from snakemake.utils import update_config

    merged: dict[str, Any] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: there is no such config file")
        try:
            update_config(merged, load_configfile(str(file)))
        except WorkflowError as error:
            raise UserError(f"{file}: {' '.join(str(error).split())}") from None
    try:
        return load(merged)
    except UserError:
        if PAPER.is_file() and not any(file.samefile(PAPER) for file in files) and _loads([PAPER, *files]):
            names = " ".join(str(file) for file in files)
            raise UserError(f"{names}: an overlay, no whole config: give {PAPER} before it") from None
        raise


def _loads(files: Sequence[Path]) -> bool:
    try:
        load_files(files)
    except UserError:
        return False
    return True


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _maps(value: Any) -> list[dict[str, Any]]:
    return [item for item in value.values() if isinstance(item, dict)] if isinstance(value, Mapping) else []


def _problems(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Yield (where, what) for every reference between parts of the config that does not hold."""
    if experiment.mirror and is_mistyped(experiment.mirror):
        yield "mirror", f"'{experiment.mirror}': write an address as https://..., a folder as ./... or /..."
    yield from _source_problems(experiment)
    train = experiment.resources.train
    if train.nodes > 1 and not train.gpus:
        yield (
            "resources.train.nodes",
            f"{train.nodes} nodes train on GPUs alone: give resources.train.gpus, those of each node, or one node",
        )
    for name, preset in experiment.stages.items():
        where = f"stages.{name}"
        if preset.method not in methods.names():
            yield f"{where}.method", _unknown("method", preset.method, methods.names())
            continue
        if preset.data not in experiment.data:
            yield f"{where}.data", _unknown("data set", preset.data, experiment.data)
            continue
        for key in preset.params:
            if key not in methods.get(preset.method).Params.model_fields:
                yield f"{where}.params", _unknown("parameter", key, methods.get(preset.method).Params.model_fields)
        for model, source in preset.imported.items():
            if model not in experiment.models:
                yield f"{where}.imported", _unknown("model", model, experiment.models)
            if source not in experiment.sources:
                yield f"{where}.imported.{model}", _unknown("source", source, experiment.sources)
            elif getattr(experiment.sources[source], "type", "model") != "model":
                yield f"{where}.imported.{model}", f"'{source}' is not a model repository"
        try:
            experiment.lineage(f"{next(iter(experiment.models))}+{name}")
        except UserError as error:
            yield where, str(error)
        yield from _candidate_problems(experiment, where, preset)
        yield from _split_problems(experiment, where, preset)
    for section, there in (("data", experiment.data), ("benchmarks", experiment.benchmarks)):
        for name in getattr(experiment.expect, section):
            if name not in there:
                yield f"expect.{section}", _unknown(section.removesuffix("s"), name, there)
    for name in experiment.expect.sources_mb:
        if name not in experiment.sources:
            yield "expect.sources_mb", _unknown("source", name, experiment.sources)
    for name, artifact in experiment.artifacts.items():
        try:
            _check_artifact(experiment, artifact)
        except UserError as error:
            yield f"artifacts.{name}", str(error)


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
    for name, model in experiment.models.items():
        if (model.source is None) == (model.pretrain is None):
            yield (
                f"models.{name}",
                "give either `source` (a published model) or `pretrain` (a tiny one), not both, not none",
            )
        if model.pretrain and (model.corpus is None or model.vocab_size is None):
            yield f"models.{name}", "a model that is pre-trained needs `corpus` and `vocab_size`"
        if model.chat_template not in templates():
            yield f"models.{name}.chat_template", _unknown("chat template", model.chat_template, templates())
        for key in ("source", "corpus"):
            value = getattr(model, key)
            if value is not None and value not in experiment.sources:
                yield f"models.{name}.{key}", _unknown("source", value, experiment.sources)
        source = experiment.sources.get(model.source or "")
        if isinstance(source, HubRepository) and source.type != "model":
            yield f"models.{name}.source", f"'{model.source}' is a {source.type} repository, not a model"
    for section in ("data", "benchmarks"):
        for name, item in getattr(experiment, section).items():
            if item.source not in experiment.sources:
                yield f"{section}.{name}.source", _unknown("source", item.source, experiment.sources)
            elif getattr(experiment.sources[item.source], "type", None) == "model":
                yield f"{section}.{name}.source", f"'{item.source}' is a model repository: no data is there"
    for name, benchmark in experiment.benchmarks.items():
        if benchmark.kind == "harness" and benchmark.suite in RUN_ENTRIES:
            yield f"benchmarks.{name}.suite", f"'{benchmark.suite}' is taken in a run's folder: choose another name"
        if benchmark.kind == "harness" and ("{subset}" in benchmark.include) != bool(benchmark.subsets):
            yield f"benchmarks.{name}", "`subsets` and '{subset}' in `include` go together: give both or neither"
        elif benchmark.kind == "harness":
            yield from _include_problems(name, benchmark)
    yield from _judge_problems(experiment)
    if len(set(experiment.seeds)) < len(experiment.seeds):
        yield "seeds", f"{list(experiment.seeds)} holds a seed twice: leave one"
    if "results" in experiment.artifacts:
        yield "artifacts.results", "results.csv is made anyway: choose another name"
    if "index" in experiment.artifacts:
        yield "artifacts.index", "index.html is made anyway: choose another name"
    if experiment.published and not Path(experiment.published).is_file():
        yield "published", f"'{experiment.published}' does not exist; name the file with the published values"
    for name, data in experiment.data.items():
        if data.kind == "triples" and getattr(experiment.sources[data.source], "repo", None) == FEEDBACK:
            for origin in data.exclude_sources:
                if origin not in FEEDBACK_SOURCES and not origin.startswith("flan_v2_"):
                    yield f"data.{name}.exclude_sources", _unknown("source of prompts", origin, FEEDBACK_SOURCES)
        if data.kind == "triples" and data.max_prompt_length >= data.max_length:
            yield f"data.{name}.max_prompt_length", f"{data.max_prompt_length} leaves no room in {data.max_length}"


def _judge_problems(experiment: Experiment) -> Iterator[tuple[str, str]]:
    judged = {name: item for name, item in experiment.benchmarks.items() if isinstance(item, JudgedBenchmark)}
    by_judge: dict[str, str] = {}
    for name, item in judged.items():
        if item.judge not in experiment.judges:
            yield f"benchmarks.{name}.judge", _unknown("judge", item.judge, experiment.judges)
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
        yield f"benchmarks.{name}.metric", _unknown("metric", benchmark.metric, metrics)


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
            raise UserError(f"data: {_unknown('data set', name, experiment.data)}")
        if artifact.data.count(name) > 1:
            raise UserError(f"data: '{name}' is there twice: leave one")
    if artifact.model is not None and artifact.model not in experiment.models:
        raise UserError(f"model: {_unknown('model', artifact.model, experiment.models)}")


def _check_claims(experiment: Experiment, artifact: ClaimsArtifact) -> None:
    """Raise UserError where a claim does not fit. A model or stage that is not here is none: the claim is not run."""
    found = claims.read(Path(artifact.file))
    for claim in found:
        where = f"{artifact.file}: claim '{claim.id}'"
        for name in claim.benchmarks if claim.kind != "orders" else ():
            if name not in experiment.benchmarks:
                raise UserError(f"{where}: column: {_unknown('benchmark', name, experiment.benchmarks)}")
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


def splits_items(artifact: AnyArtifact) -> bool:
    """Return whether a column of an artifact asks for seen or unseen items."""
    columns = getattr(artifact, "columns", ())
    return any(isinstance(column, ColumnSpec) and column.items != "all" for column in columns)


def grid_lineages(artifact: GridArtifact) -> list[str]:
    """Return the lineages of a grid, alpha by alpha; not yet canonical."""
    return [
        f"{artifact.lineage}@alpha={spell(alpha)}@beta={spell(beta)}"
        for alpha in artifact.alpha
        for beta in artifact.beta
    ]


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
                raise UserError(f"columns: {_unknown('benchmark', name, experiment.benchmarks)}")
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
            raise UserError(f"columns: '{label}': {_unknown('metric', metric, JUDGED_METRICS)}")


def _names(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _unknown(what: str, name: str, allowed: Sequence[str] | Mapping[str, Any]) -> str:
    return f"there is no {what} '{name}'{nearest(name, allowed)}; there are {_names(allowed)}"


def _checked(model: type[Any], values: Mapping[str, Value], stage: Stage) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_line(error, model, f"stage '{stage}'")) from None


def _first_line(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """Return the first pydantic error as one line, with what is allowed, and how many more there are."""
    first = _errors(error)[0]
    loc = [part for part in first["loc"] if part != "[key]"]
    place, allowed = _walk(model, loc)
    place = f"{where}: {place}" if place else where
    if first["type"] == "extra_forbidden":
        text = f"unknown key '{loc[-1]}'{nearest(str(loc[-1]), allowed)}; allowed are {_names(allowed)}" + _kept(loc)
    elif first["type"] == "missing":
        text = "it is missing"
    elif first["type"] == "union_tag_invalid":
        place, text = (
            f"{place}.kind",
            f"'{first['ctx']['tag']}' is not allowed; allowed are {first['ctx']['expected_tags']}",
        )
    else:
        said = first["msg"][0].lower() + first["msg"][1:]
        for python, yaml in (("valid tuple", "list"), ("tuple", "list"), ("valid dictionary", "map")):
            said = said.replace(python, yaml)
        text = f"{_shortened(first['input'])} is not allowed: {said}"
    more = _mistakes(error, model) - 1
    return f"{place}: {text}" + (f" (and {more} more)" if more > 0 else "")


def _kept(loc: Sequence[str | int]) -> str:
    """Return a hint where a key belongs to another kind than the item's: an overlay that changed the kind kept it."""
    for union in (Source, Data, Benchmark, AnyArtifact):
        kinds = {_tag(choice): choice for choice in _choices(union)}
        if len(loc) > 1 and loc[-2] in kinds:
            others = [kind for kind, choice in kinds.items() if loc[-1] in choice.model_fields]
            if others:
                return f" ('{loc[-1]}' is of kind '{others[0]}': where an overlay changes the kind, set it to null)"
    return ""


def _errors(error: ValidationError) -> list[Any]:
    """Return pydantic's errors, less that a map of a `str | map` is no text, where there is more to say of the map."""
    errors = error.errors()
    telling = [item for item in errors if item["type"] != "string_type" or not isinstance(item["input"], Mapping)]
    return telling or errors


def _mistakes(error: ValidationError, model: type[BaseModel]) -> int:
    """Count the mistakes: one in the top-level `training` shows in every stage, a wrong item leaves its list short."""
    items = [item for item in _errors(error) if item["type"] != "too_short"]
    return len({(_walk(model, item["loc"])[0].rpartition(".")[2], str(item["input"])) for item in items})


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _walk(model: Any, loc: Sequence[str | int]) -> tuple[str, list[str]]:
    """Follow an error's location through the types; return it as text, less union tags, and the keys allowed there."""
    place: list[str] = []
    allowed: list[str] = []
    for part in loc:
        choices = _choices(model)
        tagged = next((c for c in choices if _tag(c) == part or getattr(c, "__name__", None) == part), None)
        if tagged is not None and len(choices) > 1 and not hasattr(tagged, "model_fields"):
            continue  # a plain type of a union, such as the text of `str | ColumnSpec`
        if tagged is not None and len(choices) > 1:
            model = tagged
            allowed = list(model.model_fields)
            continue
        place.append(str(part))
        holder = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if holder is not None:
            allowed = list(holder.model_fields)
            field = holder.model_fields.get(str(part))
            model = field.annotation if field else None
        else:
            model = next(
                (typing.get_args(c)[-1 if typing.get_origin(c) is dict else 0] for c in choices if typing.get_args(c)),
                None,
            )
    return ".".join(place), allowed


def _choices(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Annotated:
        return _choices(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (Union, UnionType):
        return [c for item in typing.get_args(annotation) for c in _choices(item)]
    return [annotation]


def _tag(annotation: Any) -> Any:
    field = getattr(annotation, "model_fields", {}).get("kind")
    return field.default if field else None
