from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from trialign.errors import UserError
from trialign.reporting.show import print_tables

HEADINGS = ("Model", "+SFT", "+SFT+DPO", "+SFT+IPO", "+SFT+KTO", "+SFT+CPO", "+ORPO", "+SFT+ORPO", "+SFT+TPO", "+TPO")
NUMBERS = ("5.42", "6.06", "5.91", "6.64", "6.42", "6.06", "4.32", "6.18", "6.69")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "table3.csv").write_text(f"{','.join(HEADINGS)}\nPhi-2 [tiny],{','.join(NUMBERS)}\n")
    (tmp_path / "table3.md").write_text("# Table 3\n\n> The demo world.\n\nA caption.\n")
    (tmp_path / "table3.html").touch()
    (tmp_path / "results.csv").touch()
    (tmp_path / "index.html").touch()
    return tmp_path


def shown(root: Path, width: int) -> str:
    file = io.StringIO()
    print_tables(root, ["table3"], Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_every_number_is_whole_on_narrow_and_wide_terminals(root: Path, width: int) -> None:
    lines = shown(root, width).splitlines()
    cells = next(line.split() for line in lines if "5.42" in line)
    assert [cell for cell in cells if "." in cell] == list(NUMBERS)
    assert all(len(line.rstrip()) <= width for line in lines if "5.42" in line)


def test_title_notice_and_places_are_told(root: Path) -> None:
    text = shown(root, 200)
    assert "Table 3" in text
    assert "The demo world." in text
    assert "Phi-2 [tiny]" in text  # brackets are text, not markup
    assert str(root / "table3.html") in text
    assert str(root / "results.csv") in text
    assert str(root / "index.html") in text
    assert "report" not in text  # what is not there is not told


def test_a_table_that_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(UserError, match=r"table1\.csv is missing"):
        print_tables(root, ["table1"])
