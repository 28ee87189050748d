"""Paired differences of lineages in a column: from the item records of `gather` to the strata of `statistics`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, combinations

import pandas as pd

from trialign.errors import UserError
from trialign.recipes import Column
from trialign.reporting import statistics
from trialign.reporting.gather import Measurements, missing, questions
from trialign.reporting.statistics import Difference, Stratum


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


def strata(measured: Measurements, column: Column, lineages: Sequence[str], seeds: Sequence[int]) -> list[Stratum]:
    """Return the strata of a column over the items that all of these runs have; the rows are `lineages`.

    UserError where they have none in common.
    """
    parts = column.mean_of or (column,)
    return [
        stratum._replace(weight=stratum.weight / len(parts))
        for part in parts
        for stratum in _strata_of(measured, part, lineages, seeds)
    ]


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
    for part in column.mean_of or (column,):
        indices = [measured.records(part, lineage, seed).index for lineage in lineages for seed in seeds]
        if not all(index.equals(indices[0]) for index in indices):
            return False
    return True


def _strata_of(measured: Measurements, part: Column, lineages: Sequence[str], seeds: Sequence[int]) -> list[Stratum]:
    runs = [measured.records(part, lineage, seed) for lineage in lineages for seed in seeds]
    frame = pd.concat(runs, axis=1, join="inner", keys=range(len(runs)))
    if frame.empty:
        raise UserError(
            f"{measured.artifact}: {' and '.join(lineages)} have no item of column '{part.label}' in common: evaluate "
            "them on the same ones"
        )
    subsets, items = (frame.index.get_level_values(level).to_series(index=frame.index) for level in ("subset", "item"))
    stratum = subsets if part.aggregate == "subsets" else subsets.map(lambda _: "")
    clusters = frame.groupby([stratum.rename("stratum"), questions(subsets, items)])
    sizes = clusters.size()
    groups = clusters.sum().groupby(level="stratum")
    return [
        Stratum(
            name=f"{part.benchmark}/{name}",
            sums=sums.to_numpy().reshape(-1, len(lineages), len(seeds)),
            sizes=sizes[name].to_numpy(dtype=float),
            weight=part.scale / len(groups),
        )
        for name, sums in groups
    ]
