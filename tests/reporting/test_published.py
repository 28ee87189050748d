"""Published numbers in tables: which belongs to which cell, what is said of it, and what is not known."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from invented import Study, markdown_rows, right

from trialign import config
from trialign.artifacts import artifact_recipe
from trialign.diverged import write as mark
from trialign.errors import UserError
from trialign.recipes import Column, Flag, PivotRecipe, Published, Row, TableRecipe
from trialign.reporting import published, tables

FILES = [Path("config/config.yaml")]
PAPER = config.load_files(FILES)
VALUES = Path("paper/published_values.csv")
LOST = 12.34  # what a run is given where the paper's number is lost
# counted by hand in the paper: cells of its tables that are known; Table 9 lacks the row that did not converge
KNOWN = {"table1": (54, 54), "table2": (45, 45), "table3": (9, 9), "table5": (40, 39), "table6": (9, 9),
         "table7": (8, 8), "table8": (90, 0), "table9": (15, 12)}  # fmt: skip
ARC = Column(label="ARC", benchmark="arc", metric="acc_norm", scale=100)


def places(recipe: TableRecipe | PivotRecipe) -> list[list[tuple[str, Column]]]:
    """Return the lineage and the column of each cell, row by row."""
    if isinstance(recipe, TableRecipe):
        return [[(row.lineage, column) for column in recipe.columns] for row in recipe.rows]
    return [[(recipe.cells[row][column], recipe.column) for column in recipe.columns] for row in recipe.rows]


def printed() -> dict[tuple[str, str, str], str]:
    """Return the paper's numbers by artifact, lineage and column, read apart from the code."""
    with VALUES.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["lineage"]]
    return {(row["artifact"], str(PAPER.lineage(row["lineage"])), row["column"]): row["value"] for row in rows}


def fed(study: Study, name: str) -> tuple[TableRecipe | PivotRecipe, Path]:
    """Make a table of the paper from runs whose items are the paper's numbers; a row without any has diverged."""
    recipe, numbers = artifact_recipe(PAPER, name), printed()
    for lineage in dict.fromkeys(lineage for row in places(recipe) for lineage, _ in row):
        columns = [column for row in places(recipe) for other, column in row if other == lineage and column.benchmark]
        known = {column.label: numbers.get((name, lineage, column.label)) for column in columns}
        records = [
            (column.benchmark, "", f"{item}/1", column.metric, float(known[column.label] or LOST) / column.scale)
            for column in columns
            for item in range(2)
        ]
        folder = study.suite(lineage, records, seed=PAPER.seeds[0])
        if not any(known.values()):
            mark(folder, {"step": 7})
    step = tables.table if isinstance(recipe, TableRecipe) else tables.pivot
    return recipe, study.run(step, recipe)


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table5", "table6", "table7", "table9"])
def test_published_numbers_fed_through_the_tables_give_the_published_tables_back(study: Study, name: str) -> None:
    recipe, out = fed(study, name)
    numbers = printed()
    with (out / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    shown = markdown_rows(out / f"{name}.md")[1:-1]
    found = 0
    for row, plain, seen in zip(places(recipe), rows, shown, strict=True):
        texts = len(plain) - len(row)
        for (lineage, column), ours, cell in zip(row, plain[texts:], seen[texts:], strict=True):
            value = numbers.get((name, lineage, column.label))
            first, _, second = cell.partition("<br>")
            if value is None:  # lost: nothing beside ours, which is a dash where the run diverged
                assert (ours, second) in [("", ""), (f"{LOST:.2f}", "")] and first[0] in "–1"
                continue
            found += 1
            assert re.sub("<sup>.*</sup>", "", second).split(" ")[0] == value
            flags = {flag.kind for number in recipe.published for flag in number.flags
                     if (number.lineage, number.column) == (lineage, column.label)}  # fmt: skip
            if (
                column.mean_of
            ):  # computed from the cells: the paper's own averages follow from them but for those flagged
                assert (abs(float(ours) - float(value)) > 0.0101) == ("inconsistent" in flags)
            else:
                assert ours == f"{float(value):.2f}" and second.endswith("(+0.00)")
    assert (sum(map(len, places(recipe))), found) == KNOWN[name]


def test_what_is_lost_altogether_has_no_numbers() -> None:
    recipe = artifact_recipe(PAPER, "table8")
    assert (sum(map(len, places(recipe))), len(recipe.published)) == KNOWN["table8"]


def test_the_numbers_are_the_papers() -> None:
    """A few cells read off the paper's text: Table 1's first row, Table 9's batch 32."""
    first = [number.value for number in artifact_recipe(PAPER, "table1").published[:4]]
    assert first == ["60.41", "43.73", "74.19", "81.69"]
    batch = [number.value for number in artifact_recipe(PAPER, "table9").published if "batch=32" in number.lineage]
    assert batch == ["6.98", "6.1", "6.54"]


def one_cell(study: Study, *flags: Flag, k: int = 150) -> Path:
    study.suite("mistral+sft", right("arc", "acc_norm", k, 200))
    recipe = TableRecipe(
        name="t", title="T", caption="C.", seeds=(1,), texts=("Model",), columns=(ARC,),
        rows=(Row(lineage="mistral+sft", texts={"Model": "Mistral"}),),
        published=(Published(lineage="mistral+sft", column="ARC", value="75.5", flags=flags),),
    )  # fmt: skip
    return study.run(tables.table, recipe)


def test_a_cell_has_ours_its_interval_and_the_published_number_with_flags(study: Study) -> None:
    flags = [Flag(kind="truncated", text="75.5 is cut"), Flag(kind="inconsistent", text="75.6 elsewhere")]
    out = one_cell(study, *flags)
    cell = markdown_rows(out / "t.md")[1][1]
    assert cell == "75.00 [68.57, 80.49]<br>75.5<sup>ti</sup> (-0.50)"
    text = (out / "t.md").read_text()
    assert "t: cut, not rounded; i: at odds with other published numbers" in text
    assert "- mistral+sft (ARC): 75.6 elsewhere." in text and "75.5 is cut" not in text
    page = (out / "t.html").read_text()
    assert ' <span class="published">75.5<sup>ti</sup> (-0.50)</span>' in page
    assert "published 75.5; 75.5 is cut; 75.6 elsewhere" in page, "the tooltip has all that is known"
    assert r"\\{\scriptsize 75.5\textsuperscript{ti} ($-$0.50)}\end{tabular}" in (out / "t.tex").read_text()
    assert (out / "t.csv").read_text() == "Model,ARC\nMistral,75.00\n", "the paper's plain layout"


def test_a_diverged_run_is_a_dash_over_the_published_number(study: Study) -> None:
    mark(study.suite("mistral+sft", []), {"step": 7})
    recipe = TableRecipe(
        name="t", title="T", caption="C.", seeds=(1,), texts=("Model",), columns=(ARC,),
        rows=(Row(lineage="mistral+sft", texts={"Model": "Mistral"}),),
        published=(Published(lineage="mistral+sft", column="ARC", value="75.5"),),
    )  # fmt: skip
    assert markdown_rows(study.run(tables.table, recipe) / "t.md")[1][1] == "–<br>75.5"


@pytest.mark.parametrize("overlay", ["demo", "small"])
def test_what_is_not_the_papers_study_is_never_compared(overlay: str) -> None:
    experiment = config.load_files([*FILES, Path(f"config/{overlay}.yaml")])
    recipes = [artifact_recipe(experiment, name) for name in experiment.artifacts]
    assert not any(getattr(recipe, "published", ()) for recipe in recipes)


def test_without_published_numbers_no_form_speaks_of_any(study: Study) -> None:
    study.suite("mistral+sft", right("arc", "acc_norm", 3, 4))
    row = Row(lineage="mistral+sft", texts={"Model": "Mistral"})
    common = {"name": "t", "title": "T", "caption": "C.", "seeds": (1,), "texts": ("Model",)}
    out = study.run(tables.table, TableRecipe(**common, columns=(ARC,), rows=(row,)))
    for form in ("md", "tex", "html"):
        text = (out / f"t.{form}").read_text().split("</style>")[-1]
        assert "ublished" not in text and "Last line" not in text


def test_an_overlay_may_drop_what_published_numbers_are_of(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "models: {phi2: null}\n"
        "artifacts: {table3: null, table5: {rows: [mistral+orpo]}, table8: null, controls: {rows: [mistral+sft]}}\n"
    )
    recipe = artifact_recipe(config.load_files([*FILES, overlay]), "table5")
    assert {number.lineage.partition("+")[0] for number in recipe.published} == {"mistral"}


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("artifact,lineage,column,value\n1,2,3,4\n")
    with pytest.raises(UserError, match=r"other\.csv: it lacks benchmark, metric, items, source, origin"):
        published.read(tmp_path / "other.csv")


def test_a_changed_file_changes_the_recipe(tmp_path: Path) -> None:
    file, overlay = tmp_path / "values.csv", tmp_path / "overlay.yaml"
    overlay.write_text(f"published: {file}\n")
    found = []
    for text in (VALUES.read_text(), VALUES.read_text().replace(",60.41,", ",60.42,")):
        file.write_text(text)
        found.append(artifact_recipe(config.load_files([*FILES, overlay]), "table1").canonical())
    assert found[0] != found[1] and '"60.42"' in found[1]


def test_every_value_has_its_source_and_prints_as_in_the_paper() -> None:
    rows = published.read(VALUES)
    assert all(row["source"] and float(row["value"]) is not None for row in rows)
