"""Recipes: everything that shapes the output of one step, resolved and typed.

A recipe is passed to its step as canonical JSON (`Recipe.canonical`). `step` names the step; `version` is raised when
the code of that step changes what it produces, so that old results are not taken for new ones. Nothing here imports
torch: the Snakefile and the plan read this module.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from trialign.settings import (
    AnswerSettings,
    ChatRules,
    FeedbackRules,
    HarnessTask,
    HubRepository,
    JudgeRules,
    PretrainSettings,
    Training,
    WebFiles,
    WorldSettings,
)

Items = Literal["all", "seen", "unseen"]
View = Literal["conversation", "reference", "reference-rejected", "chosen-rejected", "triple"]


class Recipe(BaseModel):
    """Base of all recipes: frozen, no unknown keys, canonical JSON with sorted keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def canonical(self) -> str:
        """Return the recipe as JSON with sorted keys and no spaces: equal recipes have equal strings."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class WorldRecipe(Recipe):
    """Generate the demo world. No inputs."""

    step: Literal["world"] = "world"
    version: Literal[2] = 2
    settings: WorldSettings


class FetchRecipe(Recipe):
    """Download a repository of the hub at a pinned revision. No inputs.

    commit, files: what the lock says of it, file -> `sha256:<hex>` or `git:<hex>`; None and none if it is not locked.
    A commit `folder:<hash>` is of a folder that stands for the hub.
    """

    step: Literal["fetch"] = "fetch"
    version: Literal[2] = 2
    repository: HubRepository
    commit: str | None = None
    files: dict[str, str] = {}


class WebRecipe(Recipe):
    """Download single files of the web. No inputs."""

    step: Literal["web"] = "web"
    version: Literal[1] = 1
    source: WebFiles


class TokenizerRecipe(Recipe):
    """Take (input `model`: a fetched model) or train (input `corpus`: pre-training text) a base model's tokenizer."""

    step: Literal["tokenizer"] = "tokenizer"
    version: Literal[1] = 1
    vocab_size: int | None
    chat_template: str


class PretrainRecipe(Recipe):
    """Pre-train a tiny base model. Inputs: `corpus`, `tokenizer`."""

    step: Literal["pretrain"] = "pretrain"
    version: Literal[1] = 1
    settings: PretrainSettings
    seed: int


class ImportRecipe(Recipe):
    """Make a run of a fetched model. Inputs: `model` (the fetched repository), `tokenizer`."""

    step: Literal["import"] = "import"
    version: Literal[1] = 1


class ChatRecipe(Recipe):
    """Prepare conversations for SFT. Input: `source`."""

    step: Literal["chat"] = "chat"
    version: Literal[2] = 2
    data: ChatRules


class TriplesRecipe(Recipe):
    """Prepare triples (prompt, reference, chosen, rejected). Input: `source`."""

    step: Literal["triples"] = "triples"
    version: Literal[2] = 2
    data: FeedbackRules


class TokensRecipe(Recipe):
    """Render a prepared data set with a model's chat template and tokenise it. Inputs: `data`, `tokenizer`."""

    step: Literal["tokens"] = "tokens"
    version: Literal[2] = 2
    kind: Literal["chat", "triples"]
    bos: bool
    max_length: int
    max_prompt_length: int


class OverlapRecipe(Recipe):
    """Find benchmark questions in a prepared data set.

    Inputs: `data` (a prepared data set), and for each benchmark `name` its data as `data.<name>` (a source folder).
    `harness` are the harness's benchmarks, `fields` the fields that hold their questions, where the config names them;
    `judged` are the benchmarks of two-turn questions.
    """

    step: Literal["overlap"] = "overlap"
    version: Literal[1] = 1
    kind: Literal["chat", "triples"]
    harness: dict[str, HarnessTask]
    fields: dict[str, str]
    judged: tuple[str, ...]


class ReferenceRecipe(Recipe):
    """Compute a model's log-probabilities of a data set's responses. Inputs: `model`, `tokens` (folders).

    mismatched: also of the responses to other prompts, for KTO.
    """

    step: Literal["reference"] = "reference"
    version: Literal[1] = 1
    view: View
    mismatched: bool
    precision: Literal["bf16", "fp32"]


class TrainRecipe(Recipe):
    """Train one stage. Inputs: `parent` (a model folder), `tokens` (a tokens folder).

    With the packed engine and a method that compares with the parent also `reference` (of `ReferenceRecipe`).
    """

    step: Literal["train"] = "train"
    version: Literal[2] = 2
    method: str
    params: dict[str, float | int | str | bool]
    view: View
    training: Training
    seed: int


class ChooseRecipe(Recipe):
    """Choose one of several runs of a method by what they reach on the evaluation rows.

    Inputs: `candidate`, the run folders, in the order of `candidates`, their last stages as lineages spell them.
    method: theirs.
    """

    step: Literal["choose"] = "choose"
    version: Literal[1] = 1
    method: str
    candidates: tuple[str, ...]


class EvaluateRecipe(Recipe):
    """Evaluate one suite of harness benchmarks on one model.

    Inputs: `model`, and for each benchmark `name` its data as `data.<name>` (a source folder).
    """

    step: Literal["evaluate"] = "evaluate"
    version: Literal[1] = 1
    benchmarks: dict[str, HarnessTask]
    bos: bool
    batch_size: int


class AnswerRecipe(Recipe):
    """Answer the two-turn questions. Inputs: `model`, `questions` (a source folder)."""

    step: Literal["answer"] = "answer"
    version: Literal[2] = 2
    answers: AnswerSettings
    bos: bool
    seed: int


class JudgeRecipe(Recipe):
    """Judge stored answers. Inputs: `answers` (the folder that the answer step published), `questions`.

    name: the judge's in the config; benchmark: the one whose items its scores are.
    """

    step: Literal["judge"] = "judge"
    version: Literal[3] = 3
    name: str
    benchmark: str
    judge: JudgeRules


class Column(BaseModel):
    """A column of numbers: a metric of a benchmark, or the unweighted mean of several (`mean_of`).

    `scale` multiplies the number (100: accuracy to percent); a mean keeps the scales of its members. `items` are those
    of a benchmark whose questions training data holds (seen), the others (unseen), or all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str
    benchmark: str | None = None
    metric: str | None = None
    mean_of: tuple[Column, ...] = ()
    scale: float = 1.0
    aggregate: Literal["items", "subsets"] = "items"
    items: Items = "all"

    @model_validator(mode="after")
    def _one_kind(self) -> Column:
        if (self.benchmark is None) != (self.metric is None) or (self.benchmark is None) == (not self.mean_of):
            raise ValueError(f"column '{self.label}' needs either benchmark and metric, or mean_of")
        if self.mean_of and (self.scale != 1 or any(member.mean_of for member in self.mean_of)):
            raise ValueError(f"column '{self.label}': the scale belongs to the members of mean_of, each a benchmark")
        return self


CHOSEN = "(chosen)"  # a text cell that says what the run's last stage chose, known once it has


class Row(BaseModel):
    """A row: its leading text cells (`Model`, `Align`, ..., or `CHOSEN`) and its lineage."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    lineage: str
    texts: dict[str, str]


class Flag(BaseModel):
    """What is to be known of a published number (`trialign.reporting.consistency`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["truncated", "inconsistent", "source"]
    text: str


class Published(BaseModel):
    """A published number as it is printed, of a lineage and a column of numbers (its label)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    lineage: str
    column: str
    value: str
    flags: tuple[Flag, ...] = ()


class Artifact(Recipe):
    """What tables and figures share. Inputs: `results`, the suite folders that their cells need, and `overlap`.

    `overlap` are the overlaps of the data sets behind their lineages, given where a column asks for (un)seen items.
    """

    name: str
    title: str
    caption: str
    notice: str = ""
    seeds: tuple[int, ...]


class Compared(Artifact):
    """What tables of lineages share: the published numbers of their cells, none where the experiment names none."""

    published: tuple[Published, ...] = ()


class TableRecipe(Compared):
    """A table: rows are lineages, columns benchmarks. `texts` names the leading text columns, in order."""

    step: Literal["table"] = "table"
    version: Literal[4] = 4
    texts: tuple[str, ...]
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]


class PivotRecipe(Compared):
    """A table of one benchmark (Tables 3 and 7): `cells[row][column]` is a lineage.

    `rows` and `columns` give the order of the labels, which the sorted keys of `cells` lose.
    """

    step: Literal["pivot"] = "pivot"
    version: Literal[4] = 4
    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[str, dict[str, str]]
    column: Column


class GridRecipe(Artifact):
    """A figure over alpha x beta: `cells[alpha][beta]` is a lineage; `columns` are its panels; `baseline` a lineage."""

    step: Literal["grid"] = "grid"
    version: Literal[3] = 3
    cells: dict[str, dict[str, str]]
    columns: tuple[Column, ...]
    baseline: str
    baseline_label: str


class HeatmapRecipe(GridRecipe):
    """The same as heat maps."""

    step: Literal["heatmap"] = "heatmap"
    version: Literal[2] = 2


class Labelled(BaseModel):
    """A lineage and what a figure calls it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    lineage: str
    label: str


class ForestRecipe(Artifact):
    """A forest plot: paired differences of `rows` from `baseline`; `columns` are its panels."""

    step: Literal["forest"] = "forest"
    version: Literal[2] = 2
    rows: tuple[Labelled, ...]
    columns: tuple[Column, ...]
    baseline: Labelled


class CurvesRecipe(Artifact):
    """Training curves of `rows`. Inputs: `run`, the `run.json` of each run of theirs, beside which its log lies.

    smooth: how many steps a drawn point is the mean of.
    """

    step: Literal["curves"] = "curves"
    version: Literal[2] = 2
    rows: tuple[Labelled, ...]
    smooth: int


class DistributionsRecipe(Artifact):
    """Distributions of lengths and scores of `data`, in order. Input: `data`, their prepared folders.

    tokenizer: whose tokens lengths are counted in, which are then the inputs `tokens`; empty: words are counted.
    """

    step: Literal["distributions"] = "distributions"
    version: Literal[1] = 1
    data: tuple[str, ...]
    tokenizer: str


class FactsRecipe(Artifact):
    """The table of benchmarks (Table 4). Its input `results` is one model's suite folders, for the item counts.

    `columns` are the text columns, `rows` their cells, and `benchmarks` names the benchmark of each row; the number of
    its items is the last column.
    """

    step: Literal["facts"] = "facts"
    version: Literal[4] = 4
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    benchmarks: tuple[str, ...]


class ClaimsRecipe(Artifact):
    """The claims of a paper and their verdicts.

    Inputs: `results`, of the lineages that the claims compare; `claims`, their file; `published`, the paper's numbers,
    where the experiment is compared with them. `names`: lineage, as the files spell it -> this experiment's, where that
    is another text. `columns`: by benchmark. `wholes`: benchmark -> its highest score, which a claim's `%` is of.
    `figures[name][alpha][beta]`: a lineage. `lacking`: claim -> why it is not run. `headings[table][heading]`: the
    benchmarks, joined by a space, of a published table's columns that are not called as their benchmark.
    """

    step: Literal["claims"] = "claims"
    version: Literal[2] = 2
    names: dict[str, str]
    columns: dict[str, Column]
    wholes: dict[str, float]
    figures: dict[str, dict[str, dict[str, str]]]
    lacking: dict[str, str]
    headings: dict[str, dict[str, str]]


class ResultsRecipe(Recipe):
    """The tidy `results.csv`: everything that the artifacts measured. Input: `results`."""

    step: Literal["results"] = "results"
    version: Literal[1] = 1
    experiment: str
    columns: tuple[Column, ...]


class IndexArtifact(BaseModel):
    """A table or figure on the study's page, and the lineages that it shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str
    caption: str
    lineages: tuple[str, ...]


class IndexRecipe(Recipe):
    """The study's page. `labels`: lineage -> what it is called; `columns`: each benchmark by its own metric, in order;
    `shares`: the metrics that are shown in percent.

    Inputs: `artifacts` (files), `results` (results.csv), `runs` (run.json of each run, ancestors included), `suites`
    (suite folders), `cards` (folders with a card).
    """

    step: Literal["index"] = "index"
    version: Literal[2] = 2
    experiment: str
    title: str
    abstract: str
    notice: str
    seeds: tuple[int, ...]
    labels: dict[str, str]
    columns: tuple[Column, ...]
    shares: tuple[str, ...]
    artifacts: tuple[IndexArtifact, ...]


AnyRecipe = Annotated[
    WorldRecipe
    | FetchRecipe
    | WebRecipe
    | TokenizerRecipe
    | PretrainRecipe
    | ImportRecipe
    | ChatRecipe
    | TriplesRecipe
    | TokensRecipe
    | OverlapRecipe
    | ReferenceRecipe
    | TrainRecipe
    | ChooseRecipe
    | EvaluateRecipe
    | AnswerRecipe
    | JudgeRecipe
    | TableRecipe
    | PivotRecipe
    | GridRecipe
    | HeatmapRecipe
    | ForestRecipe
    | CurvesRecipe
    | DistributionsRecipe
    | FactsRecipe
    | ClaimsRecipe
    | ResultsRecipe
    | IndexRecipe,
    Field(discriminator="step"),
]
_ANY: TypeAdapter[Any] = TypeAdapter(AnyRecipe)


def parse(text: str) -> Recipe:
    """Read a recipe from JSON; raises pydantic.ValidationError on anything that is not exactly a recipe."""
    return _ANY.validate_json(text)
