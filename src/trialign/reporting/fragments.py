"""What the files of an artifact give to a page of many: a table as HTML, a figure as a data URI, downloads."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from lxml import html
from markupsafe import Markup

FORMS = ("html", "csv", "md", "tex", "svg", "png", "pdf")  # the order of downloads
MIME = {".svg": "image/svg+xml", ".png": "image/png"}
LARGEST_SVG = 400_000  # bytes: a drawing of more is shown by its bitmap, if that is smaller
COUNTS = "n"  # first cell of a table's row of counts, which is no row of the table
NUMBER = re.compile(r"[-−+]?\d[\d,]*\.?\d*(e[-+]?\d+)?")
NOTHING = ("", "-", "–")
KEPT = ("class", "title", "href", "colspan", "rowspan", "scope", "data-value")  # attributes


@dataclass(frozen=True)
class Download:
    """A file beside the page. label: its name less the artifact's."""

    name: str
    label: str


def downloads(files: Collection[Path]) -> list[Download]:
    """Return an artifact's files in the order of FORMS, others after them."""
    found = [Download(file.name, file.name.partition(".")[2]) for file in files]
    return sorted(found, key=lambda item: (FORMS.index(item.label) if item.label in FORMS else len(FORMS), item.label))


def picture(files: Collection[Path]) -> str | None:
    """Return a figure as a data URI: its drawing, or its bitmap where the drawing is large; None for a table."""
    forms = {file.suffix: file for file in files}
    if ".svg" not in forms:
        return None
    chosen = forms[".svg"]
    if ".png" in forms and forms[".png"].stat().st_size < chosen.stat().st_size > LARGEST_SVG:
        chosen = forms[".png"]
    return data_uri(chosen)


def data_uri(file: Path) -> str:
    """Return a picture's file as a data URI."""
    return f"data:{MIME[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def tables(page: Path) -> tuple[list[Markup], list[str]]:
    """Return the tables of an artifact's page, and what is said below them: its legend and its notes.

    They lose ids, styles and scripts; columns of numbers get the class `number`; a last row of counts goes into a foot.
    """
    tree = html.document_fromstring(page.read_text(encoding="utf-8"))
    notes = [*tree.find_class("legend"), *tree.xpath("//*[@class='notes']/li")]
    return [_table(table) for table in tree.iter("table")], [" ".join(note.text_content().split()) for note in notes]


def _table(table: html.HtmlElement) -> Markup:
    for element in [*table.iter("script", "style")]:
        element.drop_tree()
    for element in table.iter():
        for name in set(element.attrib) - set(KEPT):
            del element.attrib[name]
    _count_row_to_foot(table)
    for column in number_columns([_texts(row) for row in table.findall("./tbody/tr")]):
        for row in table.iter("tr"):
            if len(row) > column:
                row[column].classes.add("number")
    table.classes.add("sortable")
    return Markup(html.tostring(table, encoding="unicode", with_tail=False))


def _count_row_to_foot(table: html.HtmlElement) -> None:
    rows = table.findall("./tbody/tr")
    if len(rows) > 1 and _texts(rows[-1])[:1] == [COUNTS]:
        foot = html.Element("tfoot")
        foot.append(rows[-1])
        table.append(foot)


def _texts(row: html.HtmlElement) -> list[str]:
    return [cell.text_content().strip() for cell in row]


def number_columns(rows: list[list[str]]) -> list[int]:
    """Return the columns whose cells begin with a number, or hold nothing."""
    columns = [list(cells) for cells in zip(*rows, strict=False)]
    return [
        i
        for i, cells in enumerate(columns)
        if any(NUMBER.match(cell) for cell in cells) and all(cell in NOTHING or NUMBER.match(cell) for cell in cells)
    ]


def claims(files: Collection[Path]) -> list[dict[str, str]]:
    """Return the rows of an artifact's csv if they are claims with verdicts; none for any other artifact."""
    table = next((file for file in files if file.name.partition(".")[2] == "csv"), None)
    if table is None or not {"claim", "verdict"} <= set(pd.read_csv(table, nrows=0).columns):
        return []
    return pd.read_csv(table, dtype=str, keep_default_na=False).to_dict("records")
