"""The config: YAML files merged into one typed, checked `Experiment`. A wrong config is one clear line, at once.

`load` takes the merged mapping (Snakemake's `config`), `load_files` the files themselves with the same merging: maps
are merged, lists replaced, null deletes a key. `Experiment.lineage` makes a lineage canonical.
What parts of it ask of each other is checked in `config_checks`; `config_errors` words what is wrong.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from trialign import methods
from trialign.artifact_settings import AnyArtifact
from trialign.assumptions import Expectations, Hardware, Shape
from trialign.config_checks import problems
from trialign.config_errors import first_line
from trialign.errors import UserError, names, unknown
from trialign.lineage import NAME, Lineage, Stage, Value
from trialign.recipes import View
from trialign.settings import (
    AnswerSettings,
    Benchmark,
    Data,
    Judge,
    PretrainSettings,
    Settings,
    Source,
    Training,
    WorldSettings,
)

PAPER = Path("config/config.yaml")  # which overlays are made for
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
JudgeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]  # a path segment


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
        pattern=r"^[A-Za-z0-9._/-]+$", description="root of its results: a folder of the repository, or /..."
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
            raise UserError(f"lineage '{text}': {unknown('model', lineage.base, self.models)}")
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
            raise UserError(unknown("stage", stage.name, self.stages))
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
            raise UserError(f"stage '{stage}': method '{method.name}' reads {names(method.views)}, not '{view}'")
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
                raise UserError(f"stage '{stage}': {unknown('parameter', key, allowed)}")
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
        raise UserError(first_line(error, Experiment, "config")) from None
    for where, problem in problems(experiment):
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
            raise UserError(f"{file}: {_where_it_breaks(file) or ' '.join(str(error).split())}") from None
    try:
        return load(merged)
    except UserError:
        if PAPER.is_file() and not any(file.samefile(PAPER) for file in files) and _loads([PAPER, *files]):
            names = " ".join(str(file) for file in files)
            raise UserError(f"{names}: an overlay, no whole config: give {PAPER} before it") from None
        raise


def _where_it_breaks(file: Path) -> str:
    """Return where a file is no YAML any more, and why; empty where it is."""
    import yaml

    try:
        yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: no YAML: {error.problem}" if mark else ""
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"no YAML: {' '.join(str(error).split())}"
    return ""


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


def _checked(model: type[Any], values: Mapping[str, Value], stage: Stage) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(first_line(error, model, f"stage '{stage}'")) from None
