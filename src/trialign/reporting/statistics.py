"""Statistics of item records: intervals of means, and paired differences of rows on the same items.

A number is a weighted sum of the means of strata (`Stratum`): one stratum where a benchmark is the mean over its items,
one for each subset where it is the mean over subsets, those of all members where it is a mean of benchmarks. Within a
stratum the clusters (questions, whose turns hang together) are what was sampled.

What a seed varies is the training: the order of the data, what is initialised, and the drawing of answers; the
training data and the benchmarks' items are the same. With one seed an interval is about the items alone. With several
it is about items and seeds: two or three seeds carry no bootstrap, so it is a t-interval, with the degrees of freedom
of Satterthwaite (1946) for the sum of both variances.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

LEVEL = 0.95
RESAMPLES = 5000
_AT_A_TIME = 500  # resamples, so that 10,000 items take 40 MB

Floats = NDArray[np.float64]


class Stratum(NamedTuple):
    """Clusters of items that all rows were measured on.

    name: of the stratum, the same in every table: it seeds its resamples. sums: (clusters, rows, seeds), of the values
    of a cluster's items. sizes: (clusters,), its number of items. weight: of the stratum's mean in the number.
    """

    name: str
    sums: Floats
    sizes: Floats
    weight: float

    @property
    def means(self) -> Floats:
        """(rows, seeds)."""
        return self.sums.sum(axis=0) / self.sizes.sum()


class Difference(NamedTuple):
    """The first row less the second, on the same items, in the number's units.

    low, high: the 95% interval. seeds_low, seeds_high: the t-interval over seeds alone; nan for one seed. p: two-sided,
    of no difference. n: items. test: how low, high and p were found. missing: why there is no difference, and all
    numbers are nan.
    """

    difference: float
    stderr: float
    low: float
    high: float
    seeds_low: float
    seeds_high: float
    p: float
    n: int
    test: str
    missing: str = ""


def interval(value: float, stderr: float, df: float) -> tuple[float, float]:
    """Return the 95% t-interval of an estimate; nan where its standard error is."""
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * stderr if stderr else stderr
    return value - half, value + half


def satterthwaite(variances: Sequence[float], dfs: Sequence[float]) -> float:
    """Return the degrees of freedom of a sum of independent variance estimates: (sum v)^2 / sum(v^2 / df).

    Satterthwaite (1946), Biometrics Bulletin 2, 110-114. Infinite where all variances are 0, nan where one is.
    """
    if any(map(math.isnan, variances)):
        return math.nan
    total = math.fsum(variances)
    spread = math.fsum(v * v / df for v, df in zip(variances, dfs, strict=True) if v)
    return total * total / spread if spread else math.inf


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's (1979) step-down adjustment of a family of p-values; those that are nan stay so, outside of it."""
    values = np.array(p_values, dtype=float)
    known = ~np.isnan(values)
    if known.any():
        values[known] = multipletests(values[known], alpha=1 - LEVEL, method="holm")[1]
    return values.tolist()


def differences(strata: Sequence[Stratum]) -> list[Difference]:
    """Return the difference of every pair of rows (0 and 1, 0 and 2, ..., 1 and 2, ...).

    One seed: a percentile interval of RESAMPLES resamples of clusters within strata, the same resamples for all rows
    (Efron and Tibshirani 1993, chapter 13); p by McNemar's exact test where items are right or wrong and each counts
    the same, otherwise by a t-test on cluster-robust errors. Several seeds: a t-interval and test on the mean over
    seeds, whose variance is that over items plus that over seeds, both of the pair's differences.
    """
    rows, seeds = strata[0].sums.shape[1:]
    if rows < 2:
        return []
    left, right = (np.array(side, dtype=int) for side in zip(*combinations(range(rows), 2), strict=True))
    per_seed = sum(stratum.weight * stratum.means for stratum in strata)
    deltas = per_seed[left] - per_seed[right]  # (pairs, seeds)
    d = deltas.mean(axis=1)
    variances, dfs = _item_variances(strata, left, right), [len(stratum.sizes) - 1 for stratum in strata]
    seed_se = deltas.std(axis=1, ddof=1) / math.sqrt(seeds) if seeds > 1 else np.full(len(d), math.nan)
    if seeds > 1:
        variances, dfs = np.vstack([variances, seed_se**2]), [*dfs, seeds - 1]
    se = np.sqrt(variances.sum(axis=0))
    df = np.array([satterthwaite(column, dfs) for column in variances.T.tolist()])
    half = stats.t.ppf((1 + LEVEL) / 2, df) * se
    low, high, test = d - half, d + half, "t over items and seeds"
    p = _t_test(d, se, df)
    if seeds == 1:
        low, high, test = *_bootstrap(strata, left, right), "bootstrap, t"
        if _is_right_or_wrong(strata):
            p, test = _mcnemar(strata[0].sums[:, :, 0], left, right), "bootstrap, McNemar"
    seed_half = float(stats.t.ppf((1 + LEVEL) / 2, seeds - 1)) * seed_se if seeds > 1 else seed_se
    n = int(sum(stratum.sizes.sum() for stratum in strata))
    columns = (d, se, low, high, d - seed_half, d + seed_half, p)
    return [Difference(*map(float, numbers), n, test) for numbers in zip(*columns, strict=True)]


def resampled(strata: Sequence[Stratum]) -> Floats:
    """Return the number of each row, averaged over seeds, in each of RESAMPLES resamples: (resamples, rows)."""
    total = np.zeros((RESAMPLES, strata[0].sums.shape[1]))
    for stratum in strata:
        sums = stratum.sums.mean(axis=2)
        start = 0
        for counts in _counts(stratum.name, len(stratum.sizes)):
            part = slice(start, start + len(counts))
            total[part] += stratum.weight * (counts @ sums) / (counts @ stratum.sizes)[:, None]
            start += len(counts)
    return total


def _counts(name: str, clusters: int) -> Iterator[Floats]:
    """Yield how often each cluster is drawn in each resample, (some resamples, clusters); the same for a name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    for start in range(0, RESAMPLES, _AT_A_TIME):
        rows = min(_AT_A_TIME, RESAMPLES - start)
        drawn = random.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(float)


def _bootstrap(strata: Sequence[Stratum], left: NDArray[np.int_], right: NDArray[np.int_]) -> tuple[Floats, Floats]:
    numbers = resampled(strata)
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    ends = [np.quantile(numbers[:, i] - numbers[:, j], tails) for i, j in zip(left, right, strict=True)]
    return tuple(np.array(ends).T)


def _item_variances(strata: Sequence[Stratum], left: NDArray[np.int_], right: NDArray[np.int_]) -> Floats:
    """Return the cluster-robust variance of each pair's difference in each stratum: (strata, pairs).

    C / (C - 1) * sum over clusters of (sum of deviations)^2 / n^2, for C clusters and n items.
    """
    found = []
    for _, sums, sizes, weight in strata:
        rows = sums.mean(axis=2)
        deviations = rows - sizes[:, None] * (rows.sum(axis=0) / sizes.sum())
        clusters, pairs = len(sizes), zip(left, right, strict=True)
        squares = np.array([np.square(deviations[:, i] - deviations[:, j]).sum() for i, j in pairs])
        found.append(weight**2 * squares / sizes.sum() ** 2 * (clusters / (clusters - 1) if clusters > 1 else math.nan))
    return np.array(found)


def _t_test(d: Floats, se: Floats, df: Floats) -> Floats:
    """Return two-sided p-values; where no item differs in its difference, 1 for none and 0 for the same on all."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(d) / se, df)
    return np.where(se == 0, np.where(d == 0, 1.0, 0.0), p)


def _is_right_or_wrong(strata: Sequence[Stratum]) -> bool:
    """Whether McNemar's test applies: a plain mean over items, each 0 or 1 and its own cluster."""
    first = strata[0]
    return len(strata) == 1 and bool((first.sizes == 1).all() and np.isin(first.sums, (0.0, 1.0)).all())


def _mcnemar(values: Floats, left: NDArray[np.int_], right: NDArray[np.int_]) -> Floats:
    """Return p of McNemar's exact test: of the items that one row alone has right, half are expected in each."""
    only = values.T @ (1 - values)  # (i, j): i right, j wrong
    ahead, behind = only[left, right], only[right, left]
    return np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(ahead, behind), ahead + behind, 0.5))
