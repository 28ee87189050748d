"""Distributions of the training data: a row for each data set, its lengths, and of triples the scores and their gaps.

Each panel shows shares: how much of the rows lies at or below a value (the empirical distribution function). Lengths
are tokens of the rows that a model's tokenisation keeps, or words of all rows; scores are those of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trialign.data.triples import BRANCHES
from trialign.recipes import DistributionsRecipe
from trialign.reporting import figures
from trialign.steps import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPLIT = "train"
SERIES = (
    ("reference", "chosen", "rejected", "prompt"),
    ("reference − chosen", "chosen − rejected", "reference − rejected"),
    ("conversation", "answers"),
)
COLUMNS = ["data", "panel", "series", "value", "rows", "share"]
Series = Mapping[str, Any]  # name -> array of numbers, one a row of the data


def distributions(step: Step[DistributionsRecipe]) -> dict[str, Any]:
    """Write `<name>.png`, `.svg`, `.pdf` and the `.csv` behind them: how many rows have each value, and at most it.

    Inputs: `data` (prepared data sets), `tokens` (theirs, where lengths are counted in tokens).
    """
    recipe = step.recipe
    prepared = {folder.name: folder for folder in step.inputs["data"]}
    tokens = {folder.name: folder for folder in step.inputs.get("tokens", ())}
    shares = pd.DataFrame(
        [
            (name, panel, series, *counted)
            for name in recipe.data
            for panel, group in measured(prepared[name], tokens.get(name)).items()
            for series, values in group.items()
            for counted in _shares(values)
        ],
        columns=COLUMNS,
    )
    figures.write(step, shares, lambda: draw(recipe, shares))
    rows = shares.groupby(["data", "panel", "series"])["rows"].sum().groupby("data").max()
    return {"rows": {name: int(rows[name]) for name in recipe.data}}


def measured(prepared: Path, tokens: Path | None) -> dict[str, Series]:
    """Return panel -> series -> numbers of a prepared data set's training rows; lengths from `tokens` if given."""
    table = pq.read_table(prepared / f"{SPLIT}.parquet")
    lengths = _in_tokens(pq.read_table(tokens / f"{SPLIT}.parquet")) if tokens else _in_words(table)
    if "scores" not in table.column_names:
        return {"length": lengths}
    scores = dict(zip(BRANCHES, np.array(table["scores"].to_pylist(), dtype=float).reshape(-1, 3).T, strict=True))
    over = [("reference", "chosen"), ("chosen", "rejected"), ("reference", "rejected")]
    return {
        "length": lengths,
        "score": scores,
        "score gap": {f"{high} − {low}": scores[high] - scores[low] for high, low in over},
    }


def _in_tokens(table: pa.Table) -> Series:
    """Return lengths in tokens: of prompt and responses, or of conversations and what is trained on in them."""
    if "loss_mask" in table.column_names:
        trained = [sum(mask) for mask in table["loss_mask"].to_pylist()]
        return {"conversation": _lengths(table["input_ids"]), "answers": np.array(trained, dtype=float)}
    return {name: _lengths(table[name]) for name in ("prompt", *BRANCHES)}


def _in_words(table: pa.Table) -> Series:
    """Return lengths in words, separated by white space."""
    if "messages" not in table.column_names:
        return {name: _words(table[name].to_pylist()) for name in ("prompt", *BRANCHES)}
    talks = table["messages"].to_pylist()
    whole = [" ".join(turn["content"] for turn in talk) for talk in talks]
    answers = [" ".join(turn["content"] for turn in talk if turn["role"] == "assistant") for talk in talks]
    return {"conversation": _words(whole), "answers": _words(answers)}


def _lengths(column: pa.ChunkedArray) -> Any:
    return pc.list_value_length(column).to_numpy().astype(float)


def _words(texts: list[str]) -> Any:
    return np.array([len(text.split()) for text in texts], dtype=float)


def _shares(values: Any) -> list[tuple[float, int, float]]:
    """Return each value that occurs, how many rows have it, and the share of the rows at or below it."""
    found, counts = np.unique(values, return_counts=True)
    return list(zip(found.tolist(), counts.tolist(), (counts.cumsum() / counts.sum()).tolist(), strict=True))


def draw(recipe: DistributionsRecipe, shares: pd.DataFrame) -> Figure:
    """Return the figure, a panel for each data set and kind of number."""
    panels = list(shares[["data", "panel"]].drop_duplicates().itertuples(index=False, name=None))
    sheet = figures.sheet(len(panels), 1.5, most=2)
    length = f"tokens of {recipe.tokenizer}" if recipe.tokenizer else "words"
    styles = {name: style for names in SERIES for name, style in zip(names, figures.lines(len(names)), strict=True)}
    for place, (panel, (data, kind)) in enumerate(zip(sheet.panels, panels, strict=True)):
        _panel(panel, shares[(shares["data"] == data) & (shares["panel"] == kind)], styles)
        figures.name_panel(panel, f"{data}: {kind}")
        panel.set_xlabel(length if kind == "length" else kind)
        if sheet.is_leftmost(place):
            panel.set_ylabel("share of rows")
    figures.footer(
        sheet.figure,
        "Share of the training rows at or below a value; dots: medians.",
        "Lengths are of the rows that the model's tokenisation keeps." if recipe.tokenizer else "",
        recipe.notice,
    )
    return sheet.figure


def _panel(panel: Axes, shares: pd.DataFrame, styles: Mapping[str, Any]) -> None:
    """Draw one panel: a step function for each series, with a dot at its median."""
    first = shares["value"].min()
    for name, line in shares.groupby("series", sort=False):
        colour, dash = styles[name]
        values, at_most = [first, *line["value"]], [0, *line["share"]]
        panel.step(values, at_most, where="post", color=colour, linestyle=dash, label=name)
        median = line.loc[line["share"] >= 0.5, "value"].iloc[0]
        panel.plot([median], [0.5], "o", color=colour, markeredgecolor="white", markeredgewidth=0.4)
    panel.set_ylim(0, 1.02)
    panel.margins(x=0.03)
    panel.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=figures.SMALL, handlelength=2.4)
