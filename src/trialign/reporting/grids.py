"""Figures over alpha x beta, a panel for each column: `grid` draws lines over alpha, `heatmap` a cell for each setting.

Both show every number with its 95% interval and the baseline beside it. A heat map also marks the settings whose paired
difference from the baseline (`pairs`) is significant: p < 0.05 by Holm's adjustment over the cells of a panel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from trialign.recipes import Column, GridRecipe, HeatmapRecipe
from trialign.reporting import figures, pairs
from trialign.reporting.gather import Measurements, Value, missing
from trialign.reporting.statistics import Difference, holm
from trialign.steps import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DODGE = 0.012  # share of the x range that neighbouring lines are set apart, so that error bars do not hide each other
COLOURS = "cividis"  # perceptually uniform, alike to readers with any colour vision, monotone in grey
CELL = 0.34  # inches: height of a cell, and the width that its text needs at least
ABOVE, BELOW = "▲", "▼"
NOTHING = Difference(*[math.nan] * 7, 0, "")  # of the baseline and itself
POINTER = {
    "color": "black",
    "marker": ">",
    "markersize": 3.5,
    "linestyle": "none",
}  # at the baseline, beside the colours


class Point(NamedTuple):
    """A number of a figure. `alpha` and `beta` are nan for the baseline."""

    panel: str
    alpha: float
    beta: float
    lineage: str
    value: Value


class Compared(NamedTuple):
    """A cell's paired difference from the baseline, and its p-value adjusted for the cells of its panel."""

    difference: Difference
    p_holm: float

    @property
    def mark(self) -> str:
        """What a heat map shows of it; empty where the cell is not told apart from the baseline."""
        return "" if not self.p_holm < figures.SIGNIFICANT else ABOVE if self.difference.difference > 0 else BELOW


def grid(step: Step[GridRecipe]) -> dict[str, Any]:
    """Write `<name>.png`, `.svg`, `.pdf` and the `.csv` behind them. Input: `results`.

    UserError names a cell that has no data.
    """
    points = points_of(step.recipe, Measurements.of(step))
    figures.write(step, _frame(points), lambda: draw_lines(step.recipe, points))
    return _facts(points)


def heatmap(step: Step[HeatmapRecipe]) -> dict[str, Any]:
    """Write `<name>.png`, `.svg`, `.pdf` and the `.csv` behind them. Input: `results`.

    UserError names a cell that has no data, or one without an item in common with the baseline.
    """
    recipe, measured = step.recipe, Measurements.of(step)
    points = points_of(recipe, measured)
    compared = comparisons(recipe, measured)
    frame = _frame(points)
    found = [compared.get((point.panel, point.lineage), Compared(NOTHING, math.nan)) for point in points]
    for name, numbers in (
        ("difference", [each.difference.difference for each in found]),
        ("difference_low", [each.difference.low for each in found]),
        ("difference_high", [each.difference.high for each in found]),
        ("p", [each.difference.p for each in found]),
        ("p_holm", [each.p_holm for each in found]),
    ):
        frame[name] = numbers
    figures.write(step, frame, lambda: draw_cells(recipe, points, compared))
    marked = sum(bool(each.mark) for each in compared.values())
    return _facts(points) | {"significant": marked}


def points_of(recipe: GridRecipe, measured: Measurements) -> list[Point]:
    """Return every number of the figure: for each panel the baseline, then the grid in order of alpha and beta."""
    places = [(math.nan, math.nan, recipe.baseline), *_cells(recipe)]
    return [
        Point(column.label, alpha, beta, lineage, measured.value(column, lineage, recipe.seeds))
        for column in recipe.columns
        for alpha, beta, lineage in places
    ]


def comparisons(recipe: HeatmapRecipe, measured: Measurements) -> dict[tuple[str, str], Compared]:
    """Return (panel, lineage) -> how the cell compares with the baseline."""
    lineages = list(dict.fromkeys(lineage for _, _, lineage in _cells(recipe) if lineage != recipe.baseline))
    found = {}
    for column in recipe.columns:
        differences = pairs.against(measured, column, lineages, recipe.baseline, recipe.seeds)
        adjusted = holm([difference.p for difference in differences])
        for lineage, difference, p in zip(lineages, differences, adjusted, strict=True):
            found[column.label, lineage] = Compared(difference, p)
    return found


def _cells(recipe: GridRecipe) -> list[tuple[float, float, str]]:
    return sorted((float(a), float(b), lineage) for a, row in recipe.cells.items() for b, lineage in row.items())


def _frame(points: list[Point]) -> pd.DataFrame:
    return pd.DataFrame(
        [(*point[:4], *point.value.numbers[:2], *point.value.interval, point.value.n) for point in points],
        columns=["panel", "alpha", "beta", "lineage", "value", "stderr", "low", "high", "n"],
    )


def _facts(points: list[Point]) -> dict[str, Any]:
    panels, lineages = {point.panel for point in points}, {point.lineage for point in points}
    return {"panels": len(panels), "points": len(points), "lineages": len(lineages)}


def _split(points: list[Point], label: str) -> tuple[Value, list[Point]]:
    """Return the baseline of a panel, and its cells."""
    own = [point for point in points if point.panel == label]
    return own[0].value, own[1:]


# --- lines ------------------------------------------------------------------------------------------------------------


def draw_lines(recipe: GridRecipe, points: list[Point]) -> Figure:
    """Return the figure of lines over alpha, one for each beta, the baseline dashed."""
    sheet = figures.sheet(len(recipe.columns), 2.1, share="x")
    for place, (panel, column) in enumerate(zip(sheet.panels, recipe.columns, strict=True)):
        _lines(panel, *_split(points, column.label), recipe.baseline_label)
        figures.name_panel(panel, column.label)
        panel.set_ylabel(figures.unit(column))
        if sheet.is_lowest(place):
            panel.set_xlabel("α")
            panel.tick_params(labelbottom=True)
    figures.legend(sheet.figure, *sheet.panels[0].get_legend_handles_labels())
    gaps = missing(point.value for point in points)
    figures.footer(sheet.figure, "Error bars and band: 95% intervals.", gaps and f"No point: {gaps}.", recipe.notice)
    return sheet.figure


def _lines(panel: Axes, baseline: Value, cells: list[Point], baseline_label: str) -> None:
    """Draw one panel: the baseline as a dashed line in its band, then a line for each beta over alpha.

    A number that is not there leaves a gap in its line.
    """
    panel.axhspan(*baseline.interval, color=figures.GREY, alpha=0.12, lw=0)
    panel.axhline(baseline.value, color=figures.GREY, linestyle=(0, (4, 2)), linewidth=1, label=baseline_label)
    alphas = sorted({point.alpha for point in cells})
    betas = sorted({point.beta for point in cells})
    step = DODGE * (alphas[-1] - alphas[0])
    for i, (beta, colour, marker) in enumerate(zip(betas, cycle(figures.OKABE_ITO), cycle(MARKERS))):
        line = [point for point in cells if point.beta == beta]
        panel.errorbar(
            [point.alpha + step * (i - (len(betas) - 1) / 2) for point in line],
            [point.value.value for point in line],
            yerr=_bars([point.value for point in line]),
            color=colour,
            marker=marker,
            markeredgecolor="white",
            markeredgewidth=0.4,
            elinewidth=0.7,
            capsize=0,
            label=f"β = {beta:g}",
        )
    panel.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
    panel.margins(x=0.06)


# --- cells ------------------------------------------------------------------------------------------------------------


def _bars(values: Sequence[Value]) -> list[list[float]]:
    """Return how far error bars go down and up: an interval of a share is no more symmetric than its value allows."""
    return [
        [value.value - value.interval[0] for value in values],
        [value.interval[1] - value.value for value in values],
    ]


def draw_cells(recipe: HeatmapRecipe, points: list[Point], compared: dict[tuple[str, str], Compared]) -> Figure:
    """Return the heat maps: in each cell the number, half the width of its interval, and a mark where it differs."""
    from matplotlib.lines import Line2D

    settings = _cells(recipe)
    alphas, betas = len({alpha for alpha, _, _ in settings}), len({beta for _, beta, _ in settings})
    most = max(1, min(figures.PANELS_PER_ROW, int(figures.PAGE_WIDTH / (alphas * CELL + 0.8))))
    sheet = figures.sheet(len(recipe.columns), max(1.2, betas * CELL + 0.8), most=most)
    for place, (panel, column) in enumerate(zip(sheet.panels, recipe.columns, strict=True)):
        baseline, cells = _split(points, column.label)
        marks = [compared[key].mark if (key := (column.label, point.lineage)) in compared else "" for point in cells]
        _heat(panel, column, baseline, cells, marks)
        figures.name_panel(panel, column.label, f"baseline {_number(column, baseline)}")
        if sheet.is_leftmost(place):
            panel.set_ylabel("β")
        if sheet.is_lowest(place):
            panel.set_xlabel("α")
    figures.legend(sheet.figure, [Line2D([], [], **POINTER)], [f"baseline: {recipe.baseline_label}"])
    gaps = missing(point.value for point in points)
    figures.footer(
        sheet.figure,
        "±: half a 95% interval.",
        f"{ABOVE} {BELOW}: above, below the baseline on the same items (p < {figures.SIGNIFICANT:g}, Holm over the "
        "panel's cells).",
        "A panel's colours span at least its widest interval.",
        gaps and f"Hatched: {gaps}.",
        recipe.notice,
    )
    return sheet.figure


def _heat(panel: Axes, column: Column, baseline: Value, cells: list[Point], marks: list[str]) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable

    alphas = sorted({point.alpha for point in cells})
    betas = sorted({point.beta for point in cells})
    scale = ScalarMappable(_span([baseline, *(point.value for point in cells)]), colormaps[COLOURS])
    for point, mark in zip(cells, marks, strict=True):
        _cell(panel, alphas.index(point.alpha), betas.index(point.beta), point.value, column, mark, scale)
    panel.set(xlim=(-0.5, len(alphas) - 0.5), ylim=(-0.5, len(betas) - 0.5))
    panel.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    panel.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    panel.tick_params(length=0)
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    bar = panel.figure.colorbar(scale, ax=panel, fraction=0.06, pad=0.03, aspect=18, label=figures.unit(column))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=figures.SMALL, length=2)
    bar.ax.grid(visible=False)
    bar.ax.plot([-0.5], [baseline.value], clip_on=False, **POINTER)


def _cell(panel: Axes, x: int, y: int, value: Value, column: Column, mark: str, scale: Any) -> None:
    """Draw a cell: hatched where there is no number, otherwise its number in black or white, whichever reads better."""
    from matplotlib.patches import Rectangle

    corner = (x - 0.5, y - 0.5)
    if not value.scored:
        panel.add_patch(Rectangle(corner, 1, 1, facecolor="#EEEEEE", edgecolor="#AAAAAA", hatch="////", linewidth=0))
        return
    colour = scale.to_rgba(value.value)
    ink = "black" if luminance(colour[:3]) > 0.179 else "white"  # equal contrast with both (WCAG 2.1)
    panel.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
    number, _, half = _number(column, value).partition(" ")
    panel.text(x, y + 0.14, number, ha="center", va="center", color=ink, fontsize=7)
    panel.text(x, y - 0.25, half, ha="center", va="center", color=ink, fontsize=5)
    panel.text(x + 0.46, y + 0.44, mark, ha="right", va="top", color=ink, fontsize=4.5)


def _number(column: Column, value: Value) -> str:
    """Return a value and half the width of its interval, such as `5.42 ±0.13`."""
    digits = 1 if figures.is_percent(column) else 2
    half = (value.interval[1] - value.interval[0]) / 2
    return f"{value.value:.{digits}f}" + (f" ±{half:.{digits}f}" if math.isfinite(half) else "")


def _span(values: list[Value]) -> Any:
    """Return the range of a panel's colours: its values and the baseline's, or its widest interval if that is wider.

    So what lies within an interval's width never looks like a difference.
    """
    from matplotlib.colors import Normalize

    scored = [value for value in values if value.scored] or [Value(0.0, 0.0, 0)]
    low, high = min(value.value for value in scored), max(value.value for value in scored)
    widths = [value.interval[1] - value.interval[0] for value in scored]
    short = max([0.0, *(width - (high - low) for width in widths if math.isfinite(width))])
    return Normalize(low - short / 2, high + short / 2)


def luminance(colour: tuple[float, float, float]) -> float:
    """Return the relative luminance of an sRGB colour, 0 to 1 (WCAG 2.1)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
