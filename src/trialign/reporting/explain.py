"""Where a result comes from: the chain of steps behind an artifact, one cell of it, a run or a data set.

Each step's record (`run.json`) names what made its inputs, as `<fingerprint>/<place in that result>`. `Tree` finds
records by their fingerprints, in the store and at the declared places; `follow` walks from one to all that it stands
on. Nothing here writes, and nothing but the results tree is read. `explain_text` prints a chain, `verify` checks it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trialign import diverged, paths, prune
from trialign.errors import UserError
from trialign.evaluation.records import ITEMS
from trialign.steps import RUN_JSON, digest

if TYPE_CHECKING:
    import pandas as pd

# where records lie in a results tree, beside the store: one for each folder that a rule or a step declares
RECORDS = (
    f"{paths.PROVENANCE}/*.json",
    "data/world/run.json",
    "data/*/*/run.json",
    "data/tokens/*/*/run.json",
    "data/reference/*/seed*/*/*/run.json",
    "runs/*/seed*/run.json",
    "runs/*/seed*/*/run.json",
    "runs/*/seed*/mtbench/*/run.json",
)
MODEL_STEPS = prune.MODEL_STEPS
SHOWN_NAMES = 3  # close matches that an error tells
_INPUT = re.compile(r"(?P<fingerprint>[0-9a-f]{32})/(?P<place>.+)")
Record = Mapping[str, Any]


class Place(NamedTuple):
    """A declared place of a result: its folder and its record, relative to the results tree."""

    folder: Path
    record: Path


class Input(NamedTuple):
    """An input of a step.

    fingerprint: of the step that made it; where no step did, of its contents, and `place` is None. place: where in that
    step's result. given: the path as the step was given it; None in records that do not say.
    """

    name: str
    fingerprint: str
    place: str | None
    given: str | None


@dataclass(frozen=True)
class Made:
    """A step of a chain.

    record: what its `run.json` says; None where nothing in the tree says what made it. places: where it is declared.
    stored: whether the store holds it. pruned: when `trialign prune` removed its model; None if it did not.
    """

    fingerprint: str
    record: Record | None
    places: tuple[Place, ...]
    stored: bool
    pruned: str | None
    inputs: tuple[Input, ...]

    @property
    def step(self) -> str:
        """The name of the step; empty where nothing says it."""
        return self.record["recipe"]["step"] if self.record else ""

    @property
    def where(self) -> str:
        """Where it lies, for people: its first declared place, or its folder in the store."""
        if not self.places:
            return f"{paths.STORE}/{self.fingerprint}"
        first = self.places[0]
        return (first.record if first.folder == Path() else first.folder).as_posix()


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


@dataclass(frozen=True)
class Chain:
    """The chain behind `top`, a fingerprint: every step that it stands on, itself first.

    cells: those that were asked for, none where all of it was; local: inputs that no step made, by their digest.
    """

    tree: Tree
    top: str
    cells: tuple[Cell, ...]
    steps: dict[str, Made]
    local: dict[str, Input] = field(default_factory=dict)

    def inputs(self, made: Made) -> list[Input]:
        """Return the inputs of a step that are part of this chain."""
        return [each for each in made.inputs if each.fingerprint in self.steps or each.fingerprint in self.local]

    @property
    def missing(self) -> list[Made]:
        """The steps of which nothing in the tree says what they were."""
        return [made for made in self.steps.values() if made.record is None]


class Tree:
    """A results tree, by fingerprint."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._records: dict[str, Record] = {}

    @cached_property
    def places(self) -> dict[str, list[Place]]:
        """Fingerprint -> the declared places that hold its result now."""
        found: dict[str, list[Place]] = {}
        for file in dict.fromkeys(file for pattern in RECORDS for file in sorted(self.root.glob(pattern))):
            record = read_record(file)
            if record is not None:
                inside = file.relative_to(self.root)
                folder = Path() if inside.parent == Path(paths.PROVENANCE) else inside.parent
                found.setdefault(record["fingerprint"], []).append(Place(folder, inside))
        return found

    @cached_property
    def artifact_files(self) -> dict[str, tuple[str, str]]:
        """Contents, as they identify a file without a record beside it -> the artifact's fingerprint, and the file."""
        records = (
            self.record(fingerprint) for fingerprint, places in self.places.items() if places[0].folder == Path()
        )
        return {
            digest({".": sha256}): (record["fingerprint"], name)
            for record in records
            if record
            for name, sha256 in record["files"].items()
        }

    @cached_property
    def pruned(self) -> dict[str, str]:
        """Fingerprint -> when `trialign prune` removed what lay there."""
        file = self.root / prune.MANIFEST
        lines = file.read_text().splitlines() if file.is_file() else []
        return {Path(folder).name: entry["removed"] for entry in map(json.loads, lines) for folder in entry["folders"]}

    def stored(self, fingerprint: str) -> Path:
        """Return the folder of a result in the store, be it there or not."""
        return self.root / paths.STORE / fingerprint

    def record(self, fingerprint: str) -> Record | None:
        """Return the record of a result: the store's or, where that is gone, that of a declared place."""
        if fingerprint not in self._records:
            files = [self.stored(fingerprint) / RUN_JSON]
            files += [self.root / place.record for place in self.places.get(fingerprint, ())]
            found = next((record for record in map(read_record, files) if record is not None), None)
            if found is None:
                return None
            self._records[fingerprint] = found
        return self._records[fingerprint]

    def made(self, fingerprint: str) -> Made:
        """Return the step that a fingerprint stands for."""
        record = self.record(fingerprint)
        return Made(
            fingerprint=fingerprint,
            record=record,
            places=tuple(self.places.get(fingerprint, ())),
            stored=(self.stored(fingerprint) / RUN_JSON).is_file(),
            pruned=self.pruned.get(fingerprint),
            inputs=tuple(self._inputs(record)) if record else (),
        )

    def folders(self, made: Made) -> list[Path]:
        """Return the folders that hold a result's files, relative to the tree: the declared ones, then the store's."""
        stored = [Path(paths.STORE) / made.fingerprint] if made.stored else []
        return [*(place.folder for place in made.places), *stored]

    def file(self, made: Made, name: str) -> Path | None:
        """Return the path of a file of a result, in the first folder that has it; None where none has."""
        files = (self.root / folder / name for folder in self.folders(made))
        return next((file for file in files if file.exists()), None)

    def _inputs(self, record: Record) -> Iterator[Input]:
        for name, group in record["inputs"].items():
            given = record.get("given", {}).get(name) or [None] * len(group)
            for text, path in zip(group, given, strict=True):
                if match := _INPUT.fullmatch(text):
                    yield Input(name, match["fingerprint"], match["place"], path)
                else:
                    yield Input(name, *self.artifact_files.get(text, (text, None)), path)


def read_record(file: Path) -> Record | None:
    """Return a step's record; None where the file is not one: not there, not JSON, the user's own of that name."""
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    is_one = isinstance(record, dict) and record.keys() >= {"fingerprint", "recipe", "inputs", "files"}
    return record if is_one else None


def find(path: Path) -> tuple[Tree, str]:
    """Return the results tree that a path lies in, and the fingerprint of what it belongs to.

    path: a file of an artifact, its name in the tree without a suffix, or a run, suite or data folder or what lies in
    one. UserError: in no results tree; made by no step; not there, with the nearest artifacts.
    """
    root = _root(path)
    tree, inside = Tree(root), path.resolve().relative_to(root.resolve())
    if inside.parts[:1] == (paths.STORE,) and len(inside.parts) > 1 and tree.record(inside.parts[1]):
        return tree, inside.parts[1]
    if len(inside.parts) == 1 and (artifact := _artifact(root, inside)):
        return tree, artifact
    for folder in [inside, *inside.parents]:
        record = read_record(root / folder / RUN_JSON)
        if record and _holds(record, inside.relative_to(folder)):
            return tree, record["fingerprint"]
    raise _unknown(root, path, inside)


def follow(tree: Tree, top: str, cells: Sequence[Cell] = (), only: Collection[str] | None = None) -> Chain:
    """Return the chain behind a fingerprint. only: the inputs of it that count; None: all."""
    steps: dict[str, Made] = {}
    local: dict[str, Input] = {}
    waiting = [top]
    while waiting:
        fingerprint = waiting.pop(0)
        if fingerprint in steps:
            continue
        made = steps[fingerprint] = tree.made(fingerprint)
        for each in made.inputs:
            if fingerprint == top and only is not None and each.fingerprint not in only:
                continue
            if each.place is None:
                local[each.fingerprint] = each
            else:
                waiting.append(each.fingerprint)
    return Chain(tree, top, tuple(cells), steps, local)


def explain(path: Path, row: str | None = None, column: str | None = None) -> Chain:
    """Return the chain behind a path or, with row or column, behind those cells of an artifact.

    row: its texts as they stand in the table, or a lineage; of a figure over alpha and beta "<alpha>,<beta>". column:
    its heading, or a benchmark. UserError: see `find`; a row or column that is not there, with the nearest.
    """
    tree, top = find(path)
    if row is None and column is None:
        return follow(tree, top)
    made = tree.made(top)
    spots = _spots(tree, made)
    if not spots:
        raise UserError(f"{path}: this is made by a step '{made.step}', which has no rows and columns to ask for")
    chosen = _choose(path, spots, row, column)
    csv = _csv(tree, made)
    cells = [Cell(spot.row, spot.column, spot.lineage, _shown(csv, spot), _parts(tree, made, spot)) for spot in chosen]
    needed = {part.suite for cell in cells for part in cell.parts if part.suite}
    if any(part.items != "all" for cell in cells for part in cell.parts):
        needed |= {each.fingerprint for each in made.inputs if each.name == "overlap"}
    return follow(tree, top, cells, needed)


def as_json(chain: Chain) -> dict[str, Any]:
    """Return a chain as JSON-able values, with each step's whole record."""
    return {
        "tree": str(chain.tree.root),
        "top": chain.top,
        "cells": [asdict(cell) for cell in chain.cells],
        "steps": {
            fingerprint: {
                "places": [place.folder.as_posix() for place in made.places],
                "stored": made.stored,
                "pruned": made.pruned,
                "inputs": [each._asdict() for each in chain.inputs(made)],
                "gpu_hours": gpu_hours(made.record),
                "record": made.record,
            }
            for fingerprint, made in chain.steps.items()
        },
        "local": {digest: each.given for digest, each in chain.local.items()},
        "totals": totals(chain),
    }


def gpu_hours(record: Record | None) -> float | None:
    """Return the GPU-hours of a step; None where its record does not say how many GPUs it had."""
    if record is None:
        return None
    gpus = record.get("gpus")
    if gpus is None and record.get("versions", {}).get("torch", "").endswith("+cpu"):  # a build that knows no GPU
        gpus = 0
    return None if gpus is None else gpus * record["seconds"] / 3600


def totals(chain: Chain) -> dict[str, Any]:
    """Return what the steps of a chain took: hours of work, GPU-hours, and for how many steps those are not known."""
    records = [made.record for made in chain.steps.values() if made.record]
    known = [hours for record in records if (hours := gpu_hours(record)) is not None]
    return {
        "steps": len(chain.steps),
        "missing": len(chain.missing),
        "hours": sum(record["seconds"] for record in records) / 3600,
        "gpu_hours": sum(known),
        "gpu_hours_unknown": len(chain.steps) - len(known),
        "hosts": sorted({record["host"] for record in records}),
    }


# --- from a path to a fingerprint -------------------------------------------------------------------------------------


def _root(path: Path) -> Path:
    for folder in [path, *path.parents]:
        if (folder / paths.STAMP).is_file() or (folder / paths.STORE).is_dir():
            return folder
    raise UserError(
        f"{path}: in no results tree (no {paths.STAMP} in any folder above it): give a file or folder of one, such as "
        "results/demo/table1.csv"
    )


def _artifact(root: Path, inside: Path) -> str | None:
    """Return the fingerprint of the artifact that a file at the top of the tree, or a bare name, is."""
    for file in sorted((root / paths.PROVENANCE).glob("*.json")):
        record = read_record(file)
        if record and (inside.as_posix() in record["files"] or inside.name == file.stem):
            return record["fingerprint"]
    return None


def _holds(record: Record, place: Path) -> bool:
    """Whether a result has this file, or files in this folder."""
    return (
        place == Path()
        or place.name == RUN_JSON
        or any(place in (Path(name), *Path(name).parents) for name in record["files"])
    )


def _unknown(root: Path, path: Path, inside: Path) -> UserError:
    records = filter(None, map(read_record, sorted((root / paths.PROVENANCE).glob("*.json"))))
    files = [
        sorted(record["files"], key=lambda name: (Path(name).suffix != inside.suffix, len(name))) for record in records
    ]
    names = [str(root / names[0]) for names in files if names]
    if path.is_dir() and (below := sorted(file.parent for file in path.rglob(RUN_JSON))):
        told = ", ".join(map(str, below[:SHOWN_NAMES]))
        return UserError(f"{path}: no step made this folder; there are records in {told}")
    if path.exists():
        return UserError(f"{path}: no step made this, so there is no record of it")
    close = get_close_matches(str(path), names, n=SHOWN_NAMES)
    told = f" (did you mean {' or '.join(close)}?)" if close else f"; artifacts there are: {', '.join(names) or 'none'}"
    return UserError(f"{path}: not there, and no artifact of {root} is called {inside}{told}")


# --- cells ------------------------------------------------------------------------------------------------------------


class Spot(NamedTuple):
    """Where a cell is: the names of its row and column (the first as the artifact shows it), what it measures.

    line, heading: where its text stands in the csv: in this row, or in those with these values, under that heading.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    lineage: str | None
    measure: Mapping[str, Any]
    line: Mapping[str, str] | int
    heading: str

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
    return "".join(text.split()).casefold()


def _no_such(path: Path, what: str, asked: str, names: Iterable[tuple[str, ...]]) -> UserError:
    shown = list(dict.fromkeys(names))
    plain = {_plain(name): name for group in reversed(shown) for name in reversed(group)}
    close = [plain[match] for match in get_close_matches(_plain(asked), plain, n=SHOWN_NAMES)]
    if close:
        return UserError(f"{path}: no {what} '{asked}' (did you mean {' or '.join(map(repr, close))}?)")
    return UserError(f"{path}: no {what} '{asked}'; there are: {', '.join(repr(group[0]) for group in shown)}")


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
    """Return what stands behind a cell, for each benchmark of its column and each seed of its row."""
    measures = spot.measure.get("mean_of") or (spot.measure,)
    suites = {
        (suite.seed, benchmark): each
        for each in made.inputs
        if each.name == "results"
        for suite in _suites(tree, each)
        if spot.lineage in (None, suite.lineage)
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
