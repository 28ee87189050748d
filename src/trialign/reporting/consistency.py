"""What is to be known of published numbers, found by arithmetic in the numbers themselves.

`truncated`: the number is a count over a benchmark's items that was cut after two decimals, not rounded.
`inconsistent`: it is no such count at all, or the average of other cells than are printed, or printed otherwise
elsewhere. `source`: it is not from a table of the paper, or not the paper's own measurement.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

AVERAGE = "Average"  # a column whose name begins so is the mean of the others of its row and table
OWN = "v1 Table"  # how a source begins that is a table of the paper
SCALES = {"accuracy": 100, "score": 1}  # a count over items, times this, is printed
HALF = Fraction(1, 2)


class Problem(NamedTuple):
    """What is to be known of the published number of a lineage in a column of an artifact."""

    artifact: str
    lineage: str
    column: str
    kind: Literal["truncated", "inconsistent", "source"]
    text: str


def problems(published_rows: Sequence[Mapping[str, str]]) -> list[Problem]:
    """Return what is to be known of published numbers, in their order. published_rows: of `published.read`.

    Numbers of no lineage (those of the text) are claims, not cells: they are left out.
    """
    rows = [row for row in published_rows if row["lineage"]]
    found = [*_counts(rows), *_averages(rows), *_twice(rows), *_sources(rows)]
    places = {(row["artifact"], row["lineage"], row["column"]): i for i, row in enumerate(rows)}
    return sorted(found, key=lambda problem: places[problem[:3]])


def _problem(row: Mapping[str, str], kind: Literal["truncated", "inconsistent", "source"], text: str) -> Problem:
    return Problem(row["artifact"], row["lineage"], row["column"], kind, text)


def _hundredths(text: str) -> int:
    """Return a printed number in its last place, two decimals."""
    return int(Fraction(text) * 100)


def _counts(rows: Sequence[Mapping[str, str]]) -> Iterator[Problem]:
    """Yield the numbers that are k / n cut, or no k / n at all, cut or rounded. A tie may be rounded either way."""
    for row in rows:
        if not row["items"]:
            continue
        printed, items = _hundredths(row["value"]), int(row["items"])
        unit = Fraction(100 * SCALES[row["metric"]], items)  # of one item, in hundredths
        near = range(math.floor((printed - 1) / unit), math.ceil((printed + 1) / unit) + 1)
        cut = [k for k in near if math.floor(k * unit) == printed]
        rounded = [k for k in near if abs(k * unit - printed) <= HALF]
        if cut and not rounded:
            exact = float(cut[0] * unit / 100)
            yield _problem(row, "truncated", f"{row['value']} is {cut[0]}/{items}, {exact:.4f}, cut and not rounded")
        elif not cut and not rounded:
            yield _problem(row, "inconsistent", f"{row['value']} is no count over {items} items")


def _averages(rows: Sequence[Mapping[str, str]]) -> Iterator[Problem]:
    """Yield the averages that the printed cells of their row cannot have, each of them cut or rounded."""
    of_row: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        of_row[row["artifact"], row["lineage"]].append(row)
    for cells in of_row.values():
        members = [_hundredths(cell["value"]) for cell in cells if not cell["column"].startswith(AVERAGE)]
        for row in cells:
            if row["column"].startswith(AVERAGE) and members:
                mean = Fraction(sum(members), len(members))
                # cells stand for [v - 1/2, v + 1), and so does the average for their mean
                if not mean - 1 <= _hundredths(row["value"]) < mean + 1 + HALF:
                    text = f"{row['value']} is printed, the mean of the row's own cells is {float(mean / 100):.3f}"
                    yield _problem(row, "inconsistent", text)


def _twice(rows: Sequence[Mapping[str, str]]) -> Iterator[Problem]:
    """Yield the numbers that have another value elsewhere."""
    same: dict[tuple[str, str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        same[row["lineage"], row["benchmark"], row["metric"]].append(row)
    for group in same.values():
        for row in group:
            others = [other for other in group if _hundredths(other["value"]) != _hundredths(row["value"])]
            if others:
                told = " and ".join(f"{other['value']} in {_name(other['artifact'])}" for other in others)
                yield _problem(row, "inconsistent", f"{row['value']} is printed here, {told}")


def _sources(rows: Sequence[Mapping[str, str]]) -> Iterator[Problem]:
    for row in rows:
        if row["origin"]:
            yield _problem(row, "source", row["origin"])
        if not row["source"].startswith(OWN):
            yield _problem(row, "source", row["source"])


def _name(artifact: str) -> str:
    return artifact.replace("table", "Table ")
