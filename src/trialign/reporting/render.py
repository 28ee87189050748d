"""Writes a table in the four forms that an artifact has: csv, Markdown, LaTeX (booktabs) and an HTML page.

The csv is the paper's plain layout: text columns, then numbers with two decimals. The other three show each number with
its standard error, a last row with the number of items, and the title, caption and notice of the artifact. The cell of
a number that is not there (training diverged) is empty in the csv and a dash in the others.
"""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from trialign import pages
from trialign.errors import UserError
from trialign.recipes import Artifact
from trialign.reporting.gather import Value, missing

DECIMALS = 2
DASH = "–"
_NUMBER = re.compile(r"-|-?\d[\d.]*(e-?\d+)?")
_TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    # in the default font encoding these three print as other characters
    | {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
    | {"α": r"$\alpha$", "β": r"$\beta$", "±": r"$\pm$", "−": "$-$", "×": r"$\times$"}
)
_COLUMN_CHARACTERS = 50  # a wider LaTeX table spans both columns of a page, in a smaller font
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"  # shrinks what is still too wide


class Cell(NamedTuple):
    """A number of a table and the lineage that it belongs to."""

    lineage: str
    value: Value


@dataclass(frozen=True)
class Layout:
    """A table before it is written: headings of the text and the number columns, and the rows of both, in order."""

    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    text_rows: tuple[tuple[str, ...], ...]
    number_rows: tuple[tuple[Cell, ...], ...]

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


def _shown(layout: Layout, pattern: str) -> pd.DataFrame:
    """Return the table as text: values and standard errors through `pattern`, with the row of counts at the end."""

    def show(value: Value) -> str:
        if not value.scored:
            return DASH
        if math.isnan(value.stderr):  # a single item has no standard error
            return number(value.value)
        return pattern.format(number(value.value), number(value.stderr))

    frame = _frame(layout, [[show(cell.value) for cell in row] for row in layout.number_rows])
    if layout.numbers:
        frame.loc[len(frame)] = _counts(layout)
    return frame


def _markdown(layout: Layout, artifact: Artifact) -> str:
    frame = _shown(layout, "{} ± {}").map(escape_markdown)
    frame.columns = [escape_markdown(heading) for heading in frame.columns]
    sides = ["right" if layout.right_aligned(i) else "left" for i in range(len(frame.columns))]
    table = frame.to_markdown(index=False, disable_numparse=True, colalign=sides)
    notice = [f"> {artifact.notice}"] if artifact.notice else []
    return "\n\n".join([f"# {artifact.title}", *notice, artifact.caption, table, _legend(layout)]).rstrip() + "\n"


def escape_markdown(text: str) -> str:
    """Return a text that Markdown prints as it is."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", text)


def _legend(layout: Layout) -> str:
    if not layout.numbers:
        return ""
    why = missing(cell.value for row in layout.number_rows for cell in row)
    dashes = f" {DASH}: {why}." if why else ""
    return f"Value ± standard error; n: items behind each number of the column.{dashes}"


def _tex(layout: Layout, artifact: Artifact) -> str:
    shown = _shown(layout, "{} ± {}")
    wide = sum(max(map(len, [heading, *shown[heading]])) + 1 for heading in shown) > _COLUMN_CHARACTERS
    cells = shown.map(escape_tex)
    cells.columns = [escape_tex(heading) for heading in cells.columns]
    if layout.numbers:
        cells = cells.replace({r"(?<=\d) \$\\pm\$ (.*)": r" {\\scriptsize $\\pm$ \1}"}, regex=True)
        cells.iloc[-1, 0] = r"\midrule n"  # a rule may open the first cell of a row
    columns = "".join("r" if layout.right_aligned(i) else "l" for i in range(len(cells.columns)))
    tabular = cells.style.hide(axis="index").to_latex(hrules=True, column_format=columns)
    environment = "table*" if wide else "table"
    caption = " ".join(escape_tex(part) for part in (artifact.caption, _legend(layout), artifact.notice) if part)
    return "\n".join(
        [
            f"% {artifact.title}. Needs \\usepackage{{booktabs,graphicx}}.",
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


def escape_tex(text: str) -> str:
    """Return a text that LaTeX prints as it is."""
    return text.translate(_TEX)


def _html(layout: Layout, artifact: Artifact) -> str:
    cells = _shown(layout, "{} ± {}").map(html.escape)
    cells = cells.replace({r"(?<=\d) (± .*)": r' <span class="error">\1</span>'}, regex=True)
    cells.columns = [html.escape(heading) for heading in cells.columns]
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
        legend=_legend(layout),
        counted=bool(layout.numbers),
    )


def _classes(layout: Layout, cells: pd.DataFrame) -> pd.DataFrame:
    classes = pd.DataFrame("", index=cells.index, columns=cells.columns)
    classes.iloc[:, len(layout.texts) :] = "number"
    return classes


def _tooltips(layout: Layout, cells: pd.DataFrame) -> pd.DataFrame:
    tips = pd.DataFrame("", index=cells.index, columns=cells.columns)
    for i, row in enumerate(layout.number_rows):
        for j, (lineage, value) in enumerate(row, start=len(layout.texts)):
            numbers = f"{value.value:.6g}, standard error {value.stderr:.3g}, n = {value.n}"
            tip = f"{lineage}: {value.missing or numbers}"
            tips.iloc[i, j] = html.escape(tip)
    return tips
