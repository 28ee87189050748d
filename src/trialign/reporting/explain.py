"""Where a result comes from: the chain of steps behind an artifact, one cell of it, a run or a data set.

`follow` walks from a step to all that it stands on, as the results tree has it (`tree`); `cells` says which suites a
cell stands on. Nothing here writes. `explain_text` prints a chain, `verify` checks it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trialign.reporting import cells as cells_of
from trialign.reporting import tree as trees
from trialign.reporting.cells import Cell
from trialign.reporting.tree import Input, Made, Record, Tree


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
    its heading, or a benchmark. UserError: see `tree.find` and `cells.find`.
    """
    tree, top = trees.find(path)
    if row is None and column is None:
        return follow(tree, top)
    made = tree.made(top)
    cells = cells_of.find(path, tree, made, row, column)
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
