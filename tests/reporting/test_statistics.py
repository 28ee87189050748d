"""The statistics against closed forms, scipy, statsmodels, and simulations whose truth is known."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from trialign.reporting.statistics import (
    RESAMPLES,
    Difference,
    Estimate,
    Stratum,
    differences,
    estimate,
    holm,
    interval,
    interval_of_share,
    items_alone,
    resampled,
    satterthwaite,
)


def items(values: np.ndarray, name: str = "arc/", weight: float = 1.0) -> Stratum:
    """Return a stratum in which each item is its own cluster. values: (items, rows) or (items, rows, seeds)."""
    sums = values[:, :, None] if values.ndim == 2 else values
    return Stratum(name, sums.astype(float), np.ones(len(values)), weight)


def turns(values: np.ndarray, name: str = "mtbench/") -> Stratum:
    """Return a stratum of questions with turns. values: (questions, turns, rows, seeds)."""
    return Stratum(name, values.sum(axis=1), np.full(len(values), float(values.shape[1])), 1.0)


def scores(random: np.random.Generator, rows: int, questions: int = 80) -> np.ndarray:
    """Return ratings from 1 to 10 of two turns, which hang together in a question and between rows."""
    question = random.normal(0, 1.5, (questions, 1, 1))
    both = random.normal(0, 1.2, (questions, 1, rows))
    each = random.normal(0, 1.5, (questions, 2, rows))
    return np.clip(np.rint(7.5 + question + both + each), 1, 10)[..., None]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(20240527)


# --- closed forms and other libraries ---------------------------------------------------------------------------------


def test_the_t_test_of_scores_is_scipys(random: np.random.Generator) -> None:
    values = random.integers(1, 11, (80, 4)).astype(float)
    for found, (i, j) in zip(differences([items(values)]), combinations(range(4), 2), strict=True):
        expected = stats.ttest_rel(values[:, i], values[:, j])
        assert found.difference == pytest.approx(values[:, i].mean() - values[:, j].mean())
        assert found.stderr == pytest.approx(stats.sem(values[:, i] - values[:, j]))
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert (found.n, found.test) == (80, "bootstrap, t")
        assert math.isnan(found.seeds_low) and math.isnan(found.seeds_high)


def test_mcnemars_test_is_statsmodels(random: np.random.Generator) -> None:
    values = (random.random((300, 5)) < [0.5, 0.52, 0.6, 0.9, 0.5]).astype(float)
    values[:, 4] = values[:, 0]  # two rows that never differ
    for found, (i, j) in zip(differences([items(values, weight=100)]), combinations(range(5), 2), strict=True):
        table = [[np.sum((values[:, i] == a) & (values[:, j] == b)) for b in (1, 0)] for a in (1, 0)]
        assert found.p == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-9)
        assert found.test == "bootstrap, McNemar"


def test_mcnemars_test_needs_single_items_that_are_right_or_wrong(random: np.random.Generator) -> None:
    right = (random.random((60, 2)) < 0.5).astype(float)
    two = [items(right[:30], "mmlu/a", 0.5), items(right[30:], "mmlu/b", 0.5)]
    in_turns = [turns(right.reshape(30, 2, 2, 1))]
    partly = [items(np.where(right == 1, 0.9, right))]
    for strata in (two, in_turns, partly):
        assert differences(strata)[0].test == "bootstrap, t"


def test_the_bootstrap_is_scipys_within_its_monte_carlo_error(random: np.random.Generator) -> None:
    """Percentiles of the same expanded level; each end's own error is sqrt(q (1 - q) / B) / density."""
    values = random.integers(1, 11, (80, 2)).astype(float)
    (found,) = differences([items(values)])
    level = 1 - 2 * stats.norm.cdf(-stats.t.ppf(0.975, 79) * math.sqrt(80 / 79))
    theirs = stats.bootstrap(
        (values[:, 0] - values[:, 1],), np.mean, n_resamples=50_000, method="percentile", confidence_level=level, rng=1
    ).confidence_interval
    error = math.sqrt((1 - level) / 2 / RESAMPLES) / stats.norm.pdf(stats.norm.ppf((1 - level) / 2)) * found.stderr
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=4 * error)


def test_resamples_have_the_exact_moments(random: np.random.Generator) -> None:
    """The mean of a resampled mean is the mean, its variance the plain variance over the number of items."""
    values = random.normal(5, 2, (200, 1))
    found = resampled([items(values)])[:, 0]
    variance = values.var() / 200
    assert found.mean() == pytest.approx(values.mean(), abs=4 * math.sqrt(variance / RESAMPLES))
    assert found.var() == pytest.approx(variance, rel=4 * math.sqrt(2 / RESAMPLES))


def test_turns_of_a_question_are_drawn_together(random: np.random.Generator) -> None:
    """Turns that agree say no more than one of them: the same numbers as of single items."""
    values = random.integers(1, 11, (80, 2)).astype(float)
    (single,) = differences([items(values, "mtbench/")])
    (twice,) = differences([turns(np.repeat(values[:, None, :, None], 2, axis=1))])
    assert twice[:7] == pytest.approx(single[:7], nan_ok=True)
    assert (single.n, twice.n) == (80, 160)


def test_the_error_of_clusters_of_other_sizes_is_the_ratio_estimators() -> None:
    """Two questions of 1 and 3 turns: the deviations of their sums from size x mean, by hand."""
    strata = [Stratum("x/", np.array([[[2.0], [0.0]], [[4.0], [0.0]]]), np.array([1.0, 3.0]), 1.0)]
    (found,) = differences(strata)
    assert found.difference == 1.5
    assert found.stderr == pytest.approx(math.sqrt(2 * (0.5**2 + 0.5**2)) / 4)


def test_a_mean_over_subsets_weighs_each_alike(random: np.random.Generator) -> None:
    """Welch and Satterthwaite: variances add, their degrees of freedom combine."""
    parts = [random.normal(m, s, (n, 2)) for m, s, n in ((1, 1, 5), (2, 3, 9), (4, 2, 30))]
    (found,) = differences([items(part, f"mmlu/{i}", 1 / 3) for i, part in enumerate(parts)])
    deltas = [part[:, 0] - part[:, 1] for part in parts]
    variances = [delta.var(ddof=1) / len(delta) / 9 for delta in deltas]
    df = sum(variances) ** 2 / sum(v * v / (len(d) - 1) for v, d in zip(variances, deltas, strict=True))
    assert found.difference == pytest.approx(np.mean([delta.mean() for delta in deltas]))
    assert found.stderr == pytest.approx(math.sqrt(sum(variances)))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.difference) / found.stderr, df))
    assert found.n == 44


def test_satterthwaite_is_welchs(random: np.random.Generator) -> None:
    a, b = random.normal(0, 1, 7), random.normal(0, 4, 12)
    found = satterthwaite([a.var(ddof=1) / 7, b.var(ddof=1) / 12], [6, 11])
    assert found == pytest.approx(stats.ttest_ind(a, b, equal_var=False).df)
    assert satterthwaite([0.0, 0.0], [3, 4]) == math.inf
    assert math.isnan(satterthwaite([1.0, math.nan], [3, 4]))
    assert satterthwaite([2.0, 0.0], [3, 4]) == 3


def test_holm_is_statsmodels_and_steps_around_what_is_not_there(random: np.random.Generator) -> None:
    values = random.random(20) ** 4
    expected = multipletests(values, method="holm")[1]
    assert holm(values.tolist()) == pytest.approx(expected)
    with_gap = holm([math.nan, *values, math.nan])
    assert with_gap[1:-1] == pytest.approx(expected)
    assert math.isnan(with_gap[0]) and math.isnan(with_gap[-1])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_intervals(random: np.random.Generator) -> None:
    values = random.normal(0, 1, 12)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert interval(values.mean(), stats.sem(values), 11) == pytest.approx(tuple(expected))
    assert interval(3.0, 0.0, math.inf) == (3, 3)
    assert all(map(math.isnan, interval(3.0, math.nan, math.nan)))
    for k, n in ((0, 20), (7, 20), (20, 20)):
        expected = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert interval_of_share(k / n, n) == pytest.approx(tuple(expected), abs=1e-12)


def test_over_seeds_alone_it_is_students_interval(random: np.random.Generator) -> None:
    """Items on which every seed moves alike: all variance is the seeds', and the mean has a t-interval over them."""
    for seeds in (2, 3, 5):
        effect = random.normal(0, 1, (2, seeds))
        (found,) = differences([items(np.ones((30, 1, 1)) * effect)])
        expected = stats.ttest_rel(effect[0], effect[1])
        ends = tuple(expected.confidence_interval())
        assert (found.seeds_low, found.seeds_high) == pytest.approx(ends)
        assert (found.low, found.high) == pytest.approx(ends, rel=1e-4)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-3)
        assert found.test == "t over items and seeds"


def test_what_all_seeds_agree_on_has_the_items_error(random: np.random.Generator) -> None:
    values = random.integers(1, 11, (80, 2)).astype(float)
    (one,), (many,) = differences([items(values)]), differences([items(np.repeat(values[..., None], 3, axis=2))])
    assert (many.difference, many.stderr, many.p) == pytest.approx((one.difference, one.stderr, one.p))
    assert (many.seeds_low, many.seeds_high) == pytest.approx((one.difference,) * 2)


def test_estimates_of_rows_and_differences_agree(random: np.random.Generator) -> None:
    """The difference from a row of zeros is the row."""
    values = random.normal(0, 1, (40, 2, 3)) + random.normal(0, 0.5, (1, 2, 3))
    values[:, 1] = 0
    (found,) = differences([items(values)])
    row, zero = estimate([items(values)])
    assert (found.difference, found.stderr) == pytest.approx((row.value, row.stderr))
    assert interval(*row) == pytest.approx((found.low, found.high))
    assert (zero.value, zero.stderr) == (0, 0)


# --- edges ------------------------------------------------------------------------------------------------------------


def test_rows_without_a_difference_have_none_for_certain() -> None:
    for values in (np.ones((5, 2)), np.full((5, 2), 7.25)):
        (found,) = differences([items(values)])
        assert (*found[:4], found.p) == (0, 0, 0, 0, 1)


def test_the_same_difference_on_every_item_is_certain() -> None:
    (found,) = differences([items(np.array([[3.0, 1.0]] * 6))])
    assert (*found[:4], found.p) == (2, 0, 2, 2, 0)


def test_a_single_cluster_has_no_error() -> None:
    (found,) = differences([turns(np.array([[[[8.0], [6.0]], [[7.0], [6.0]]]]))])
    assert found.difference == 1.5
    assert all(map(math.isnan, (found.stderr, found.low, found.high, found.p)))
    (row, _) = estimate([turns(np.array([[[[8.0], [6.0]], [[7.0], [6.0]]]]))])
    assert row.value == 7.5 and math.isnan(row.stderr)


def test_one_row_has_no_pairs() -> None:
    assert differences([items(np.ones((5, 1)))]) == []
    assert estimate([items(np.ones((5, 1)))]) == [Estimate(1, 0, math.inf)]


def test_a_benchmarks_resamples_are_the_same_whatever_stands_beside_it(random: np.random.Generator) -> None:
    values = random.normal(0, 1, (50, 3))
    whole = resampled([items(values)])
    assert resampled([items(values[:, :1])]) == pytest.approx(whole[:, :1])
    alone, beside = differences([items(values[:, :2])])[0], differences([items(values)])[0]
    assert alone[:7] == pytest.approx(beside[:7], nan_ok=True)
    assert not np.allclose(resampled([items(values, "winogrande/")]), whole)
    with_other = resampled([items(values, weight=0.5), items(values * 0, "winogrande/", 0.5)])
    assert with_other == pytest.approx(whole / 2)


# --- coverage ---------------------------------------------------------------------------------------------------------
# Of 2,000 intervals that cover 95%, 97 in 100 such simulations see 93.9 to 96.1%; the bar is 93 to 97%. `make test`
# simulates 500, of which 3 in 1,000 simulations would fall below 92%: that and 98% are its bounds.

PAIRS = 20  # independent pairs of rows in one call: rows 0 and 1, 2 and 3, ...
FULL = [pytest.param(500, id="500"), pytest.param(2000, id="2000", marks=pytest.mark.soak)]


def of_pairs(found: list[Difference], rows: int) -> list[Difference]:
    """Return the differences of rows 0 and 1, 2 and 3, ... among those of all pairs."""
    places = {pair: i for i, pair in enumerate(combinations(range(rows), 2))}
    return [found[places[i, i + 1]] for i in range(0, rows, 2)]


def check(what: str, truths: np.ndarray, found: list[tuple[float, float]]) -> None:
    low, high = np.array(found).T
    covered = float(np.mean((low <= truths) & (truths <= high)))
    print(f"{what}: {len(found)} intervals, {covered:.1%} cover")
    least, most = (0.93, 0.97) if len(found) >= 2000 else (0.92, 0.98)
    assert least <= covered <= most, what


@pytest.mark.parametrize("simulations", FULL)
def test_bootstrap_intervals_of_scores_cover(random: np.random.Generator, simulations: int) -> None:
    """MT-Bench: 160 ratings of 80 questions. The rows' ratings have one distribution: the true difference is 0."""
    found: list[tuple[float, float]] = []
    for number in range(simulations // PAIRS):
        values = np.concatenate([scores(random, 2) for _ in range(PAIRS)], axis=2)
        found += [pair[2:4] for pair in of_pairs(differences([turns(values, f"simulated {number}/")]), 2 * PAIRS)]
    check("bootstrap of scores, n = 160 in 80 clusters", np.zeros(len(found)), found)


@pytest.mark.parametrize("simulations", FULL)
def test_bootstrap_intervals_of_accuracies_cover(random: np.random.Generator, simulations: int) -> None:
    """ARC: 1172 items of all difficulties; a row has 3 points more than the other on average."""
    found: list[tuple[float, float]] = []
    for number in range(simulations // PAIRS):
        ease = random.beta(1.2, 0.8, (1172, PAIRS, 1)) * 0.97 + [0.03, 0.0]
        values = (random.random((1172, PAIRS, 2)) < ease).astype(float).reshape(1172, 2 * PAIRS)
        found += [pair[2:4] for pair in of_pairs(differences([items(values, f"simulated {number}/")]), 2 * PAIRS)]
    check("bootstrap of accuracies, n = 1172", np.full(len(found), 0.03), found)


@pytest.mark.parametrize("clusters", [5, 10, 20])
def test_bootstrap_intervals_of_few_clusters_cover(random: np.random.Generator, clusters: int) -> None:
    """What the expansion of the percentiles is for: the plain ones cover 84% of 5 clusters."""
    found: list[tuple[float, float]] = []
    for number in range(25):
        values = random.normal(0, 1, (clusters, 2 * PAIRS))
        found += [pair[2:4] for pair in of_pairs(differences([items(values, f"simulated {number}/")]), 2 * PAIRS)]
    check(f"bootstrap, {clusters} clusters", np.zeros(len(found)), found)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.95])
@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_intervals_of_shares_in_clusters_cover(random: np.random.Generator, share: float, alike: float) -> None:
    """Two turns of 80 questions, right or wrong, a part of them the same in both. Student's t covers 55 to 95%."""
    number = 2000
    first, second = (random.random((number, 80)) < share for _ in range(2))
    both = np.stack([first, np.where(random.random((number, 80)) < alike, first, second)], axis=2)
    means = both.mean(axis=(1, 2))
    errors = np.sqrt(80 / 79 * ((both - means[:, None, None]).sum(axis=2) ** 2).sum(axis=1)) / 160
    found = [interval_of_share(m, items_alone(m, se, 160, 80)) for m, se in zip(means, errors, strict=True)]
    low, high = np.array(found).T
    covered = float(np.mean((low <= share) & (share <= high)))
    print(f"share {share:g}, {alike:.0%} alike: {covered:.1%} cover")
    assert 0.93 <= covered <= 0.985  # of rare ones too many: shares come in steps
    assert low.min() >= 0 and high.max() <= 1 and (high > low).all()


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_over_seeds_cover(random: np.random.Generator, seeds: int) -> None:
    found: list[tuple[float, float]] = []
    for _ in range(2000 // PAIRS):
        values = np.ones((4, 1, 1)) * random.normal(0, 1, (1, 2 * PAIRS, seeds))
        found += [(d.seeds_low, d.seeds_high) for d in of_pairs(differences([items(values)]), 2 * PAIRS)]
    check(f"t over {seeds} seeds", np.zeros(len(found)), found)


# Standard deviations of the effects of items, seeds and both on a pair's difference, at 160 items in 80 clusters and
# at 1172 items: in scores a seed moves a difference by 0.1 to 0.3 points, in accuracy by half a point to two.
EFFECTS = {
    "scores, seeds scatter little": (80, 1.5, 0.1, 1.5),
    "scores, seeds scatter much": (80, 1.5, 0.3, 1.0),
    "accuracies, seeds scatter little": (1172, 0.3, 0.005, 0.3),
    "accuracies, seeds scatter much": (1172, 0.3, 0.02, 0.2),
}


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("name", EFFECTS)
def test_intervals_over_items_and_seeds_cover(random: np.random.Generator, name: str, seeds: int) -> None:
    """Items and seeds are crossed random effects, as in the model; of a row's own number and of a difference."""
    n, item, seed, both = EFFECTS[name]
    found: list[tuple[float, float]] = []
    for _ in range(2000 // PAIRS):
        values = random.normal(0, item, (n, PAIRS, 1)) + random.normal(0, seed, (1, PAIRS, seeds))
        values = values + random.normal(0, both, (n, PAIRS, seeds))
        found += [interval(*row) for row in estimate([items(values)])]
    check(f"t over items and {seeds} seeds: {name}", np.zeros(len(found)), found)
