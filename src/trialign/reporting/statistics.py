"""Statistics of item records: intervals of means, and paired differences of rows on the same items.

A number is a weighted sum of the means of strata (`Stratum`): one stratum where a benchmark is the mean over its items,
one for each subset where it is the mean over subsets, those of all members where it is a mean of benchmarks. Within a
stratum the clusters (questions, whose turns hang together) are what was sampled.

What a seed varies is the training: the order of the data, what is initialised, and the drawing of answers; the
training data and the benchmarks' items are the same. With one seed an interval is about the items alone. With several
it is about items and seeds: two or three seeds carry no bootstrap, so it is a t-interval (`_combined`).
docs/statistics.md says what was measured of their coverage.
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
from statsmodels.stats.proportion import proportion_confint

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


class Estimate(NamedTuple):
    """A number: its value, its standard error (nan for a single cluster), and the degrees of freedom of that."""

    value: float
    stderr: float
    df: float


def interval(value: float, stderr: float, df: float) -> tuple[float, float]:
    """Return the 95% t-interval of an estimate; nan where its standard error is."""
    half = float(_t(df)) * stderr if stderr else stderr
    return value - half, value + half


def interval_of_share(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's (1927) 95% interval of a share of n independent items (`items_alone`): within 0 and 1."""
    low, high = proportion_confint(share * n, n, alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)


def items_alone(share: float, stderr: float, n: int, clusters: int) -> float:
    """Return how many independent items tell as much of a share as n items in clusters: n over the design effect.

    share (1 - share) / stderr^2, between `clusters` and n; `clusters` where nothing varies (Korn and Graubard 1998,
    Survey Methodology 24, 193-201; with Wilson's interval: Dean and Pagano 2015, Journal of Survey Statistics and
    Methodology 3, 484-503).
    """
    if clusters == n:
        return float(n)
    return min(max(share * (1 - share) / stderr**2, float(clusters)), float(n)) if stderr else float(clusters)


def estimate(strata: Sequence[Stratum]) -> list[Estimate]:
    """Return the number of each row, its mean over seeds; the error holds the items and the seeds (`_combined`)."""
    found = _combined(_per_seed(strata), [_variances(_deviations(stratum)) for stratum in strata], _freedoms(strata))
    return [Estimate(*map(float, row)) for row in zip(_per_seed(strata).mean(axis=1), *found[:2], strict=True)]


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
    (Efron and Tibshirani 1993, chapter 13; expanded: `_bootstrap`); p by McNemar's exact test where items are right or
    wrong and each counts the same, otherwise by a t-test on cluster-robust errors. Several seeds: a t-interval and
    test on the mean over seeds, whose error holds the items and the seeds of the pair's differences (`_combined`).
    """
    rows, seeds = strata[0].sums.shape[1:]
    if rows < 2:
        return []
    left, right = (np.array(side, dtype=int) for side in zip(*combinations(range(rows), 2), strict=True))
    numbers = _per_seed(strata)
    deltas = numbers[left] - numbers[right]  # (pairs, seeds)
    d, parts = deltas.mean(axis=1), [_variances_of_pairs(stratum) for stratum in strata]
    se, df, seed_se = _combined(deltas, parts, _freedoms(strata))
    half = _t(df) * se
    low, high, p, test = d - half, d + half, _t_test(d, se, df), "t over items and seeds"
    if seeds == 1:
        low, high, test = *_bootstrap(strata, parts, df), "bootstrap, t"
        if _is_right_or_wrong(strata):
            p, test = _mcnemar(strata[0].sums[:, :, 0], left, right), "bootstrap, McNemar"
    seed_half = _t(seeds - 1) * seed_se if seeds > 1 else seed_se
    n = int(sum(stratum.sizes.sum() for stratum in strata))
    columns = (d, se, low, high, d - seed_half, d + seed_half, p)
    return [Difference(*map(float, each), n, test) for each in zip(*columns, strict=True)]


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


def _bootstrap(strata: Sequence[Stratum], parts: Sequence[Parts], df: Floats) -> tuple[Floats, Floats]:
    """Return the ends of each pair's percentile interval, expanded: nan where a stratum has a single cluster.

    Percentiles of resamples are those of a normal distribution with the variance (C - 1) / C of the unbiased one, for
    C clusters: too narrow where these are few. The expanded interval takes the percentiles Phi(-+ t s / s*) for the
    unbiased error s and the resamples' s*, t with the degrees of freedom of s (Hesterberg 2015, The American
    Statistician 69, 371-386).
    """
    numbers = resampled(strata)
    unbiased = sum(part.items for part in parts)
    drawn = sum(part.items * (1 - 1 / len(stratum.sizes)) for part, stratum in zip(parts, strata, strict=True))
    ratio = np.sqrt(np.divide(unbiased, drawn, out=np.ones_like(unbiased), where=(drawn > 0) | np.isnan(unbiased)))
    tails = stats.norm.cdf(-_t(df) * ratio)
    ends = np.full((len(tails), 2), math.nan)
    for pair, (i, j) in enumerate(combinations(range(numbers.shape[1]), 2)):
        if not math.isnan(tails[pair]):
            ends[pair] = np.quantile(numbers[:, i] - numbers[:, j], [tails[pair], 1 - tails[pair]])
    return ends[:, 0], ends[:, 1]


def _per_seed(strata: Sequence[Stratum]) -> Floats:
    """Return the number of each row and seed: (rows, seeds)."""
    return sum((stratum.weight * stratum.means for stratum in strata), start=np.zeros(1))


def _freedoms(strata: Sequence[Stratum]) -> list[int]:
    return [len(stratum.sizes) - 1 for stratum in strata]


class Parts(NamedTuple):
    """What a stratum puts into the variance of numbers (or of their differences): (numbers,) each.

    items: by the sampling of items, of the mean over seeds. interaction: the part of it by which the effects of seeds
    differ between items; 0 for one seed.
    """

    items: Floats
    interaction: Floats


def _deviations(stratum: Stratum) -> Floats:
    """Return by how much each cluster moves the number from its value: (clusters, rows, seeds)."""
    deviations = stratum.sums - stratum.sizes[:, None, None] * stratum.means
    return stratum.weight / stratum.sizes.sum() * deviations


def _variances(deviations: Floats) -> Parts:
    """Return the cluster-robust variances C / (C - 1) * sum of squares of (clusters, numbers, seeds); nan for C = 1."""
    clusters, _, seeds = deviations.shape
    scale = clusters / (clusters - 1) if clusters > 1 else math.nan
    means = deviations.mean(axis=2)
    rest = np.square(deviations - means[:, :, None]).sum(axis=(0, 2)) / (seeds * max(seeds - 1, 1))
    return Parts(scale * np.square(means).sum(axis=0), scale * rest)


def _variances_of_pairs(stratum: Stratum) -> Parts:
    """Return the variances of the differences of all pairs of rows, in their order."""
    deviations = _deviations(stratum)
    rows = range(deviations.shape[1] - 1)
    parts = [_variances(deviations[:, i : i + 1] - deviations[:, i + 1 :]) for i in rows]
    return Parts(*map(np.concatenate, zip(*parts, strict=True)))


class Combined(NamedTuple):
    """The standard errors of numbers, their degrees of freedom, and the errors over seeds alone: (numbers,) each."""

    stderr: Floats
    df: Floats
    seeds: Floats


def _combined(values: Floats, parts: Sequence[Parts], dfs: Sequence[int]) -> Combined:
    """Return the errors of means over seeds. values: (numbers, seeds); parts, dfs: of the strata.

    Items and seeds are crossed random effects, so the variance of the mean is that over items plus the seeds' own,
    which is the variance of the seeds' values less their interaction with the items that the first holds already
    (0 where that is more): Searle, Casella and McCulloch (1992), Variance Components. Two seeds leave one degree of
    freedom, with which Satterthwaite's intervals are far too narrow (88%). The half of the interval is therefore
    sqrt(t_items^2 v_items + t_seeds^2 v_seeds), the modified large-sample one (Howe 1974, Journal of the American
    Statistical Association 69, 789-794; Graybill and Wang 1980, ibid. 75, 869-873); df is where Student's t is as wide.
    """
    items, interaction = (np.sum(list(each), axis=0) for each in zip(*parts, strict=True))
    of_strata = np.array([part.items for part in parts]).T.tolist()
    df = np.array([satterthwaite(variances, dfs) for variances in of_strata])
    seeds = values.shape[1]
    if seeds == 1:
        return Combined(np.sqrt(items), df, np.full(len(df), math.nan))
    seed_variance = values.var(axis=1, ddof=1) / seeds
    own = np.maximum(seed_variance - interaction, 0)
    share = np.divide(own, items + own, out=np.zeros_like(own), where=items + own > 0)
    critical = np.sqrt((1 - share) * _t(df) ** 2 + share * _t(seeds - 1) ** 2)
    return Combined(np.sqrt(items + own), _df_of(critical), np.sqrt(seed_variance))


def _t(df: Floats | float) -> Floats:
    """Return the critical value of the 95% t-interval."""
    return np.asarray(stats.t.ppf((1 + LEVEL) / 2, df))


def _df_of(critical: Floats) -> Floats:
    """Return the degrees of freedom whose critical value this is, to 1e-6 of the value; at least 1."""
    grid = np.geomspace(1, 1e6, 20_000)
    return np.where(np.isnan(critical), math.nan, np.interp(-critical, -_t(grid), grid))


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
