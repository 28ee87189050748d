"""A results tree, read by fingerprint: what made a file, where results are declared and stored, what they stand on.

Each step's record (`run.json`) names what made its inputs, as `<fingerprint>/<place in that result>`. `find` goes from
a path to a fingerprint, `Tree` from a fingerprint to its record and places. Nothing here writes, and nothing but the
results tree is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from trialign import paths, prune
from trialign.errors import UserError
from trialign.steps import RUN_JSON, digest

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
        return UserError(f"{path}: no record in the tree names this: no step made it, or its record is gone")
    close = get_close_matches(str(path), names, n=SHOWN_NAMES)
    told = f" (did you mean {' or '.join(close)}?)" if close else f"; artifacts there are: {', '.join(names) or 'none'}"
    return UserError(f"{path}: not there, and no artifact of {root} is called {inside}{told}")
