"""Numbers from item records: suite folders in, means with standard errors and counts out.

A suite folder holds `items.parquet`, one row per item and metric. Whose results they are is in the folder's path. Every
number of every artifact comes through `Measurements.value`; a number that cannot be made is an error that names it.
Only a run that diverged has no numbers to make (`NO_SCORE`), and seen items of a benchmark where none was seen
(`NO_ITEMS`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from trialign import diverged
from trialign.errors import UserError
from trialign.evaluation.records import RESULTS
from trialign.paths import SuiteId, parse_suite, run_of
from trialign.recipes import Column, Items
from trialign.reporting import statistics
from trialign.reporting.statistics import Stratum
from trialign.steps import RUN_JSON, Step

_KEY = ["benchmark", "metric"]
_ITEM = ["benchmark", "subset", "item"]
_COLUMNS = [*_ITEM, "metric", "value"]


class Value(NamedTuple):
    """A mean, its standard error (nan where undefined: a single item) and the number of item records behind it.

    value is nan, and n 0, where there is none: `missing` says why. df: degrees of freedom of the standard error.
    all_right: where it is the share of items that are right, each counting the same, the value if all were; else 0.
    alone: how many items that are each a question of its own would tell as much of such a share; else 0.
    """

    value: float
    stderr: float
    n: int
    missing: str = ""
    df: float = math.inf
    all_right: float = 0.0
    alone: float = 0.0

    @property
    def scored(self) -> bool:
        """Whether there is a value."""
        return not self.missing

    @property
    def numbers(self) -> tuple[float, float, int]:
        """Value, standard error and n."""
        return self.value, self.stderr, self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval over the items that were sampled, with several seeds also over the seeds (`statistics`).

        Wilson's of a share, otherwise the t-interval.
        """
        if self.all_right:
            low, high = statistics.interval_of_share(self.value / self.all_right, self.alone)
            return low * self.all_right, high * self.all_right
        return statistics.interval(self.value, self.stderr, self.df)

    def scaled(self, factor: float) -> Value:
        """Return the value in other units: `factor` 100 makes percent of an accuracy."""
        units = {name: getattr(self, name) * factor for name in ("value", "stderr", "all_right")}
        return self._replace(**units)


NO_SCORE = Value(math.nan, math.nan, 0, "training diverged")
NO_ITEMS = Value(math.nan, math.nan, 0, "no such item")


class Measured(NamedTuple):
    """One metric of one benchmark in one suite folder, as the mean over items and as the mean over subsets.

    names: of the subsets. records: the values by subset and item, sorted.
    """

    items: Value
    subsets: Value
    names: frozenset[str]
    records: pd.Series


Suite = dict[tuple[str, str], Measured]


def missing(values: Iterable[Value]) -> str:
    """Return why some of these values are not there; empty where all are."""
    return " or ".join(dict.fromkeys(value.missing for value in values if value.missing))


def mean(values: Sequence[Value]) -> Value:
    """Return the unweighted mean of independent values: standard error sqrt(sum se^2) / k, n their sum.

    Without a score where one of them has none.
    """
    if lacking := [value for value in values if not value.scored]:
        return lacking[0]
    if len(values) == 1:
        return values[0]
    k, variances = len(values), [value.stderr**2 for value in values]
    return Value(
        math.fsum(value.value for value in values) / k,
        math.sqrt(math.fsum(variances)) / k,
        sum(value.n for value in values),
        df=statistics.satterthwaite(variances, [value.df for value in values]),
    )


def read(folder: Path) -> Suite:
    """Read a suite folder: (benchmark, metric) -> its means, in the records' own units.

    UserError for records that are not numbers or occur twice.
    """
    return _suite(_items(folder))


def _items(folder: Path) -> pd.DataFrame:
    path = folder / "items.parquet"
    if not path.is_file():
        raise UserError(f"{path} is missing: evaluate this suite again (ask Snakemake for the folder {folder})")
    items = pd.read_parquet(path, columns=_COLUMNS)
    _check(items, path)
    return items


def _suite(items: pd.DataFrame) -> Suite:
    if items.empty:  # no item of a suite was seen
        return {}
    parts: dict[tuple[str, str], dict[str, Value]] = {}
    for (benchmark, metric, subset), value in _means(items, [*_KEY, "subset"]).items():
        parts.setdefault((benchmark, metric), {})[subset] = value
    records = dict(iter(items.set_index(["subset", "item"]).sort_index().groupby(_KEY)["value"]))
    return {
        key: Measured(value, mean(list(parts[key].values())), frozenset(parts[key]), records[key])
        for key, value in _means(items, _KEY).items()
    }


def _means(items: pd.DataFrame, keys: list[str]) -> dict[tuple[str, ...], Value]:
    """Return the mean of each group of items, with a standard error that lets the turns of a question hang together.

    A question is what an item's id says before its `/`. The error is the cluster-robust one, sqrt(Q / (Q - 1) * sum
    over questions of (sum of deviations)^2) / n, for Q questions and n items: sd / sqrt(n) where each item is its own.
    """
    groups = items.groupby(keys, sort=True)["value"]
    deviations = items["value"] - groups.transform("mean")
    asked = questions(items["subset"], items["item"])
    squares = (deviations.groupby([*(items[key] for key in keys), asked]).sum() ** 2).groupby(level=keys)
    clusters = squares.size()
    errors = (squares.sum() * clusters / (clusters - 1)).pow(0.5) / groups.size()
    shares = items["value"].isin((0.0, 1.0)).groupby([items[key] for key in keys]).all()
    found = {}
    for (key, centre), n in zip(groups.mean().items(), groups.size(), strict=True):
        asked_for, error, share = int(clusters[key]), float(errors[key]), bool(shares[key])
        alone = statistics.items_alone(float(centre), error, int(n), asked_for) if share else 0.0
        found[key] = Value(float(centre), error, int(n), "", asked_for - 1.0, float(share), alone)
    return found


def questions(subsets: pd.Series, items: pd.Series) -> pd.Series:
    """Return what question each item belongs to, whose turns hang together: its subset, and its id before its `/`."""
    return (subsets + "\0" + items.str.partition("/")[0]).rename("question")


def _check(items: pd.DataFrame, path: Path) -> None:
    bad = items[~np.isfinite(items["value"])]
    if len(bad):
        first = bad.iloc[0]
        raise UserError(
            f"{path}: {len(bad)} values are not numbers, first item '{first['item']}' of {first['benchmark']}, metric "
            f"{first['metric']}: such items are counted in a card, never kept as values"
        )
    twice = items[items.duplicated([*_ITEM, "metric"])]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(
            f"{path}: item '{first['item']}' of {first['benchmark']}, metric {first['metric']}, is there twice "
            f"({len(twice)} repeated records): keep one record for each item and metric"
        )


class Overlap:
    """Which items of benchmarks were seen in training: those that a training row of any of some data sets holds."""

    def __init__(self, folders: Iterable[Path]) -> None:
        """Read the results of overlap steps."""
        tables = [pd.read_parquet(folder / "items.parquet", columns=[*_ITEM, "train"]) for folder in folders]
        self._seen = pd.concat(tables).groupby(_ITEM)["train"].any()

    def split(self, items: pd.DataFrame, folder: Path) -> dict[Items, pd.DataFrame]:
        """Return the seen and the unseen of a suite's items; UserError for an item that was not searched for."""
        seen = self._seen.reindex(pd.MultiIndex.from_frame(items[_ITEM]))
        if seen.isna().any():
            benchmark, _, item = seen.index[seen.isna().argmax()]
            raise UserError(
                f"{folder}: item '{item}' of {benchmark} is not among the items whose questions were searched for in "
                f"training data: evaluate this suite again with the present config"
            )
        mask = seen.to_numpy(dtype=bool)
        return {"seen": items[mask], "unseen": items[~mask]}


class Measurements:
    """What the suite folders of one artifact hold, by lineage and seed."""

    def __init__(self, artifact: str, folders: Iterable[Path], overlaps: Sequence[Path] = ()) -> None:
        """Read `folders`, and where there are `overlaps`, the numbers of seen and unseen items also.

        UserError where two folders hold the same numbers, or where a benchmark has other subsets in one.
        """
        self.artifact = artifact
        self._runs: dict[tuple[str, int, Items], Suite] = {}
        self._diverged: set[tuple[str, int]] = set()
        self._folders: dict[tuple[str, int], Path] = {}
        self._subsets: dict[tuple[str, str, Items], tuple[frozenset[str], SuiteId]] = {}
        self._judges: dict[str, tuple[Any, Path]] = {}
        overlap = Overlap(overlaps) if overlaps else None
        for folder in folders:
            identity = parse_suite(folder)
            self._folders[identity.lineage, identity.seed] = run_of(folder)
            if diverged.read(folder):
                self._diverged.add((identity.lineage, identity.seed))
                continue
            if identity.judge:
                self._check_judge(identity.judge, folder)
            items = _items(folder)
            parts: dict[Items, pd.DataFrame] = {"all": items, **(overlap.split(items, folder) if overlap else {})}
            for split, part in parts.items():
                self._add(identity, split, _suite(part), folder)

    @classmethod
    def of(cls, step: Step[Any]) -> Measurements:
        """Read the inputs of an artifact's step."""
        return cls(step.recipe.name, step.inputs["results"], step.inputs.get("overlap", ()))

    def _check_judge(self, name: str, folder: Path) -> None:
        """Raise UserError where a judge of one name was another elsewhere: its prompts, or the model that responded."""
        path = folder / RESULTS
        judge = json.loads(path.read_text()).get("judge", {}) if path.is_file() else {}
        who = {key: judge.get(key) for key in ("model", "prompts", "served")}
        other, where = self._judges.setdefault(name, (who, folder))
        if differing := [key for key in who if who[key] != other[key]]:
            key = differing[0]
            raise UserError(
                f"{self.artifact}: judge '{name}' is not the same in {where} and {folder} ({key}: {other[key]} and "
                f"{who[key]}): scores do not compare; give the other a name of its own under `judges`, or judge again"
            )

    def _add(self, identity: SuiteId, split: Items, suite: Suite, folder: Path) -> None:
        run = self._runs.setdefault((identity.lineage, identity.seed, split), {})
        for key, measured in suite.items():
            if key in run:
                raise UserError(
                    f"{self.artifact}: {key[0]} ({key[1]}) of {identity.lineage}, seed {identity.seed}, comes from two "
                    f"folders, one of them {folder}: give one folder and one judge for each"
                )
            names, other = self._subsets.setdefault((*key, split), (measured.names, identity))
            if names != measured.names:
                raise UserError(
                    f"{self.artifact}: {key[0]} ({key[1]}) has other subsets for {identity.lineage}, seed "
                    f"{identity.seed}, than for {other.lineage}, seed {other.seed} "
                    f"({', '.join(sorted(names ^ measured.names)[:5])}): evaluate both on the same ones"
                )
        run.update(suite)

    def value(self, column: Column, lineage: str, seeds: Sequence[int]) -> Value:
        """Return a cell in the column's units: the mean over seeds of the mean over items, subsets or benchmarks.

        With several seeds it is taken on the items that all of them have. Without a score where a run has none: the
        mean of those that did not diverge would be another quantity.
        UserError that names the cell where an item record that it needs is missing.
        """
        runs = [mean([self._one(part, lineage, seed) for part in parts(column)]) for seed in seeds]
        if lacking := [value for value in runs if not value.scored]:
            return lacking[0]
        if len(runs) == 1:
            return runs[0]
        common = strata(self, column, [lineage], seeds)
        ((value, stderr, df),) = statistics.estimate(common)
        return Value(value, stderr, len(runs) * int(sum(stratum.sizes.sum() for stratum in common)), df=df)

    def chosen(self, lineage: str, seeds: Sequence[int]) -> str:
        """Return which candidate the last stage of a lineage took; with several seeds, each that any of them took."""
        records = [json.loads((self._folders[lineage, seed] / RUN_JSON).read_text()) for seed in seeds]
        return " or ".join(dict.fromkeys(record["facts"]["chosen"] for record in records))

    def records(self, part: Column, lineage: str, seed: int) -> pd.Series:
        """Return the values behind a scored number of one benchmark, by subset and item, in the records' own units."""
        return self._runs[lineage, seed, part.items][part.benchmark or "", part.metric or ""].records

    def count(self, benchmark: str) -> int:
        """Return how many items the benchmark has; UserError where no folder holds any."""
        counts = {
            measured.items.n
            for (_, _, split), suite in self._runs.items()
            if split == "all"
            for (name, _), measured in suite.items()
            if name == benchmark
        }
        if not counts:
            raise UserError(f"{self.artifact}: no item of benchmark '{benchmark}' in the results it was given")
        return max(counts)

    def _one(self, column: Column, lineage: str, seed: int) -> Value:
        if (lineage, seed) in self._diverged:
            return NO_SCORE
        key = (column.benchmark or "", column.metric or "")
        suite = self._runs.get((lineage, seed, "all"), {})
        measured = self._runs.get((lineage, seed, column.items), {}).get(key)
        if measured is None and key in suite:
            return NO_ITEMS
        if measured is None:
            there = ", ".join(f"{benchmark} ({metric})" for benchmark, metric in sorted(suite)) or "nothing"
            raise UserError(
                f"{self.artifact}: no result for column '{column.label}' of {lineage}, seed {seed}: its runs hold "
                f"{there}, not {column.benchmark} ({column.metric})"
            )
        return (measured.subsets if column.aggregate == "subsets" else measured.items).scaled(column.scale)


def parts(column: Column) -> tuple[Column, ...]:
    """Return the columns of single benchmarks whose mean a column is: itself for one of them."""
    return column.mean_of or (column,)


def strata(measured: Measurements, column: Column, lineages: Sequence[str], seeds: Sequence[int]) -> list[Stratum]:
    """Return the strata of a column over the items that all of these runs have; the rows are `lineages`.

    UserError where they have none in common.
    """
    return [
        stratum._replace(weight=stratum.weight / len(parts(column)))
        for part in parts(column)
        for stratum in _strata_of(measured, part, lineages, seeds)
    ]


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
