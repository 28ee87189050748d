"""Means and their standard errors against scipy, statsmodels and formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from trialign.evaluation.records import Item, mean, mean_of_clusters, mean_of_subsets, publish


def test_mean_agrees_with_scipy():
    values = np.random.default_rng(1).normal(size=37).tolist()
    assert mean(values) == pytest.approx((np.mean(values), stats.sem(values)), rel=1e-12)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_mean_where_a_value_is_missing(values):
    assert mean(values) == (None, None)


def test_one_value_has_no_error():
    assert mean([3.0]) == (3.0, None)


def test_subsets_weigh_the_same_whatever_their_size():
    small, large = [1.0, 0.0], [1.0] * 9 + [0.0]
    value, error = mean_of_subsets([small, large])
    assert value == pytest.approx((0.5 + 0.9) / 2)
    assert error == pytest.approx(math.sqrt(stats.sem(small) ** 2 + stats.sem(large) ** 2) / 2)


def test_clusters_of_one_are_plain_values_and_equal_twins_add_nothing():
    values = np.random.default_rng(2).integers(1, 11, size=25).astype(float).tolist()
    plain = mean(values)
    assert mean_of_clusters([(str(i), v) for i, v in enumerate(values)]) == pytest.approx(plain)
    # a second turn that only repeats the first holds no news: the error must not shrink by sqrt(2)
    assert mean_of_clusters([(str(i), v) for i, v in enumerate(values) for _ in range(2)]) == pytest.approx(plain)


def test_items_keep_their_types_and_results_refuse_nan(tmp_path):
    publish(tmp_path, [Item("arc", "", "0-ab", "acc", 1)], {"value": None})
    frame = pd.read_parquet(tmp_path / "items.parquet")
    assert list(frame) == ["benchmark", "subset", "item", "metric", "value"]
    assert frame["value"].dtype == "float64"
    with pytest.raises(ValueError, match="JSON"):
        publish(tmp_path, [], {"value": math.nan})
