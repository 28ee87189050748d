"""What the step of claims reads: the claims with this experiment's lineages, and the paper's own cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialign import claims
from trialign.claims import Claim
from trialign.recipes import ClaimsRecipe, Column
from trialign.reporting import published
from trialign.steps import Step

Cells = dict[str, dict[str, dict[str, str]]]


@dataclass(frozen=True)
class Claimed:
    """Claims, and what is needed to judge them.

    columns, wholes, lacking: as in `ClaimsRecipe`. grids[claim][alpha][beta]: a lineage, of claims about a figure.
    published[table][lineage][benchmarks]: the paper's own cells, as printed, of a benchmark or of the mean of several
    (joined by a space), and of the `learning_rate`; None: the experiment is not compared with the paper.
    """

    claims: tuple[Claim, ...]
    columns: dict[str, Column]
    wholes: dict[str, float]
    lacking: dict[str, str]
    seeds: tuple[int, ...]
    grids: Cells
    published: Cells | None

    def points(self, claim: Claim) -> list[str]:
        """Return the lineages of the figure that a claim is about, alpha by alpha; none for other claims."""
        return [lineage for row in self.grids.get(claim.id, {}).values() for lineage in row.values()]

    def factor(self, claim: Claim, members: tuple[str, ...]) -> float:
        """Return what turns a difference on a column into the claim's units: `%` is of the column's highest score."""
        return 100 / self.wholes[members[0]] if claim.unit == "%" else 1.0

    def label(self, members: tuple[str, ...]) -> str:
        """Return the heading of a column."""
        names = [self.columns[name].label for name in members]
        return names[0] if len(names) == 1 else f"mean of {', '.join(names)}"


def read(step: Step[Any]) -> Claimed:
    """Read the step's inputs `claims` and `published`. UserError where one of the files is not as it must be."""
    recipe: ClaimsRecipe = step.recipe
    found = tuple(claim.renamed(recipe.names) for claim in claims.read(step.input("claims")))
    return Claimed(
        claims=found,
        columns=recipe.columns,
        wholes=recipe.wholes,
        lacking=recipe.lacking,
        seeds=recipe.seeds,
        grids={claim.id: claim.grid(recipe.figures) for claim in found if claim.of_grid},
        published=_cells(recipe, step.input("published")) if step.inputs.get("published") else None,
    )


def _cells(recipe: ClaimsRecipe, path: Path) -> Cells:
    labels = {column.label: name for name, column in recipe.columns.items()}
    cells: Cells = {}
    for row in published.cells(path):
        known = cells.setdefault(row["artifact"], {}).setdefault(recipe.names.get(row["lineage"], row["lineage"]), {})
        heading = (labels | recipe.headings.get(row["artifact"], {})).get(row["column"])
        if heading:
            known[heading] = row["value"]
        if row.get("lr"):
            known["learning_rate"] = row["lr"]
    return cells
