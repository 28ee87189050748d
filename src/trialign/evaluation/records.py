"""What a suite folder holds: `items.parquet`, one row per item and metric, and `results.json`, what they sum up to.

Artifacts read the items; `results.json` is for people and for checks. Neither holds a time or a path, so that a rerun
gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

ITEMS = "items.parquet"
RESULTS = "results.json"


class Item(NamedTuple):
    """One measured value: `metric` of `item` (a stable id) of a benchmark's `subset` ("" where there are none)."""

    benchmark: str
    subset: str
    item: str
    metric: str
    value: float


def publish(out: Path, items: Sequence[Item], results: dict[str, Any]) -> None:
    """Write the items and the results of a suite into the folder `out`."""
    import pandas as pd

    frame = pd.DataFrame(items, columns=list(Item._fields)).astype({"value": "float64"})
    frame.to_parquet(out / ITEMS, index=False)
    (out / RESULTS).write_text(
        json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    )


def mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and its standard error, sd (n - 1) / sqrt(n).

    Both are None where a value is not finite or none is there, the error also where n is 1.
    """
    n = len(values)
    if not n or not all(map(math.isfinite, values)):
        return None, None
    centre = math.fsum(values) / n
    squares = math.fsum((value - centre) ** 2 for value in values)
    return centre, math.sqrt(squares / (n - 1) / n) if n > 1 else None


def mean_of_subsets(subsets: Iterable[Sequence[float]]) -> tuple[float | None, float | None]:
    """Return the unweighted mean of the subsets' means and its standard error, sqrt(sum of squared errors) / count."""
    means, errors = zip(*map(mean, subsets), strict=True)
    if None in means:
        return None, None
    error = None if None in errors else math.hypot(*errors) / len(errors)
    return math.fsum(means) / len(means), error


def mean_of_clusters(values: Sequence[tuple[str, float]]) -> tuple[float | None, float | None]:
    """Return the mean of all values and its standard error where the values of a cluster (a question) hang together.

    values: (cluster, value), sorted by cluster. The error is the cluster-robust one,
    sqrt(Q / (Q - 1) * sum over clusters of (sum of deviations)^2) / n, for Q clusters and n values.
    """
    centre, _ = mean([value for _, value in values])
    if centre is None:
        return None, None
    sums = [math.fsum(value - centre for _, value in group) for _, group in groupby(values, key=lambda pair: pair[0])]
    count = len(sums)
    return centre, math.sqrt(count / (count - 1)) * math.hypot(*sums) / len(values) if count > 1 else None
