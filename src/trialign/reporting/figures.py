"""What all figures share: colours, sizes, panels, a footer, and the files that they are saved as.

Figures that are read across a page of a paper are 7 inches wide, one panel alone 3.4, a column of it; text is set in
those inches. Colours are Okabe and Ito's (2008), told apart by readers with any colour vision, and colour never stands
alone: lines have markers or dashes, marks have shapes. The same numbers give the same bytes: no date, no random ids,
fonts from matplotlib itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from trialign.recipes import Artifact, Column
from trialign.steps import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
READABLE = (*OKABE_ITO[:6], "#000000")  # for thin lines: yellow is too light on white
DASHES = ((0, ()), (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)))
GREY = "#555555"
SIGNIFICANT = 0.05  # a p-value below it, adjusted, is marked
COLUMN_WIDTH, PAGE_WIDTH = 3.4, 7.0  # inches: one column and both columns of a two-column paper
PANELS_PER_ROW = 3
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E7EB",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.6,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.0,
    "svg.hashsalt": "trialign",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
}
KINDS = ("png", "svg", "pdf")
UNDATED = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
REMARK = {".png": "Description", ".svg": "Description", ".pdf": "Subject"}  # where a format keeps a sentence
LEGEND_ROW, FOOTER_ROW = 0.16, 0.11  # inches
SMALL = 6  # points: the smallest text but for the intervals in a heat map


def write(step: Step[Any], numbers: pd.DataFrame, draw: Callable[[], Figure]) -> None:
    """Write `<name>.csv` with the numbers, then what `draw` returns as `.png`, `.svg` and `.pdf`."""
    from matplotlib import rc_context

    recipe: Artifact = step.recipe
    numbers.to_csv(step.out / f"{recipe.name}.csv", index=False)
    with rc_context(STYLE):
        figure = draw()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, alike in all formats
        for kind in KINDS:
            save(figure, step.out / f"{recipe.name}.{kind}", recipe.title, recipe.notice)


def save(figure: Figure, path: Path, title: str, remark: str = "") -> None:
    """Save a figure, cropped to what is drawn, with title and remark in its metadata and no date."""
    metadata = UNDATED[path.suffix] | {"Title": title} | ({REMARK[path.suffix]: remark} if remark else {})
    figure.savefig(path, metadata=metadata, bbox_inches="tight", pad_inches=0.03)


class Sheet(NamedTuple):
    """A figure and its panels, row by row, `across` of them in a row."""

    figure: Figure
    panels: list[Axes]
    across: int

    def is_leftmost(self, place: int) -> bool:
        """Return whether nothing is to the left of a panel."""
        return place % self.across == 0

    def is_lowest(self, place: int) -> bool:
        """Return whether nothing is below a panel."""
        return place + self.across >= len(self.panels)


def sheet(panels: int, height: float, *, most: int = PANELS_PER_ROW, share: Literal["x", "y", ""] = "") -> Sheet:
    """Return a figure with empty panels: one column wide for a single panel, the page wide for several.

    height: of a panel, in inches; legend and footer add theirs. most: panels in a row; four are two and two.
    """
    from matplotlib.figure import Figure

    across = min(panels, most, 2 if panels == 4 else panels)
    down = math.ceil(panels / across)
    figure = Figure(figsize=(COLUMN_WIDTH if panels == 1 else PAGE_WIDTH, height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=share == "x", sharey=share == "y").flatten()
    for panel in axes[panels:]:
        panel.remove()
    return Sheet(figure, list(axes[:panels]), across)


def name_panel(panel: Axes, label: str, note: str = "") -> None:
    """Write a panel's name over it, with a note in a line of its own."""
    panel.set_title(label, loc="left", fontweight="bold", pad=12 if note else 6)
    panel.annotate(
        note, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=SMALL, color=GREY
    )


def legend(figure: Figure, handles: list[Any], labels: list[str]) -> None:
    """Put a legend above all panels, in as few rows as fit, and in as many columns as these rows need."""
    for rows in range(1, len(labels) + 1):
        columns = math.ceil(len(labels) / rows)
        if _width(labels, columns) <= figure.get_figwidth():
            break
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * rows)


def _width(labels: list[str], columns: int) -> float:
    """Return how wide a legend is, in inches."""
    from matplotlib.textpath import TextPath

    size = STYLE["legend.fontsize"]
    around = size * (STYLE["legend.handlelength"] + STYLE["legend.handletextpad"] + STYLE["legend.columnspacing"])
    widths = [TextPath((0, 0), label, size=size).get_extents().width for label in labels]
    return sum(around + max(column) for column in np.array_split(widths, columns)) / 72


def footer(figure: Figure, *sentences: str) -> None:
    """Write how to read the figure below it, without the sentences that are empty."""
    width = 72 if figure.get_figwidth() == COLUMN_WIDTH else 150
    text = fill(" ".join(sentence for sentence in sentences if sentence), width)
    figure.supxlabel(text, fontsize=SMALL, color=GREY, x=0.01, ha="left")
    figure.set_figheight(figure.get_figheight() + FOOTER_ROW * (1 + text.count("\n")))


def lines(number: int) -> list[tuple[str, Any]]:
    """Return a colour and a dash pattern for each of some lines; the first 35 differ in both or in one."""
    return list(islice(zip(cycle(READABLE), cycle(DASHES), strict=False), number))


def unit(column: Column) -> str:
    """Return what a column's numbers are, for an axis."""
    name = "mean" if column.mean_of else str(column.metric)
    return f"{name} (%)" if is_percent(column) else name


def is_percent(column: Column) -> bool:
    """Return whether a column's numbers are percentages."""
    return all(member.scale == 100 for member in column.mean_of or (column,))
