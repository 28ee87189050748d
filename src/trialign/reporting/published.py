"""A table's own numbers beside the published ones: the same rows, each cell `ours (published)`.

`paper/published_values.csv` holds what the paper's text and the authors' page state, each with its source, as facts:
as they are printed there (two decimals, truncated), with the lineage and the column that they belong to. What is lost
has no line there and no number here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trialign.config import Experiment
from trialign.errors import UserError
from trialign.paths import PROVENANCE
from trialign.reporting.render import DASH


class Beside(NamedTuple):
    """A number of a table, as the csv has it ("" where the run diverged), and the published one (None: not known)."""

    ours: str
    published: str | None

    def __str__(self) -> str:
        ours = self.ours or DASH
        return ours if self.published is None else f"{ours} ({self.published})"


class Line(NamedTuple):
    """A row: its leading texts and its numbers."""

    texts: tuple[str, ...]
    cells: tuple[Beside, ...]


def read(path: Path, experiment: Experiment) -> dict[tuple[str, str, str], str]:
    """Return (artifact, lineage, column) -> the published value, as it is printed. UserError for any other file."""
    return {
        (row["artifact"], str(experiment.lineage(row["lineage"])), row["column"]): row["value"] for row in cells(path)
    }


def cells(path: Path) -> list[dict[str, str]]:
    """Return the published cells of lineages, as the file has them. UserError for any other file."""
    if not path.is_file():
        raise UserError(f"config: published: {path} does not exist; name the file with the published values")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"artifact", "lineage", "column", "value"} <= rows[0].keys():
        raise UserError(f"{path}: it needs the columns artifact, lineage, column and value")
    return [row for row in rows if row["lineage"]]


def beside(root: Path, name: str, published: Mapping[tuple[str, str, str], str]) -> tuple[list[str], list[Line]]:
    """Return the headings and the rows of table `name` of the results tree `root`, with the published numbers.

    Which lineage a cell is of comes from the recipe that made the table. UserError if it is not made, or is no table.
    """
    record = root / PROVENANCE / f"{name}.json"
    if not (root / f"{name}.csv").is_file() or not record.is_file():
        raise UserError(f"{root}/{name}.csv is not made yet: run snakemake {root}/{name}.csv first")
    recipe = json.loads(record.read_text())["recipe"]
    with (root / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        headings, *rows = csv.reader(file)
    places = _places(recipe, name)
    texts = len(headings) - len(places[0])
    lines = [
        Line(
            tuple(row[:texts]),
            tuple(Beside(cell, published.get((name, *place))) for cell, place in zip(row[texts:], each, strict=True)),
        )
        for row, each in zip(rows, places, strict=True)
    ]
    return headings, lines


def _places(recipe: Mapping[str, Any], name: str) -> list[list[tuple[str, str]]]:
    """Return for each cell the lineage and the column that its published value goes by."""
    if recipe["step"] == "table":
        labels = [column["label"] for column in recipe["columns"]]
        return [[(row["lineage"], label) for label in labels] for row in recipe["rows"]]
    if recipe["step"] == "pivot":
        label = recipe["column"]["label"]
        return [[(recipe["cells"][row][column], label) for column in recipe["columns"]] for row in recipe["rows"]]
    raise UserError(f"'{name}' is no table of lineages: nothing of it can be compared")


def print_beside(name: str, headings: list[str], lines: list[Line], console: Console) -> None:
    """Print a table with the published numbers in brackets, and how many of its cells have one."""
    table = Table(title=escape(f"{name}: ours (published)"), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for i, heading in enumerate(headings):
        table.add_column(escape(heading), justify="left" if i < len(lines[0].texts) else "right", overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line.texts), *map(escape, map(str, line.cells)))
    console.print(table)
    cells = [cell for line in lines for cell in line.cells]
    known = sum(cell.published is not None for cell in cells)
    console.print(f"{known} of {len(cells)} cells have a published number.", highlight=False)
