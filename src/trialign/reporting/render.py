"""Writes a table in the four forms that an artifact has: csv, Markdown, LaTeX (booktabs) and an HTML page.

The csv is the paper's plain layout: text columns, then numbers with two decimals. The other three show each number with
its 95% interval and marks of what is best, on a last line the published number with its flags and how far ours is from
it, a last row with the number of items, and the title, caption and notice of the artifact. The cell of a number that is
not there (training diverged) is empty in the csv and a dash in the others. `<name>.cells.csv` and `<name>.pairs.csv`
hold all numbers behind them.
"""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from trialign import pages
from trialign.errors import UserError
from trialign.recipes import Artifact, Published
from trialign.reporting.gather import Value, missing
from trialign.reporting.pairs import Mark, Pair

DECIMALS = 2
DASH = "–"
MARKS: dict[Mark, str] = {"": "", "best": "†", "near": "≈"}
FLAGS = {  # letter and meaning
    "truncated": ("t", "cut, not rounded"),
    "inconsistent": ("i", "at odds with other published numbers"),
    "source": ("s", "not from a table of the paper, or not its own measurement"),
}
_DIGITS = "%.10g"  # of the csv files with all numbers: what is summed in another order differs beyond
_NUMBER = re.compile(r"-|-?\d[\d.]*(e-?\d+)?")
_TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    # in the default font encoding these three print as other characters
    | {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
    | {"α": r"$\alpha$", "β": r"$\beta$", "±": r"$\pm$", "−": "$-$", "×": r"$\times$"}
    | {"†": r"$\dagger$", "≈": r"$\approx$", "≥": r"$\geq$"}
)
_COLUMN_CHARACTERS = 50  # a wider LaTeX table spans both columns of a page, in a smaller font
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"  # shrinks what is still too wide


class Cell(NamedTuple):
    """A number of a table, the lineage that it belongs to, whether it is best, and the published number, if any."""

    lineage: str
    value: Value
    mark: Mark = ""
    published: Published | None = None


class Shown(NamedTuple):
    """A cell as text: number with mark, and interval; the published number, its flags' letters, and ours less it."""

    number: str
    interval: str = ""
    published: str = ""
    flags: str = ""
    difference: str = ""


@dataclass(frozen=True)
class Layout:
    """A table before it is written: headings of the text and the number columns, and the rows of both, in order.

    family: the pairs that p-values are corrected for are those of each column, or of the whole table.
    """

    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    text_rows: tuple[tuple[str, ...], ...]
    number_rows: tuple[tuple[Cell, ...], ...]
    family: Literal["column", "table"] = "column"

    @property
    def cells(self) -> list[Cell]:
        """All cells of numbers, row by row."""
        return [cell for row in self.number_rows for cell in row]

    @property
    def headings(self) -> tuple[str, ...]:
        """All headings, texts first."""
        return self.texts + self.numbers

    def right_aligned(self, column: int) -> bool:
        """Whether a column holds numbers only, be they texts (a batch size) or values."""
        return column >= len(self.texts) or all(_NUMBER.fullmatch(row[column]) for row in self.text_rows)


def write(layout: Layout, artifact: Artifact, out: Path) -> None:
    """Write `<name>.csv`, `.md`, `.tex` and `.html` into `out`; UserError where two columns have the same heading."""
    for heading, count in Counter(layout.headings).items():
        if count > 1:
            raise UserError(f"{artifact.name}: {count} columns are called '{heading}': give each a label of its own")
    forms = {"csv": _csv(layout), "md": _markdown(layout, artifact), "tex": _tex(layout, artifact)}
    for suffix, text in (forms | {"html": _html(layout, artifact)}).items():
        (out / f"{artifact.name}.{suffix}").write_text(text, encoding="utf-8")


def number(value: float) -> str:
    """Return a number as tables print it: two decimals, rounded; nothing for one that is not there."""
    return "" if math.isnan(value) else f"{value:.{DECIMALS}f}"


def write_numbers(layout: Layout, artifact: Artifact, pairs: Sequence[Pair], out: Path) -> None:
    """Write `<name>.cells.csv`, one row for each cell, and `<name>.pairs.csv`, one for each pair and column.

    Numbers are in the columns' units, not rounded; what there is no number of is empty.
    """
    seeds = len(artifact.seeds)
    cells = [
        (*texts, cell.lineage, heading, *cell.value[:2], *cell.value.interval, cell.value.n, seeds, cell.value.missing)
        for texts, row in zip(layout.text_rows, layout.number_rows, strict=True)
        for heading, cell in zip(layout.numbers, row, strict=True)
    ]
    columns = [*layout.texts, "lineage", "column", "value", "stderr", "low", "high", "n", "seeds", "missing"]
    rows = [(*pair[:3], *pair.difference[:7], pair.p_holm, *pair.difference[7:]) for pair in pairs]
    heads = ["column", "a", "b", "difference", "stderr", "low", "high", "seeds_low", "seeds_high", "p", "p_holm"]
    for kind, frame in {
        "cells": pd.DataFrame(cells, columns=columns),
        "pairs": pd.DataFrame(rows, columns=[*heads, "n", "test", "missing"]),
    }.items():
        frame.to_csv(out / f"{artifact.name}.{kind}.csv", index=False, float_format=_DIGITS)


def _frame(layout: Layout, numbers: list[list[str]]) -> pd.DataFrame:
    rows = [[*texts, *cells] for texts, cells in zip(layout.text_rows, numbers, strict=True)]
    return pd.DataFrame(rows, columns=list(layout.headings), dtype=object)


def _csv(layout: Layout) -> str:
    return _frame(layout, [[number(cell.value.value) for cell in row] for row in layout.number_rows]).to_csv(
        index=False
    )


def _counts(layout: Layout) -> list[str]:
    """Return the last row: `n`, and for each column of numbers its count of items, a range where scored rows differ."""
    cells = zip(*layout.number_rows, strict=True)
    columns = [[cell.value.n for cell in column if cell.value.scored] or [0] for column in cells]
    spans = [str(min(ns)) if min(ns) == max(ns) else f"{min(ns)}–{max(ns)}" for ns in columns]
    return ["n", *[""] * (len(layout.texts) - 1), *spans]


def shown(cell: Cell) -> Shown:
    """Return a cell as text; a number whose error is not defined (a single item) has no interval."""
    value, known = cell.value, cell.published
    low, high = value.interval
    away = round(value.value - float(known.value), DECIMALS) + 0.0 if known else 0.0  # no -0
    return Shown(
        number=number(value.value) + MARKS[cell.mark] if value.scored else DASH,
        interval="" if math.isnan(low) else f"[{number(low)}, {number(high)}]",
        published=known.value if known else "",
        flags="".join(dict.fromkeys(FLAGS[flag.kind][0] for flag in known.flags)) if known else "",
        difference=f"{away:+.{DECIMALS}f}" if known and value.scored else "",
    )


def _filled(layout: Layout, escape: Callable[[str], str], form: Callable[[Shown], str]) -> pd.DataFrame:
    """Return the table in one form: texts through `escape`, numbers through `form`, the row of counts at the end."""
    frame = _frame(layout, [[form(shown(cell)) for cell in row] for row in layout.number_rows])
    if layout.numbers:
        frame.loc[len(frame)] = _counts(layout)
    texts = list(layout.texts)
    frame[texts] = frame[texts].map(escape)
    frame.columns = [escape(heading) for heading in frame.columns]
    return frame


def _markdown(layout: Layout, artifact: Artifact) -> str:
    frame = _filled(layout, escape_markdown, _in_markdown)
    sides = ["right" if layout.right_aligned(i) else "left" for i in range(len(frame.columns))]
    table = frame.to_markdown(index=False, disable_numparse=True, colalign=sides)
    notice = [f"> {artifact.notice}"] if artifact.notice else []
    notes = "\n".join(f"- {escape_markdown(note)}" for note in _notes(layout))
    parts = [f"# {artifact.title}", *notice, artifact.caption, table, _legend(layout, artifact), notes]
    return "\n\n".join(filter(None, parts)) + "\n"


def _in_markdown(cell: Shown) -> str:
    ours = f"{cell.number} {escape_markdown(cell.interval)}".rstrip()
    if not cell.published:
        return ours
    return f"{ours}<br>{_raised(cell)}" + (f" ({cell.difference})" if cell.difference else "")


def _raised(cell: Shown) -> str:
    """Return the published number with its flags raised, which HTML and Markdown write alike."""
    return cell.published + (f"<sup>{cell.flags}</sup>" if cell.flags else "")


def escape_markdown(text: str) -> str:
    """Return a text that Markdown prints as it is."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", text)


def _legend(layout: Layout, artifact: Artifact) -> str:
    """Return what the table's numbers and signs are; those that it does not have are not told."""
    if not layout.numbers:
        return ""
    cells, seeds = layout.cells, len(artifact.seeds)
    over = "items" if seeds == 1 else f"items and {seeds} seeds"
    told = [f"Value [95% interval over {over}]; n: items behind each number of the column."]
    if any(cell.mark for cell in cells):
        told.append(
            f"{MARKS['best']}: best of the {layout.family}; {MARKS['near']}: not distinguishable from it (p ≥ 0.05, "
            f"Holm-corrected for all pairs of the {layout.family}; intervals are not)."
        )
    if why := missing(cell.value for cell in cells):
        told.append(f"{DASH}: {why}.")
    if known := [cell.published for cell in cells if cell.published]:
        kinds = {flag.kind for number in known for flag in number.flags}
        flags = "; ".join(f"{letter}: {meaning}" for kind, (letter, meaning) in FLAGS.items() if kind in kinds)
        told.append(f"Last line: the published number (ours less it){f'; {flags}' if flags else ''}.")
    return " ".join(told)


def _notes(layout: Layout) -> list[str]:
    """Return what is to be known of single published numbers, each once; that one was cut the letter says."""
    notes: dict[str, dict[str, list[str]]] = {}
    for heading, cell in zip(layout.numbers * len(layout.number_rows), layout.cells, strict=True):
        for flag in cell.published.flags if cell.published else ():
            if flag.kind != "truncated":
                notes.setdefault(flag.text, {}).setdefault(cell.lineage, []).append(heading)
    told = {
        text: "; ".join(f"{lineage} ({', '.join(headings)})" for lineage, headings in places.items())
        for text, places in notes.items()
    }
    return [f"{places}: {text}." for text, places in told.items()]


def _tex(layout: Layout, artifact: Artifact) -> str:
    lengths = [[len(f"{text.number} {text.interval}") for text in map(shown, row)] for row in layout.number_rows]
    widths = [max(map(len, column)) for column in zip(layout.texts, *layout.text_rows, strict=True)]
    widths += [max(column) for column in zip(map(len, layout.numbers), *lengths, strict=True)]
    wide = sum(width + 1 for width in widths) > _COLUMN_CHARACTERS
    cells = _filled(layout, escape_tex, _in_tex)
    if layout.numbers:
        cells.iloc[-1, 0] = r"\midrule n"  # a rule may open the first cell of a row
    columns = "".join("r" if layout.right_aligned(i) else "l" for i in range(len(cells.columns)))
    tabular = cells.style.hide(axis="index").to_latex(hrules=True, column_format=columns)
    environment = "table*" if wide else "table"
    legend = _legend(layout, artifact)
    caption = " ".join(escape_tex(part) for part in (artifact.caption, legend, artifact.notice) if part)
    return "\n".join(
        [
            f"% {artifact.title}. Needs \\usepackage{{booktabs,graphicx}}.",
            *(f"% {note}" for note in _notes(layout)),
            f"\\begin{{{environment}}}[t]",
            "\\centering",
            *(["\\footnotesize", "\\setlength{\\tabcolsep}{3pt}"] if wide else []),
            f"{_FITTED}{tabular.rstrip()}}}",
            f"\\caption{{{caption}}}",
            f"\\label{{tab:{artifact.name}}}",
            f"\\end{{{environment}}}",
            "",
        ]
    )


def _in_tex(cell: Shown) -> str:
    """Return a cell as LaTeX: with a published number two lines, no package needed."""
    ours = escape_tex(cell.number) + (rf" {{\scriptsize {cell.interval}}}" if cell.interval else "")
    if not cell.published:
        return ours
    flags = rf"\textsuperscript{{{cell.flags}}}" if cell.flags else ""
    difference = f" ({escape_tex(cell.difference.replace('-', '−'))})" if cell.difference else ""
    second = rf"{{\scriptsize {cell.published}{flags}{difference}}}"
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{ours}\\{second}\end{{tabular}}"


def escape_tex(text: str) -> str:
    """Return a text that LaTeX prints as it is."""
    return text.translate(_TEX)


def _html(layout: Layout, artifact: Artifact) -> str:
    cells = _filled(layout, html.escape, _in_html)
    styler = cells.style.hide(axis="index").set_uuid(artifact.name)
    styler.set_td_classes(_classes(layout, cells))
    styler.set_table_styles(
        {
            heading: [{"selector": "", "props": "text-align: right"}]
            for i, heading in enumerate(cells.columns)
            if layout.right_aligned(i)
        }
    )
    if layout.numbers:
        styler.set_tooltips(_tooltips(layout, cells), as_title_attribute=True)
    return pages.render(
        "reporting/table.html.jinja",
        artifact=artifact,
        table=styler.to_html(),
        legend=_legend(layout, artifact),
        notes=_notes(layout),
        counted=bool(layout.numbers),
    )


def _in_html(cell: Shown) -> str:
    ours = cell.number + (f' <span class="interval">{cell.interval}</span>' if cell.interval else "")
    if not cell.published:
        return ours
    difference = f" ({cell.difference})" if cell.difference else ""
    return f'{ours} <span class="published">{_raised(cell)}{difference}</span>'


def _classes(layout: Layout, cells: pd.DataFrame) -> pd.DataFrame:
    classes = pd.DataFrame("", index=cells.index, columns=cells.columns)
    classes.iloc[:, len(layout.texts) :] = "number"
    for i, row in enumerate(layout.number_rows):
        classes.iloc[i, len(layout.texts) :] = [f"number {cell.mark}".rstrip() for cell in row]
    return classes


def _tooltips(layout: Layout, cells: pd.DataFrame) -> pd.DataFrame:
    tips = pd.DataFrame("", index=cells.index, columns=cells.columns)
    for i, row in enumerate(layout.number_rows):
        tips.iloc[i, len(layout.texts) :] = [html.escape(_tooltip(cell)) for cell in row]
    return tips


def _tooltip(cell: Cell) -> str:
    value, known = cell.value, cell.published
    low, high = value.interval
    numbers = f"{value.value:.6g}, standard error {value.stderr:.3g}, 95% {low:.6g} to {high:.6g}, n = {value.n}"
    told = [f"{cell.lineage}: {value.missing or numbers}"]
    if known:
        told.append("; ".join([f"published {known.value}", *(flag.text for flag in known.flags)]))
    return ". ".join(told)
