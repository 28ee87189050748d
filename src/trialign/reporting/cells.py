"""The cells of an artifact: its rows and columns, by their several names, and the suites that each stands on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trialign import diverged, paths
from trialign.errors import UserError
from trialign.evaluation.records import ITEMS
from trialign.reporting.tree import SHOWN_NAMES, Input, Made, Record, Tree

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Part:
    """What one suite gives to a cell: a metric of a benchmark for one seed.

    items: which of the benchmark's (all, seen, unseen); n: how many there are, None where they are not there any more;
    suite: the fingerprint of the step that measured it, None where none of the artifact's inputs did; note: why n or
    suite is missing, or that the run diverged.
    """

    benchmark: str
    metric: str | None
    items: str
    seed: int
    n: int | None
    suite: str | None
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of an artifact: its row and column as the artifact names them, and what stands behind its number.

    lineage: None where a row is not a model. shown: the text in the artifact's csv; None where it is not there.
    """

    row: str
    column: str
    lineage: str | None
    shown: str | None
    parts: tuple[Part, ...] = ()


def find(path: Path, tree: Tree, made: Made, row: str | None, column: str | None) -> list[Cell]:
    """Return the cells of a row, a column, or both, of the artifact that `made` made; path: as it was asked for.

    row, column: see `explain.explain`. UserError: it has no cells; a row or column that is not there, with the nearest.
    """
    spots = _spots(tree, made)
    if not spots:
        raise UserError(f"{path}: this is made by a step '{made.step}', which has no rows and columns to ask for")
    csv = _csv(tree, made)
    return [
        Cell(spot.row, spot.column, spot.lineage, _shown(csv, spot), _parts(tree, made, spot))
        for spot in _choose(path, spots, row, column)
    ]


# --- where cells are --------------------------------------------------------------------------------------------------


class Spot(NamedTuple):
    """Where a cell is: the names of its row and column (the first as the artifact shows it), what it measures.

    line, heading: where its text stands in the csv: in this row, or in those with these values, under that heading.
    less: of a difference, the lineage that is taken from it.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    lineage: str | None
    measure: Mapping[str, Any]
    line: Mapping[str, str] | int
    heading: str
    less: str | None = None

    @property
    def row(self) -> str:
        """The row as the artifact shows it."""
        return self.rows[0]

    @property
    def column(self) -> str:
        """The column as the artifact shows it."""
        return self.columns[0]


def _spots(tree: Tree, made: Made) -> list[Spot]:
    """Return the cells of an artifact, by the shape of its recipe: other kinds may share one."""
    recipe = made.record["recipe"] if made.record else {}
    if "corner" in recipe and "cells" in recipe:
        return list(_pivot(recipe))
    if "cells" in recipe and "baseline" in recipe:
        return list(_grid(recipe))
    if "baseline" in recipe and "rows" in recipe:
        return list(_forest(recipe))
    if "benchmarks" in recipe and "rows" in recipe:
        return list(_facts(recipe))
    if recipe.get("step") == "results":
        return list(_results(tree, made, recipe))
    return list(_table(recipe, _csv(tree, made))) if recipe.keys() >= {"texts", "rows", "columns"} else []


def _names(column: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (column["label"], column.get("benchmark")))))


def _table(recipe: Record, csv: pd.DataFrame | None) -> Iterator[Spot]:
    for line, row in enumerate(recipe["rows"]):
        shown = row["texts"] if csv is None else csv.iloc[line]  # some texts are known only when the table is made
        texts = " ".join(shown[name] for name in recipe["texts"])
        for column in recipe["columns"]:
            yield Spot((texts, row["lineage"]), _names(column), row["lineage"], column, line, column["label"])


def _pivot(recipe: Record) -> Iterator[Spot]:
    for line, row in enumerate(recipe["rows"]):
        for column in recipe["columns"]:
            lineage = recipe["cells"][row][column]
            yield Spot((row, lineage), (column,), lineage, recipe["column"], line, column)


def _grid(recipe: Record) -> Iterator[Spot]:
    rows = [
        ((f"{alpha},{beta}", f"alpha={alpha},beta={beta}", lineage), lineage, {"alpha": alpha, "beta": beta})
        for alpha, betas in recipe["cells"].items()
        for beta, lineage in betas.items()
    ]
    rows += [((recipe["baseline_label"], recipe["baseline"]), recipe["baseline"], {"alpha": "", "beta": ""})]
    for names, lineage, place in rows:
        for column in recipe["columns"]:
            yield Spot(names, _names(column), lineage, column, {"panel": column["label"], **place}, "value")


def _forest(recipe: Record) -> Iterator[Spot]:
    baseline = recipe["baseline"]["lineage"]
    for row in recipe["rows"]:
        for column in recipe["columns"]:
            line = {"panel": column["label"], "lineage": row["lineage"]}
            names = row["label"], row["lineage"]
            yield Spot(names, _names(column), row["lineage"], column, line, "difference", baseline)


def _facts(recipe: Record) -> Iterator[Spot]:
    from trialign.reporting.tables import ITEMS as HEADING

    for line, (row, benchmark) in enumerate(zip(recipe["rows"], recipe["benchmarks"], strict=True)):
        texts = [row[column] for column in recipe["columns"]]
        measure = {"benchmark": benchmark, "metric": None}
        yield Spot((texts[0], " ".join(texts), benchmark), (HEADING,), None, measure, line, HEADING)


def _results(tree: Tree, made: Made, recipe: Record) -> Iterator[Spot]:
    measured = {
        (suite.lineage, benchmark): None  # a dict keeps the order
        for each in made.inputs
        for suite in _suites(tree, each)
        for benchmark in _measured(tree.record(each.fingerprint))
    }
    for lineage in dict.fromkeys(lineage for lineage, _ in measured):
        for column in recipe["columns"]:
            if (lineage, column["benchmark"]) in measured:
                line = {"lineage": lineage, "benchmark": column["benchmark"], "metric": column["metric"]}
                yield Spot((lineage,), _names(column), lineage, column, line, "value")


def _choose(path: Path, spots: Sequence[Spot], row: str | None, column: str | None) -> list[Spot]:
    """Return the cells of a row, a column, or both; UserError with the nearest names."""
    chosen = _named(row, spots, lambda spot: spot.rows)
    if not chosen:
        raise _no_such(path, "row", str(row), (spot.rows for spot in spots))
    found = _named(column, chosen, lambda spot: spot.columns)
    if not found:
        raise _no_such(path, "column", str(column), (spot.columns for spot in chosen))
    return found


def _named(asked: str | None, spots: Sequence[Spot], names: Callable[[Spot], tuple[str, ...]]) -> list[Spot]:
    """Return the cells that a name means: what the artifact shows goes before a lineage or a benchmark."""
    if asked is None:
        return list(spots)
    shown = [spot for spot in spots if _plain(names(spot)[0]) == _plain(asked)]
    return shown or [spot for spot in spots if _plain(asked) in map(_plain, names(spot))]


def _plain(text: str) -> str:
    return "".join(text.split()).casefold().replace("α", "alpha").replace("β", "beta")


def _no_such(path: Path, what: str, asked: str, names: Iterable[tuple[str, ...]]) -> UserError:
    shown = list(dict.fromkeys(names))
    plain = {_plain(name): name for group in reversed(shown) for name in reversed(group)}
    spelled = [name for name in plain if name.startswith(f"{_plain(asked)}@")]  # a lineage without its parameters
    close = [plain[match] for match in spelled or get_close_matches(_plain(asked), plain, n=SHOWN_NAMES)]
    if close:
        return UserError(f"{path}: no {what} '{asked}' (did you mean {' or '.join(map(repr, close))}?)")
    return UserError(f"{path}: no {what} '{asked}'; there are: {', '.join(repr(group[0]) for group in shown)}")


# --- what stands in one and behind it ---------------------------------------------------------------------------------


def _csv(tree: Tree, made: Made) -> pd.DataFrame | None:
    """Return an artifact's csv as text; None where it is not there."""
    import pandas as pd

    recipe = made.record["recipe"] if made.record else {}
    file = tree.file(made, f"{recipe.get('name', recipe.get('step'))}.csv")
    return None if file is None else pd.read_csv(file, dtype=str, keep_default_na=False)


def _shown(csv: pd.DataFrame | None, spot: Spot) -> str | None:
    """Return a cell's text in the artifact's csv."""
    if csv is None or spot.heading not in csv:
        return None
    if isinstance(spot.line, int):
        return csv[spot.heading].iloc[spot.line]
    for name, text in spot.line.items():
        csv = csv[csv[name].map(_number) == _number(text)]
    return ", ".join(csv[spot.heading]) or None  # a line for each seed


def _number(text: str) -> float | str:
    """Return a number as one, so that 1 and 1.0 are equal, and other text as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def _parts(tree: Tree, made: Made, spot: Spot) -> tuple[Part, ...]:
    """Return what stands behind a cell, for each benchmark of its column and each seed: of a difference, of both."""
    own = _parts_of(tree, made, spot, spot.lineage)
    less = _parts_of(tree, made, spot, spot.less) if spot.less else ()
    return own + tuple(replace(part, note="; ".join(filter(None, [f"less {spot.less}", part.note]))) for part in less)


def _parts_of(tree: Tree, made: Made, spot: Spot, lineage: str | None) -> tuple[Part, ...]:
    measures = spot.measure.get("mean_of") or (spot.measure,)
    suites = {
        (suite.seed, benchmark): each
        for each in made.inputs
        if each.name == "results"
        for suite in _suites(tree, each)
        if lineage in (None, suite.lineage)
        for benchmark in _measured(tree.record(each.fingerprint))
    }
    seeds = (made.record or {})["recipe"].get("seeds") or sorted({seed for seed, _ in suites})
    return tuple(
        _part(tree, made, measure, seed, suites.get((seed, measure["benchmark"])))
        for measure in measures
        for seed in seeds
    )


def _part(tree: Tree, made: Made, measure: Mapping[str, Any], seed: int, suite: Input | None) -> Part:
    named = measure["benchmark"], measure["metric"], measure.get("items", "all"), seed
    if suite is None:
        return Part(*named, None, None, "none of the artifact's inputs is known to be this run's: was it made anew?")
    folder = tree.file(tree.made(suite.fingerprint), ".")
    if folder is not None and diverged.read(folder):
        return Part(*named, 0, suite.fingerprint, "the training diverged")
    n = None if folder is None else _count(tree, made, folder, measure)
    return Part(*named, n, suite.fingerprint, "its items are not there any more" if n is None else "")


def _count(tree: Tree, made: Made, folder: Path, measure: Mapping[str, Any]) -> int | None:
    """Return how many item records a suite has for a measure; the most of any metric where none is named."""
    import pandas as pd

    from trialign.reporting.gather import Overlap

    if not (folder / ITEMS).is_file():
        return None
    items = pd.read_parquet(folder / ITEMS)
    items = items[items["benchmark"] == measure["benchmark"]]
    if measure["metric"] is None:
        return int(items["metric"].value_counts().max()) if len(items) else 0
    items = items[items["metric"] == measure["metric"]]
    split = measure.get("items", "all")
    if split != "all":
        found = [tree.file(tree.made(each.fingerprint), ".") for each in made.inputs if each.name == "overlap"]
        if None in found or not found:
            return None
        items = Overlap([each for each in found if each]).split(items, folder)[split]
    return len(items)


def _suites(tree: Tree, each: Input) -> list[paths.SuiteId]:
    """Return whose results an input is: by the places that hold it now, and by the path that the step was given."""
    folders = [place.folder for place in tree.places.get(each.fingerprint, ())]
    if each.given:
        folders.append(Path(each.given))
    found = []
    for folder in folders:
        try:
            found.append(paths.parse_suite(folder))
        except ValueError:
            continue  # what a person gave by hand
    return list(dict.fromkeys(found))


def _measured(record: Record | None) -> Collection[str]:
    """Return the benchmarks that a suite's step measured."""
    recipe = record["recipe"] if record else {}
    return recipe.get("benchmarks") or [recipe.get("benchmark")]
