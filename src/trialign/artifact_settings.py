"""Typed settings of artifacts, as a config states them: which rows, columns and panels a table or a figure has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trialign.lineage import spell
from trialign.recipes import Items
from trialign.settings import Settings


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
