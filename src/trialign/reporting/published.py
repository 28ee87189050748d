"""The published numbers: `paper/published_values.csv`, and those of a table's cells.

The file holds what the paper's text and the authors' page state, each with its source, as facts: as they are printed
there (two decimals, cut), with the lineage and the column that they belong to. `items` is what a number is a count over
(the benchmark's items; empty where it is no count); `origin` says where a number is from that the paper does not say.
What is lost has no line there and no number here.
"""

from __future__ import annotations

import csv
from contextlib import suppress
from functools import cache
from pathlib import Path

from trialign.config import Experiment
from trialign.errors import UserError
from trialign.recipes import Flag, Published
from trialign.reporting import consistency

COLUMNS = ("artifact", "lineage", "column", "benchmark", "metric", "value", "items", "source", "origin")


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file of published values. UserError for any other file."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if lacking := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise UserError(
            f"{path}: it lacks {', '.join(lacking)}: published values need the columns {', '.join(COLUMNS)}"
        )
    return rows


def cells(path: Path) -> list[dict[str, str]]:
    """Return the rows that are cells of lineages. UserError as `read`."""
    return [row for row in read(path) if row["lineage"]]


def of_artifact(experiment: Experiment, artifact: str) -> tuple[Published, ...]:
    """Return the published numbers of an artifact, with their flags; none where the experiment is compared with none.

    A lineage that the experiment cannot have (its overlay has dropped a model or a stage) is in none of its tables.
    """
    if experiment.published is None:
        return ()
    path = Path(experiment.published)
    rows, flags = _read(path, path.stat().st_mtime_ns)
    found = []
    for row in rows:
        if row["artifact"] == artifact and row["lineage"]:
            with suppress(UserError):
                place, lineage = (artifact, row["lineage"], row["column"]), str(experiment.lineage(row["lineage"]))
                number = {"column": row["column"], "value": row["value"], "flags": flags.get(place, ())}
                found.append(Published(lineage=lineage, **number))
    return tuple(found)


@cache
def _read(path: Path, _changed: int) -> tuple[list[dict[str, str]], dict[tuple[str, str, str], tuple[Flag, ...]]]:
    """Return the rows and the flags of a file, once for the artifacts of a workflow."""
    rows = read(path)
    flags: dict[tuple[str, str, str], tuple[Flag, ...]] = {}
    for artifact, lineage, column, kind, text in consistency.problems(rows):
        place = artifact, lineage, column
        flags[place] = (*flags.get(place, ()), Flag(kind=kind, text=text))
    return rows, flags
