"""Forest plots: the paired differences of lineages from a baseline, a panel for each column.

A row is a lineage: its difference from the baseline on the same items (`pairs`) with the 95% interval, a filled marker
where it is significant (p < 0.05 by Holm's adjustment over the rows of a panel), a hollow one where it is not resolved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from trialign.recipes import Column, ForestRecipe
from trialign.reporting import figures, pairs
from trialign.reporting.gather import Measurements
from trialign.reporting.statistics import Difference, holm
from trialign.steps import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BETTER, WORSE = figures.OKABE_ITO[:2]
ROW = 0.19  # inches
TEXT = 5.5  # points: of the numbers beside a panel


class Entry(NamedTuple):
    """A row of a panel: a lineage's difference from the baseline, and its p-value adjusted for the panel's rows."""

    panel: str
    lineage: str
    label: str
    difference: Difference
    p_holm: float

    @property
    def significant(self) -> bool:
        """Whether the lineage is told apart from the baseline."""
        return self.p_holm < figures.SIGNIFICANT


def forest(step: Step[ForestRecipe]) -> dict[str, Any]:
    """Write `<name>.png`, `.svg`, `.pdf` and the `.csv` behind them. Input: `results`.

    UserError names a cell that has no data, or a lineage without an item in common with the baseline.
    """
    recipe = step.recipe
    entries = entries_of(recipe, Measurements.of(step))
    figures.write(step, _frame(recipe, entries), lambda: draw(recipe, entries))
    return {"panels": len(recipe.columns), "rows": len(recipe.rows), "significant": sum(e.significant for e in entries)}


def entries_of(recipe: ForestRecipe, measured: Measurements) -> list[Entry]:
    """Return the rows of all panels, panel by panel."""
    entries = []
    lineages = [row.lineage for row in recipe.rows]
    for column in recipe.columns:
        found = pairs.against(measured, column, lineages, recipe.baseline.lineage, recipe.seeds)
        adjusted = holm([difference.p for difference in found])
        for row, difference, p in zip(recipe.rows, found, adjusted, strict=True):
            entries.append(Entry(column.label, row.lineage, row.label, difference, p))
    return entries


def _frame(recipe: ForestRecipe, entries: list[Entry]) -> pd.DataFrame:
    rows = [
        (e.panel, e.lineage, recipe.baseline.lineage, *e.difference[:4], e.difference.p, e.p_holm, *e.difference[7:9])
        for e in entries
    ]
    names = ["panel", "lineage", "baseline", "difference", "stderr", "low", "high", "p", "p_holm", "n", "test"]
    return pd.DataFrame(rows, columns=names)


def draw(recipe: ForestRecipe, entries: list[Entry]) -> Figure:
    """Return the figure: the rows have their names at the left, and each panel its numbers at its right."""
    sheet = figures.sheet(len(recipe.columns), ROW * (len(recipe.rows) + 1) + 0.65, share="y")
    for place, (panel, column) in enumerate(zip(sheet.panels, recipe.columns, strict=True)):
        _panel(panel, column, [entry for entry in entries if entry.panel == column.label])
        panel.tick_params(axis="y", length=0, labelleft=sheet.is_leftmost(place))
    sheet.panels[0].set_yticks(range(len(recipe.rows)), [row.label for row in recipe.rows])
    sheet.panels[0].set_ylim(len(recipe.rows) - 0.4, -0.6)
    figures.legend(sheet.figure, *_key(recipe))
    figures.footer(
        sheet.figure,
        "Differences on the same items, with 95% intervals, each for itself (not adjusted).",
        f"Filled: p < {figures.SIGNIFICANT:g} by Holm's adjustment over the panel's rows, {len(recipe.rows)} here.",
        recipe.notice,
    )
    return sheet.figure


def _panel(panel: Axes, column: Column, entries: list[Entry]) -> None:
    """Draw one panel. A difference that is not there leaves its row empty and says why."""
    digits = 1 if figures.is_percent(column) else 2
    panel.axvline(0, color=figures.GREY, linestyle=(0, (4, 2)), linewidth=1)
    for y, entry in enumerate(entries):
        text = entry.difference.missing or _drawn(panel, y, entry, digits)
        panel.text(1.03, y, text, transform=panel.get_yaxis_transform(), va="center", fontsize=TEXT)
    figures.name_panel(panel, column.label)
    panel.text(1.03, 1.02, _counts(entries), transform=panel.transAxes, fontsize=TEXT, color=figures.GREY)
    panel.set_xlabel("percentage points" if figures.is_percent(column) else figures.unit(column))
    panel.spines["left"].set_visible(False)
    panel.grid(visible=False, axis="y")
    panel.margins(x=0.08)


def _drawn(panel: Axes, y: int, entry: Entry, digits: int) -> str:
    """Draw a difference; return it as text."""
    d, (low, high) = entry.difference.difference, entry.difference[2:4]
    if d == low == high == 0:
        panel.plot([0], [y], "o", color=figures.GREY, markerfacecolor="white", markersize=4, markeredgewidth=0.9)
        return "the same on every item"
    colour = (BETTER if d > 0 else WORSE) if entry.significant else figures.GREY
    panel.plot([low, high], [y, y], color=colour, linewidth=1, solid_capstyle="butt")
    fill = colour if entry.significant else "white"
    panel.plot([d], [y], "o", color=colour, markerfacecolor=fill, markersize=4, markeredgewidth=0.9)
    return f"{_signed(d, digits)} [{_signed(low, digits)}, {_signed(high, digits)}]"


def _signed(value: float, digits: int) -> str:
    """Return a number with its sign; what is rounded to nothing has none."""
    text = f"{value:+.{digits}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", "−")


def _counts(entries: list[Entry]) -> str:
    counts = sorted({entry.difference.n for entry in entries if not entry.difference.missing})
    return f"n = {'–'.join(f'{n:,}' for n in dict.fromkeys((counts[0], counts[-1])))}" if counts else ""


def _key(recipe: ForestRecipe) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    def marker(colour: str, fill: str) -> Line2D:
        return Line2D([], [], color=colour, marker="o", markersize=4, markerfacecolor=fill, linewidth=1)

    handles = [
        Line2D([], [], color=figures.GREY, linestyle=(0, (4, 2)), linewidth=1),
        marker(BETTER, BETTER),
        marker(WORSE, WORSE),
        marker(figures.GREY, "white"),
    ]
    return handles, [recipe.baseline.label, "better", "worse", "not resolved"]
