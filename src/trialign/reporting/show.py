"""Prints tables on the terminal when the study is done, and where everything else lies."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trialign import terminal
from trialign.errors import UserError

NUMBER = re.compile(r"-|(-?\d[\d.]*)?")  # a run that diverged has nothing in its cells
# what a finished results tree holds beside the printed tables, in the order in which it is told
PLACES = (
    ("the study", "index.html"),
    ("tables", "table*.html"),
    ("figures", "figure*.png"),
    ("all numbers", "results.csv"),
    ("report", "report.html"),
    ("rule graph", "rulegraph.svg"),
)


def print_tables(root: Path, names: Sequence[str], console: Console | None = None) -> None:
    """Print the tables `names` of the results tree `root` from their csv files; UserError where one is missing."""
    console = console or terminal.console()
    for name in names:
        path = root / f"{name}.csv"
        if not path.is_file():
            raise UserError(f"{path} is missing: run snakemake {path} first")
        title, notice = _head(root / f"{name}.md")
        table = _table(path, title, fold_headings=False)
        if console.measure(table, options=console.options.update(width=terminal.UNBOUNDED)).minimum > console.width:
            table = _table(path, title, fold_headings=True)
        console.print(table)
        if notice:
            console.print(f"[yellow]{escape(notice)}[/yellow]")
        console.print()
    for what, pattern in PLACES:
        found = sorted(root.glob(pattern))
        if found:
            more = f" ... {found[-1].name} ({len(found)})" if len(found) > 1 else ""
            console.print(f"{what:<12} {escape(str(found[0]))}{more}", soft_wrap=True, highlight=False)


def _head(markdown: Path) -> tuple[str, str]:
    """Return title and notice from an artifact's Markdown form: its `# ` and its `> ` line."""
    lines = markdown.read_text(encoding="utf-8").splitlines()
    marked = {line[0]: line[2:] for line in reversed(lines) if line[:2] in ("# ", "> ")}
    return marked.get("#", ""), marked.get(">", "")


def _table(path: Path, title: str, fold_headings: bool) -> Table:
    """Return the table of a csv file. Texts fold where the terminal is narrow, then headings; numbers never do."""
    with path.open(encoding="utf-8", newline="") as file:
        headings, *rows = csv.reader(file)
    look = {"box": SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True, "header_style": "bold"}
    table = Table(title=escape(title), title_justify="left", title_style="bold", **look)
    for heading, *cells in zip(headings, *rows, strict=True):
        right = all(NUMBER.fullmatch(cell) for cell in cells)
        whole = cells if fold_headings else [heading, *cells]
        least = max(map(len, whole)) if right else None
        table.add_column(escape(heading), justify="right" if right else "left", overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
