"""What is found in published numbers: in invented ones with known answers, and in the paper's."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from trialign.reporting import published
from trialign.reporting.consistency import Problem, problems

PAPER = published.read(Path("paper/published_values.csv"))


def row(value: str, artifact: str = "table1", lineage: str = "mistral+sft", **cells: str) -> dict[str, str]:
    column = cells.get("column", "ARC")
    blank = {"benchmark": column, "metric": "accuracy", "items": "", "source": "v1 Table 1", "origin": ""}
    return blank | {"artifact": artifact, "lineage": lineage, "column": column, "value": value} | cells


def kinds(*rows: dict[str, str]) -> list[str]:
    return [problem.kind for problem in problems(rows)]


@pytest.mark.parametrize("n", [190, 986, 1172, 1267])
def test_every_count_that_was_cut_is_told_from_one_that_was_rounded(n: int) -> None:
    """For all k of benchmarks whose counts are further apart than the last place: by integers alone."""
    for k in range(n + 1):
        cut, rest = divmod(10000 * k, n)
        up = cut + (2 * rest >= n)
        assert kinds(row(f"{cut / 100:.2f}", items=str(n))) == (["truncated"] if 2 * rest > n else [])
        assert kinds(row(f"{up / 100:.2f}", items=str(n))) == []


def test_a_number_that_is_no_count_is_inconsistent() -> None:
    counted = {f"{math.floor(10000 * k / 190) / 100:.2f}" for k in range(191)}
    counted |= {f"{100 * k / 190:.2f}" for k in range(191)}
    for hundredths in range(10001):
        text = f"{hundredths / 100:.2f}"
        expected = [] if text in counted else ["inconsistent"]
        assert [kind for kind in kinds(row(text, items="190")) if kind == "inconsistent"] == expected


def test_of_dense_counts_nothing_can_be_said() -> None:
    assert all(kinds(row(f"{value / 100:.2f}", items="14200")) == [] for value in range(5000, 5200))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("6.76", ["truncated"]), ("6.77", []), ("6.75", ["inconsistent"]), ("6.7", []), ("6.73", [])],
)
def test_scores_are_counts_of_points(value: str, expected: list[str]) -> None:
    """201 points in 30 answers are 6.7, 202 are 6.733, 203 are 6.767."""
    assert kinds(row(value, metric="score", items="30")) == expected


def test_an_average_must_follow_from_cells_that_were_cut_or_rounded() -> None:
    """Of cells 60.00 and 61.00 the mean is from 60.495 to 60.51, printed as 60.49 to 60.51."""
    cells = [row("60.00"), row("61", column="MMLU")]
    for value in ("60.49", "60.50", "60.51"):
        assert kinds(*cells, row(value, column="Average")) == []
    for value in ("60.48", "60.52"):
        (problem,) = problems([*cells, row(value, column="Average")])
        text = f"{value} is printed, the mean of the row's own cells is 60.500"
        assert problem == Problem("table1", "mistral+sft", "Average", "inconsistent", text)


def test_numbers_that_differ_between_tables_are_found_on_both_sides() -> None:
    found = problems([row("50.4"), row("50.41", "table5"), row("50.40", "table6"), row("1", "table5", "phi2+sft")])
    assert [(problem.artifact, problem.text) for problem in found] == [
        ("table1", "50.4 is printed here, 50.41 in Table 5"),
        ("table5", "50.41 is printed here, 50.4 in Table 1 and 50.40 in Table 6"),
        ("table6", "50.40 is printed here, 50.41 in Table 5"),
    ]


def test_where_a_number_is_from_is_said_unless_it_is_a_table_of_the_paper() -> None:
    assert kinds(row("1", source="v1 Table 3 caption")) == []
    (problem,) = problems([row("1", source="a picture")])
    assert (problem.kind, problem.text) == ("source", "a picture")
    (problem,) = problems([row("1", origin="equals another paper's")])
    assert (problem.kind, problem.text) == ("source", "equals another paper's")


def test_what_is_known_of_the_papers_numbers_is_found() -> None:
    """Table 1's DPO average; ORPO's BB-formal in Tables 2 and 5; two rows that change places between Tables 2 and 6."""
    found = [problem for problem in problems(PAPER) if problem.kind == "inconsistent"]
    one, other = "mistral+tpo@alpha=1@beta=0.1", "mistral+tpo@alpha=0.9@beta=0.2"
    assert {problem[:3] for problem in found} == {
        ("table1", "mistral+sft+dpo", "Average"),
        *((table, "mistral+orpo", "BB-formal") for table in ("table2", "table5")),
        *((table, lineage, "MT-Bench") for table in ("table2", "table6") for lineage in (one, other)),
    }
    texts = {problem.artifact: problem.text for problem in found}
    assert texts["table1"] == "64.91 is printed, the mean of the row's own cells is 64.894"
    assert "50.4 is printed here, 50.41 in Table 5" in [problem.text for problem in found]


def test_the_paper_cut_its_accuracies_but_for_one_of_the_row_that_is_anothers() -> None:
    """Many were cut where rounding goes up; the one that was rounded up is in the row that equals another paper's."""
    found = problems(PAPER)
    columns = Counter(problem.column for problem in found if problem.kind == "truncated")
    assert columns.keys() == {"ARC", "Winogrande", "BB-causal", "BB-sports"} and columns.total() > 20
    rounded_up = []
    for line in PAPER:
        if line["column"] in columns:
            n, value = int(line["items"]), round(100 * float(line["value"]))
            if 10000 * math.ceil(value * n / 10000) // n != value:
                rounded_up.append((line["artifact"], line["lineage"], line["column"], "source"))
    assert rounded_up == [("table1", "mistral+sft", "ARC", "source")]
    assert rounded_up[0] in {problem[:4] for problem in found}


def test_the_sft_row_is_flagged_as_anothers() -> None:
    found = {(p.artifact, p.column) for p in problems(PAPER) if p.kind == "source" and "2401.01335" in p.text}
    assert ("table1", "ARC") in found and ("table2", "MT-Bench") in found
    assert {p.lineage for p in problems(PAPER) if p.kind == "source" and "2401.01335" in p.text} == {"mistral+sft"}
