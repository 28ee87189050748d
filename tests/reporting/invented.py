"""Suite folders with invented items, steps that read them, and tables read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt

from trialign.recipes import Recipe, parse
from trialign.steps import Step

Record = tuple[str, str, str, str, float]
ITEM_COLUMNS = ["benchmark", "subset", "item", "metric", "value"]


class Study:
    """A results tree under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: list[Path] = []

    def suite(self, lineage: str, records: Iterable[Record], seed: int = 1, suite: str = "leaderboard") -> Path:
        """Add a suite folder (`suite` may be `mtbench/<judge>`) with these item records."""
        folder = self.root / "runs" / lineage / f"seed{seed}" / suite
        folder.mkdir(parents=True)
        pd.DataFrame(records, columns=ITEM_COLUMNS).to_parquet(folder / "items.parquet")
        self.folders.append(folder)
        return folder

    def record(self, folder: Path, fingerprint: str, **inputs: str) -> None:
        """Write a folder's `run.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        made = {
            "fingerprint": fingerprint,
            "inputs": {name: [made_by] for name, made_by in inputs.items()},
            "versions": {"torch": "2.13.0", "lm-eval": "0.4.13"},
        }
        (folder / "run.json").write_text(json.dumps(made))

    def run(
        self,
        function: Callable[[Step[Any]], dict[str, Any]],
        recipe: Recipe,
        name: str = "out",
        **inputs: Iterable[Path],
    ) -> Path:
        """Run a step on `inputs`, or on all suite folders; the recipe goes through its canonical text, as in a rule."""
        out, scratch = self.root / name, self.root / "scratch"
        out.mkdir()
        scratch.mkdir(exist_ok=True)
        given = {key: tuple(paths) for key, paths in inputs.items()} or {"results": tuple(self.folders)}
        function(Step(parse(recipe.canonical()), given, out, scratch))
        return out


def right(benchmark: str, metric: str, k: int, n: int, subset: str = "") -> list[Record]:
    """Return records of `n` items of which the first `k` are right."""
    return [(benchmark, subset, str(i), metric, float(i < k)) for i in range(n)]


def markdown_rows(path: Path) -> list[list[str]]:
    """Return the cells of a Markdown table as a Markdown parser reads them, headings first."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text())
    rows: list[list[str]] = []
    for before, token in pairwise(tokens):
        if before.type == "tr_open":
            rows.append([])
        if token.type == "inline" and before.type in ("th_open", "td_open"):
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows
