"""Paired differences of lineages in a column: from the item records of `gather` to the strata of `statistics`.

A family is what p-values are corrected in: all pairs of a table's lineages in one column of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from typing import Literal, NamedTuple

from trialign.recipes import Column
from trialign.reporting import statistics
from trialign.reporting.gather import Measurements, Value, missing, parts, strata
from trialign.reporting.statistics import LEVEL, Difference

Mark = Literal["", "best", "near"]


class Pair(NamedTuple):
    """Two lineages in a column (its label), a less b, with p corrected within the column's family by Holm's method."""

    column: str
    a: str
    b: str
    difference: Difference
    p_holm: float


def family(measured: Measurements, column: Column, lineages: Sequence[str], seeds: Sequence[int]) -> list[Pair]:
    """Return all pairs of a table's lineages in a column, a lineage that is there twice taken once.

    UserError as for `differences`.
    """
    once = list(dict.fromkeys(lineages))
    found = differences(measured, column, once, seeds)
    corrected = statistics.holm([difference.p for difference in found])
    return [
        Pair(column.label, *pair, difference, p)
        for pair, difference, p in zip(combinations(once, 2), found, corrected, strict=True)
    ]


def marks(values: Mapping[str, Value], family: Sequence[Pair]) -> dict[str, Mark]:
    """Return what is best of a family, and what is near: its difference from the best may be none (p_holm >= 0.05).

    values: of its lineages. Larger is better, as for every metric here. A lineage without a score has no mark, and one
    alone has none. Where p is not defined (a single item) nothing is told apart from the best.
    """
    scored = {lineage: value.value for lineage, value in values.items() if value.scored}
    if len(scored) < 2:
        return {}
    best = max(scored, key=scored.__getitem__)
    worse = {pair.b if pair.a == best else pair.a for pair in family if best in pair[1:3] and pair.p_holm < 1 - LEVEL}
    return {
        lineage: "best" if value == scored[best] else "near"
        for lineage, value in scored.items()
        if lineage not in worse
    }


def differences(
    measured: Measurements, column: Column, lineages: Sequence[str], seeds: Sequence[int]
) -> list[Difference]:
    """Return the paired difference of every two lineages (first less second; 0 and 1, 0 and 2, ..., 1 and 2, ...).

    It is taken on the items that both have, in all seeds, in the column's units. Missing where one of them has no
    value. UserError where two have no item in common.
    """
    values = {lineage: measured.value(column, lineage, seeds) for lineage in lineages}
    scored = [lineage for lineage in lineages if values[lineage].scored]
    found = _scored(measured, column, scored, seeds)
    return [
        found.get(pair) or Difference(*[math.nan] * 7, 0, "", missing(values[name] for name in pair))
        for pair in combinations(lineages, 2)
    ]


def against(
    measured: Measurements, column: Column, lineages: Sequence[str], baseline: str, seeds: Sequence[int]
) -> list[Difference]:
    """Return the paired difference of each lineage less the baseline, which is none of them; as `differences` else."""
    rows = [*lineages, baseline]
    found = zip(combinations(rows, 2), differences(measured, column, rows, seeds), strict=True)
    return [difference for (_, other), difference in found if other == baseline]


def _scored(
    measured: Measurements, column: Column, lineages: list[str], seeds: Sequence[int]
) -> dict[tuple[str, str], Difference]:
    """Return the differences of lineages that have values: all at once where all have the same items."""
    pairs = list(combinations(lineages, 2))
    at_once = _same_items(measured, column, lineages, seeds)
    groups = [lineages] if at_once else [list(pair) for pair in pairs]
    found = [statistics.differences(strata(measured, column, group, seeds)) for group in groups if pairs]
    return dict(zip(pairs, chain.from_iterable(found), strict=True))


def _same_items(measured: Measurements, column: Column, lineages: Sequence[str], seeds: Sequence[int]) -> bool:
    for part in parts(column):
        indices = [measured.records(part, lineage, seed).index for lineage in lineages for seed in seeds]
        if not all(index.equals(indices[0]) for index in indices):
            return False
    return True
