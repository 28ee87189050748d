"""The claims file: what a paper says of its results, each sentence as data. Read and checked here, judged elsewhere.

A row compares lineages on benchmarks. `docs/claims.md` says what each kind means and how it is judged. The config reads
this module, so it imports nothing heavy.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict

from trialign.errors import UserError, nearest, unknown
from trialign.lineage import Lineage

Kind = Literal["difference", "pairs", "best", "most", "any", "same", "larger effect", "diverges", "orders"]
Unit = Literal["", "points", "%", "orders"]
KINDS: tuple[str, ...] = get_args(Kind)
UNITS: tuple[str, ...] = get_args(Unit)
HEADINGS = ("id", "claim", "quote", "source", "kind", "a", "b", "column", "stated", "unit", "artifacts")
GRID = "grid"  # in place of lineages: all points of the figure that the claim is about
EFFECTS = ("alpha", "beta")  # what a larger effect compares
SETTINGS = ("learning_rate",)  # what orders of magnitude are of
MEAN = "mean of "  # before the benchmarks of a column: their mean, in place of each
_ID = re.compile(r"[a-z0-9][a-z0-9-]*")
_NUMBER = re.compile(r"\d+(\.\d+)?")
# kind -> how many a and b it compares: one, or any number
_SIDES = {"difference": (1, 1), "best": (1, 0), "any": (0, 1), "same": (1, 0), "diverges": (1, 1),
          "larger effect": (1, 1), "orders": (1, 1)}  # fmt: skip


class Comparison(NamedTuple):
    """Lineage a above lineage b, on a benchmark or the mean of several."""

    a: str
    b: str
    column: tuple[str, ...]


class Claim(BaseModel):
    """One claim.

    claim: a sentence without the paper's numbers; quote: the paper's words. a, b: lineages (for `larger effect`
    parameters). columns: each a benchmark, or the members of a mean. stated: a size as it is printed, or "". artifacts:
    the paper's tables and figures that it is about; where a number is in several, the first counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    claim: str
    quote: str
    source: str
    kind: Kind
    a: tuple[str, ...]
    b: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    stated: str
    unit: Unit
    artifacts: tuple[str, ...]

    @property
    def lineages(self) -> tuple[str, ...]:
        """The lineages that it names."""
        return () if self.kind == "larger effect" else tuple(name for name in (*self.a, *self.b) if name != GRID)

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks that it names, each once."""
        return tuple(dict.fromkeys(name for members in self.columns for name in members))

    @property
    def of_grid(self) -> bool:
        """Whether it is about all points of a figure."""
        return self.kind == "larger effect" or GRID in (*self.a, *self.b)

    def renamed(self, names: Mapping[str, str]) -> Claim:
        """Return the claim with other names of some lineages."""
        a, b = (tuple(names.get(name, name) for name in side) for side in (self.a, self.b))
        return self.model_copy(update={"a": a, "b": b})

    def grid(self, figures: Mapping[str, dict[str, dict[str, str]]]) -> dict[str, dict[str, str]]:
        """Return the points of its figure, alpha -> beta -> lineage; none where it is about no figure of these."""
        return next((figures[name] for name in self.artifacts if self.of_grid and name in figures), {})

    def comparisons(self, points: Sequence[str] = ()) -> list[Comparison]:
        """Return what it compares, column by column. points: the lineages that `grid` stands for."""
        a, b = (list(points) if side == (GRID,) else list(side) for side in (self.a, self.b))
        paired = self.kind in ("pairs", "most") and len(a) > 1
        pairs = zip(a, b, strict=True) if paired else ((one, other) for one in a for other in b)
        distinct = [(one, other) for one, other in pairs if one != other]
        return [Comparison(one, other, column) for column in self.columns for one, other in distinct]

    def deciding(self, count: int, strength: Callable[[int], Any]) -> int:
        """Return which of `count` comparisons decides, by the strength with which each speaks for the claim.

        The weakest, where all have to hold. The strongest, where `any` will do. For `most` pairs, or columns, each as
        its weakest comparison, that with which more than half are reached.
        """
        if self.kind == "any":
            return max(range(count), key=strength)
        if self.kind != "most":
            return min(range(count), key=strength)
        size = count // len(self.columns) if len(self.a) == 1 else 1
        weakest = [min(range(start, start + size), key=strength) for start in range(0, count, size)]
        return sorted(weakest, key=strength, reverse=True)[len(weakest) // 2]


def read(path: Path) -> list[Claim]:
    """Return the claims of a file; UserError, naming file and row, at the first thing that is not as it must be."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; name the file with the claims")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        headings, rows = list(reader.fieldnames or ()), list(reader)
    if sorted(headings) != sorted(HEADINGS):
        other = set(headings) ^ set(HEADINGS)
        raise UserError(
            f"{path}: its columns are {', '.join(HEADINGS)}, each once: look at {', '.join(sorted(other)) or 'those'}"
        )
    found: dict[str, Claim] = {}
    for line, row in enumerate(rows, start=2):
        name = row["id"]
        if None in row or None in row.values() or not _ID.fullmatch(name):
            raise UserError(
                f"{path}: line {line}: '{name}' is not a row with an id of its own (small letters, digits, -) and "
                f"{len(HEADINGS)} cells"
            )
        if name in found:
            raise UserError(f"{path}: claim '{name}' is there twice: give one another id")
        for problem in _problems(row):
            raise UserError(f"{path}: claim '{name}': {problem}")
        found[name] = _claim(row)
    return list(found.values())


def _claim(row: dict[str, str]) -> Claim:
    names = row["column"].removeprefix(MEAN).split()
    columns = (tuple(names),) if row["column"].startswith(MEAN) else tuple((name,) for name in names)
    texts = {key: row[key] for key in ("id", "claim", "quote", "source", "kind", "stated", "unit")}
    lists = {key: tuple(row[key].split()) for key in ("a", "b", "artifacts")}
    return Claim.model_validate({**texts, **lists, "columns": columns})


def _problems(row: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with a row, in itself."""
    for key, allowed in (("kind", KINDS), ("unit", UNITS)):
        if row[key] not in allowed:
            yield unknown(key, row[key], allowed)
    if empty := [key for key in ("claim", "source", "a", "b", "column") if not row[key].strip()]:
        yield f"its {empty[0]} is empty"
    if row["stated"] and not _NUMBER.fullmatch(row["stated"]):
        yield f"stated: '{row['stated']}' is no number, such as 4.27"
    if row["stated"] and not row["unit"]:
        yield f"unit: it is empty, but {row['stated']} is stated: give points, % or orders"
    a, b = row["a"].split(), row["b"].split()
    if (row["kind"] == "pairs" or (row["kind"] == "most" and len(a) > 1)) and len(a) != len(b):
        yield f"kind '{row['kind']}': a names {len(a)} lineages and b {len(b)}: give as many"
    for key, names, count in zip("ab", (a, b), _SIDES.get(row["kind"], (0, 0)), strict=True):
        if count and len(names) != count:
            yield f"{key}: kind '{row['kind']}' takes one name, not {len(names)}"
    if row["kind"] == "larger effect":
        yield from _not_among(EFFECTS, "parameter", a + b)
    else:
        yield from _malformed([name for name in a + b if name != GRID])
    if row["kind"] == "orders":
        yield from _not_among(SETTINGS, "setting", row["column"].split())
    one_column = row["kind"] in ("larger effect", "diverges", "orders")
    if one_column and not row["column"].startswith(MEAN) and len(row["column"].split()) > 1:
        yield f"column: kind '{row['kind']}' takes one column (or '{MEAN}' and several benchmarks)"


def _not_among(allowed: tuple[str, ...], what: str, names: list[str]) -> Iterator[str]:
    for name in names:
        if name not in allowed:
            yield f"there is no {what} '{name}' to compare{nearest(name, allowed)}; there are {', '.join(allowed)}"


def _malformed(names: list[str]) -> Iterator[str]:
    for name in names:
        try:
            Lineage.parse(name)
        except UserError as error:
            yield str(error)
