"""Verdicts on claims from what was measured: paired differences with intervals, Holm within a claim.

The rules are those of `docs/claims.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from trialign.claims import Claim, Comparison
from trialign.recipes import Column
from trialign.reporting import gather, pairs, statistics
from trialign.reporting.claims_read import Claimed
from trialign.reporting.gather import Measurements
from trialign.reporting.statistics import Difference, Floats, Stratum

SUPPORTED, CONTRADICTED, UNRESOLVED, NOT_RUN = "supported", "contradicted", "not resolved", "not run"
VERDICTS = (SUPPORTED, CONTRADICTED, UNRESOLVED, NOT_RUN)
_RANK = {CONTRADICTED: 0, UNRESOLVED: 1, SUPPORTED: 2}
ALPHA = 1 - statistics.LEVEL


class Finding(NamedTuple):
    """What was measured of a claim: the comparison that decides, in the claim's units, and the verdict.

    low, high: the 95% interval. p: two-sided, of no difference; p_holm: corrected for the claim's comparisons. n:
    items. Numbers are nan, and n 0, where there are none.
    """

    verdict: str
    note: str
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    n: int = 0


class Verdicts:
    """Gives claims their verdicts, from what was measured."""

    def __init__(self, claimed: Claimed, measured: Measurements) -> None:
        """Take the differences of all lineages that claims compare: once for each column, for a resample is of all."""
        self._claimed, self._measured = claimed, measured
        self._differences: dict[tuple[str, ...], dict[tuple[str, str], Difference]] = {}
        compared: dict[tuple[str, ...], dict[str, None]] = {}
        for claim in claimed.claims:
            if claim.id not in claimed.lacking and claim.kind != "larger effect":
                for a, b, column in claim.comparisons(claimed.points(claim)):
                    compared.setdefault(column, {}).update({a: None, b: None})
        for column, lineages in compared.items():
            found = pairs.differences(measured, self.column(column), list(lineages), claimed.seeds)
            self._differences[column] = dict(zip(combinations(lineages, 2), found, strict=True))

    def column(self, members: Sequence[str]) -> Column:
        """Return the column of a benchmark, or of the mean of several."""
        parts = tuple(self._claimed.columns[name] for name in members)
        return parts[0] if len(parts) == 1 else Column(label=self._claimed.label(members), mean_of=parts)

    def finding(self, claim: Claim) -> Finding:
        """Return the verdict on a claim. UserError where lineages that it compares have no item in common."""
        if reason := self._claimed.lacking.get(claim.id):
            return Finding(NOT_RUN, _sentence(reason))
        if claim.kind == "larger effect":
            return self._effect(claim)
        if claim.kind == "diverges":
            return self._diverges(claim)
        return self._compared(claim)

    def _difference(self, comparison: Comparison, factor: float) -> Difference:
        """Return a less b, times `factor`."""
        a, b, column = comparison
        known = self._differences[column]
        found, factor = (known[a, b], factor) if (a, b) in known else (known[b, a], -factor)
        low, high = sorted((found.low * factor, found.high * factor))
        return found._replace(
            difference=found.difference * factor, stderr=found.stderr * abs(factor), low=low, high=high
        )

    def _compared(self, claim: Claim) -> Finding:
        compared = claim.comparisons(self._claimed.points(claim))
        found = [self._difference(item, self._claimed.factor(claim, item.column)) for item in compared]
        adjusted = statistics.holm([item.p for item in found])
        verdicts = [verdict(item.low, item.high, p) for item, p in zip(found, adjusted, strict=True)]
        if claim.kind == "same":  # a difference on either side speaks against it, and no margin makes none
            verdicts = [UNRESOLVED if item == UNRESOLVED else CONTRADICTED for item in verdicts]

        def strength(i: int) -> tuple[int, float]:
            size = _ratio(found[i])
            return _RANK[verdicts[i]], -abs(size) if claim.kind == "same" else size

        i = claim.deciding(len(found), strength)
        notes = [*self._several(claim, compared, verdicts, i), *self._missing(compared), *self._size(claim, found[i])]
        return Finding(
            verdicts[i],
            " ".join(map(_sentence, notes)),
            *(found[i].difference, found[i].low, found[i].high, found[i].p, adjusted[i], found[i].n),
        )

    def _several(self, claim: Claim, compared: Sequence[Comparison], verdicts: Sequence[str], i: int) -> Iterable[str]:
        """Yield which comparison decides, and of several what became of each."""
        if len(compared) > 1:
            counts = [f"{verdicts.count(name)} {name}" for name in VERDICTS if name in verdicts]
            yield f"of {len(compared)} comparisons {', '.join(counts)}"
        yield f"shown: {self._told(compared[i])}"
        if claim.kind == "any":
            yield "it is chosen from many, so its difference is too large on average"

    def _told(self, comparison: Comparison) -> str:
        return f"{comparison.a} over {comparison.b} on {self._claimed.label(comparison.column)}"

    def _missing(self, compared: Sequence[Comparison]) -> Iterable[str]:
        """Yield which runs have no score."""
        without = {
            lineage: value.missing
            for a, b, column in compared
            for lineage in (a, b)
            if not (value := self._measured.value(self.column(column), lineage, self._claimed.seeds)).scored
        }
        for lineage, reason in without.items():
            yield f"no score of {lineage} ({reason}), so it is not compared"

    def _size(self, claim: Claim, found: Difference) -> Iterable[str]:
        """Yield whether a stated size is in the interval, where the experiment is compared with the paper."""
        if self._claimed.published is None or not claim.stated or math.isnan(found.low):
            return
        inside = found.low <= float(claim.stated) <= found.high
        yield f"the stated {claim.stated} is {'inside' if inside else 'outside'} the interval"

    def _diverges(self, claim: Claim) -> Finding:
        (comparison,) = claim.comparisons()
        a, b, members = comparison
        column, seeds = self.column(members), self._claimed.seeds
        scored = {
            lineage: [self._measured.value(column, lineage, (seed,)).scored for seed in seeds] for lineage in (a, b)
        }
        runs, lost = len(scored[a]), scored[a].count(False)
        if not all(scored[b]):
            return Finding(UNRESOLVED, _sentence(f"no score of {b}, which it is compared with: it diverged itself"))
        if lost:
            told = f"{lost} of {runs} runs ended when the loss ceased to be finite"
            return Finding(SUPPORTED if lost == runs else UNRESOLVED, _sentence(told))
        found = self._difference(comparison, self._claimed.factor(claim, members))
        below = found.high < 0
        told = f"it trained to the end, and scores {'below' if below else 'not clearly below'} {b}; shown: "
        told += self._told(comparison)
        numbers = (found.difference, found.low, found.high, found.p, found.p, found.n)
        return Finding(UNRESOLVED if below else CONTRADICTED, _sentence(told), *numbers)

    def _effect(self, claim: Claim) -> Finding:
        grid, column = self._claimed.grids[claim.id], self.column(claim.columns[0])
        points, seeds = self._claimed.points(claim), self._claimed.seeds
        if lost := [name for name in points if not self._measured.value(column, name, seeds).scored]:
            told = f"{len(lost)} of {len(points)} points have no score, {lost[0]} first, so the grid is not whole"
            return Finding(UNRESOLVED, _sentence(told))
        strata = gather.strata(self._measured, column, points, seeds)
        shape = (len(grid), len(next(iter(grid.values()))))
        d, low, high, p = effect(strata, shape, claim.a[0] == "alpha")
        many = self._claimed.factor(claim, claim.columns[0])
        told = f"shown: standard deviation of the means over {claim.a[0]}, less that over {claim.b[0]}"
        n = int(sum(stratum.sizes.sum() for stratum in strata))
        return Finding(verdict(low, high, p), _sentence(told), d * many, low * many, high * many, p, p, n)


def effect(strata: Sequence[Stratum], shape: tuple[int, int], first: bool) -> tuple[float, float, float, float]:
    """Return the larger effect of a parameter of a grid: difference of spreads, its 95% interval, two-sided p.

    strata: rows are the points of the grid, (first parameter) x (second parameter). A spread is the standard deviation
    (ddof 1) of the means over the other parameter. One seed: percentiles of resamples of items. Several: a t-interval
    on the mean over seeds of the difference, whose variance is that of the resamples plus that over seeds.
    """
    sign = 1 if first else -1
    per_seed = sum(stratum.weight * stratum.means for stratum in strata).T  # (seeds, points)
    found = sign * spreads(per_seed, shape)
    drawn = sign * spreads(statistics.resampled(strata), shape)
    seeds = len(found)
    if seeds == 1:
        low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2])
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        return float(found[0]), float(low), float(high), float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))
    d = float(found.mean())
    variances = [float(drawn.var(ddof=1)), float(found.var(ddof=1)) / seeds]
    clusters = sum(len(stratum.sizes) - 1 for stratum in strata)
    df = statistics.satterthwaite(variances, [clusters, seeds - 1])
    stderr = math.sqrt(sum(variances))
    return d, *statistics.interval(d, stderr, df), float(2 * stats.t.sf(abs(d) / stderr, df))


def spreads(points: Floats, shape: tuple[int, int]) -> Floats:
    """Return how much more the first parameter's means spread than the second's. points: (..., first x second)."""
    grid = points.reshape(-1, *shape)
    return grid.mean(axis=2).std(axis=1, ddof=1) - grid.mean(axis=1).std(axis=1, ddof=1)


def verdict(low: float, high: float, p: float) -> str:
    """Return what interval and p say of a claim that the difference is above 0. p: of several comparisons corrected."""
    if p > ALPHA or math.isnan(p):
        return UNRESOLVED
    return SUPPORTED if low > 0 else CONTRADICTED if high < 0 else UNRESOLVED


def _ratio(found: Difference) -> float:
    """Return a difference in standard errors; lowest where there is none, so that it is shown."""
    if math.isnan(found.difference):
        return -math.inf
    if found.difference == 0:
        return 0.0
    return found.difference / found.stderr if found.stderr else math.copysign(math.inf, found.difference)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
