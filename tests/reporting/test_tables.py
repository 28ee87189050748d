from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from invented import Study, markdown_rows, right
from scipy.stats import binomtest

from trialign.diverged import write as mark
from trialign.errors import UserError
from trialign.recipes import Column, FactsRecipe, PivotRecipe, Row, TableRecipe
from trialign.reporting.tables import facts, pivot, table

NOTICE = "This is the demo world: 100% invented & never compared with the paper's numbers."
COMMON = {"caption": "More detail about ORPO_1 in {B.1}.", "notice": NOTICE, "seeds": (1,)}
HARNESS = {  # label -> benchmark, metric, items
    "ARC": ("arc", "acc_norm", 1172),
    "TruthfulQA": ("truthfulqa", "mc2", 817),
    "Winogrande": ("winogrande", "acc", 1267),
    "HellaSwag": ("hellaswag", "acc_norm", 1000),
    "MMLU": ("mmlu", "acc", 570),
    "BB-causal": ("causal", "acc", 190),
    "BB-sports": ("sports", "acc", 986),
    "BB-formal": ("formal", "acc", 1420),
    "OpenBookQA": ("openbookqa", "acc_norm", 500),
}
LEADERBOARD = ("ARC", "TruthfulQA", "Winogrande", "HellaSwag", "MMLU")
TABLE1_ROWS = (  # the paper's Table 1
    ("Mistral", "SFT", "mistral+sft"),
    ("Mistral+SFT", "DPO", "mistral+sft+dpo@beta=0.1"),
    ("Mistral+SFT", "IPO", "mistral+sft+ipo@beta=0.1"),
    ("Mistral+SFT", "KTO", "mistral+sft+kto@beta=0.1"),
    ("Mistral+SFT", "CPO", "mistral+sft+cpo@beta=0.1"),
    ("Mistral", "ORPO", "mistral+orpo@beta=0.1"),
    ("Mistral+SFT", "TPO (our)", "mistral+sft+tpo@alpha=1@beta=0.1"),
    ("Mistral", "TPO (our α = 1 | β = 0.1)", "mistral+tpo@alpha=1@beta=0.1"),
    ("Mistral", "TPO (our α = 0.9 | β = 0.2)", "mistral+tpo@alpha=0.9@beta=0.2"),
)


def column(label: str) -> Column:
    benchmark, metric, _ = HARNESS[label]
    return Column(label=label, benchmark=benchmark, metric=metric, scale=100)


def counts(label: str, row: int) -> tuple[int, int]:
    """Return how many items a lineage has right, and of how many."""
    n = HARNESS[label][2]
    return n * (3 + row) // 17 + len(label), n


def printed(*fractions: Fraction) -> str:
    """Return the mean of accuracies as a percentage with two decimals, by exact arithmetic."""
    percent = 100 * sum(fractions, Fraction(0)) / len(fractions)
    exact = Decimal(percent.numerator) / Decimal(percent.denominator)
    return str(exact.quantize(Decimal("0.01"), ROUND_HALF_EVEN))


def rows_of(texts: tuple[tuple[str, str, str], ...]) -> tuple[Row, ...]:
    return tuple(Row(lineage=lineage, texts={"Model": model, "Align": align}) for model, align, lineage in texts)


def fill(study: Study, lineages: list[str], labels: tuple[str, ...]) -> None:
    for i, lineage in enumerate(lineages):
        records = [r for label in labels for r in right(*HARNESS[label][:2], *counts(label, i))]
        study.suite(lineage, records)


def fill_judged(study: Study, scores: dict[str, tuple[float, float]]) -> None:
    """Give each lineage two questions with these mean scores in the first and in the second turn."""
    for lineage, turns in scores.items():
        records = []
        for turn, (metric, score) in enumerate(zip(("first_turn", "second_turn"), turns, strict=True), start=1):
            for question, offset in ((81, -0.5), (82, 0.5)):
                item = f"{question}/{turn}"
                records.append(("mtbench", "writing", item, metric, score + offset))
                records.append(("mtbench", "writing", item, "score", score + offset))
        study.suite(lineage, records, suite="mtbench/rubric")


def table1(study: Study) -> TableRecipe:
    fill(study, [lineage for *_, lineage in TABLE1_ROWS], LEADERBOARD)
    columns = tuple(column(label) for label in LEADERBOARD)
    average = Column(label="Average", mean_of=columns)
    return TableRecipe(
        name="table1",
        title="Table 1",
        texts=("Model", "Align"),
        rows=rows_of(TABLE1_ROWS),
        columns=(*columns, average),
        **COMMON,
    )


def test_table_1_has_the_papers_layout_and_exact_numbers(study: Study) -> None:
    lines = (study.run(table, table1(study)) / "table1.csv").read_text().splitlines()
    assert lines[0] == "Model,Align,ARC,TruthfulQA,Winogrande,HellaSwag,MMLU,Average"
    for i, (model, align, _) in enumerate(TABLE1_ROWS):
        fractions = [Fraction(*counts(label, i)) for label in LEADERBOARD]
        cells = [printed(fraction) for fraction in fractions]
        assert lines[i + 1] == ",".join([model, align, *cells, printed(*fractions)])
    assert len(lines) == 10


def test_a_diverged_run_has_a_dash_in_place_of_each_number(study: Study) -> None:
    recipe = table1(study)
    mark(study.root / "runs" / TABLE1_ROWS[1][2] / "seed1" / "leaderboard", {"step": 7})
    out = study.run(table, recipe)
    lines = (out / "table1.csv").read_text().splitlines()
    assert lines[2] == "Mistral+SFT,DPO,,,,,,"
    assert all(line.count(",,") == 0 for i, line in enumerate(lines) if i != 2)
    rows = [line for line in (out / "table1.md").read_text().splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[3].strip("|").split("|")] == ["Mistral+SFT", "DPO", *["–"] * 6]
    assert rows[-1].split("|")[3].strip() == "1172", "n counts the rows that have a score"
    for form in ("md", "tex", "html"):
        assert "–: training diverged." in (out / f"table1.{form}").read_text()
    assert "nan" not in (out / "table1.html").read_text()


def test_table_2_puts_scores_beside_percentages(study: Study) -> None:
    labels = ("BB-causal", "BB-sports", "BB-formal", "OpenBookQA")
    judged = Column(label="MT-Bench", benchmark="mtbench", metric="score")
    rows = TABLE1_ROWS[:2]
    fill(study, [lineage for *_, lineage in rows], labels)
    fill_judged(study, {"mistral+sft": (6.0, 5.88), "mistral+sft+dpo@beta=0.1": (7.0, 6.28)})
    recipe = TableRecipe(
        name="table2",
        title="Table 2",
        texts=("Model", "Align"),
        rows=rows_of(rows),
        columns=(judged, *map(column, labels)),
        **COMMON,
    )
    frame = pd.read_csv(study.run(table, recipe) / "table2.csv")
    assert list(frame) == ["Model", "Align", "MT-Bench", "BB-causal", "BB-sports", "BB-formal", "OpenBookQA"]
    assert frame["MT-Bench"].tolist() == [5.94, 6.64]
    assert frame["BB-causal"].tolist() == [float(printed(Fraction(*counts("BB-causal", i)))) for i in range(2)]


def test_table_3_keeps_the_order_of_its_columns(study: Study) -> None:
    headings = ("+SFT", "+SFT+DPO", "+SFT+IPO", "+SFT+KTO", "+SFT+CPO", "+ORPO", "+SFT+ORPO", "+SFT+TPO", "+TPO")
    scores = (5.42, 6.06, 5.91, 6.64, 6.42, 6.06, 4.32, 6.18, 6.69)
    lineages = ["phi2" + heading.lower() for heading in headings]
    fill_judged(study, {lineage: (score, score) for lineage, score in zip(lineages, scores, strict=True)})
    recipe = PivotRecipe(
        name="table3",
        title="Table 3",
        corner="Model",
        rows=("Phi-2",),
        columns=headings,
        cells={"Phi-2": dict(zip(headings, lineages, strict=True))},
        column=Column(label="MT-Bench", benchmark="mtbench", metric="score"),
        **COMMON,
    )
    lines = (study.run(pivot, recipe) / "table3.csv").read_text().splitlines()
    assert lines == ["Model," + ",".join(headings), "Phi-2," + ",".join(map(str, scores))]


def test_table_7_crosses_sft_models_with_methods(study: Study) -> None:
    scores = {"sft": {"DPO": 6.64, "CPO": 6.2, "KTO": 6.48}, "sft10k": {"DPO": 5.33, "CPO": 5.89, "KTO": 5.3}}
    rows = {"Mistral+SFT(200K)": "sft", "Mistral+SFT(10K)": "sft10k"}
    cells = {row: {method: f"mistral+{sft}+{method.lower()}" for method in scores[sft]} for row, sft in rows.items()}
    fill_judged(study, {cells[row][m]: (s, s) for row, sft in rows.items() for m, s in scores[sft].items()})
    recipe = PivotRecipe(
        name="table7",
        title="Table 7",
        corner="Model",
        rows=tuple(rows),
        columns=("DPO", "CPO", "KTO"),
        cells=cells,
        column=Column(label="MT-Bench", benchmark="mtbench", metric="score"),
        **COMMON,
    )
    text = (study.run(pivot, recipe) / "table7.csv").read_text()
    assert text == "Model,DPO,CPO,KTO\nMistral+SFT(200K),6.64,6.20,6.48\nMistral+SFT(10K),5.33,5.89,5.30\n"


def test_table_9_has_turns_and_training_settings(study: Study) -> None:
    heads = ("Model", "Align", "Learning Rate", "Epoch", "Batch Size")
    texts = ("Mistral", "TPO (α=1 β=0.1)", "5e-7", "1", "16")
    fill_judged(study, {"mistral+tpo@alpha=1@beta=0.1": (6.78, 5.66)})
    metrics = {"First Turn (Score)": "first_turn", "Second Turn (Score)": "second_turn", "Average (Score)": "score"}
    recipe = TableRecipe(
        name="table9",
        title="Table 9",
        texts=heads,
        rows=(Row(lineage="mistral+tpo@alpha=1@beta=0.1", texts=dict(zip(heads, texts, strict=True))),),
        columns=tuple(Column(label=k, benchmark="mtbench", metric=m) for k, m in metrics.items()),
        **COMMON,
    )
    lines = (study.run(table, recipe) / "table9.csv").read_text().splitlines()
    assert lines == [",".join([*heads, *metrics]), "Mistral,TPO (α=1 β=0.1),5e-7,1,16,6.78,5.66,6.22"]


def test_table_of_facts_counts_the_items(study: Study) -> None:
    fill(study, ["mistral+sft"], ("ARC", "MMLU"))
    recipe = FactsRecipe(
        name="table4",
        title="Table 4",
        columns=("Benchmark", "Few-shot", "Metric"),
        rows=(
            {"Benchmark": "ARC", "Few-shot": "25", "Metric": "acc_norm"},
            {"Benchmark": "MMLU", "Few-shot": "5", "Metric": "acc"},
        ),
        benchmarks=("arc", "mmlu"),
        **COMMON,
    )
    out = study.run(facts, recipe)
    assert (out / "table4.csv").read_text() == (
        "Benchmark,Few-shot,Metric,Items\nARC,25,acc_norm,1172\nMMLU,5,acc,570\n"
    )
    assert check_tex((out / "table4.tex").read_text())[1:] == [
        ["ARC", "25", r"acc\_norm", "1172"],
        ["MMLU", "5", "acc", "570"],
    ]


def test_csv_reads_back_to_the_numbers_that_are_shown(study: Study) -> None:
    out = study.run(table, table1(study))
    frame = pd.read_csv(out / "table1.csv")
    shown = markdown_rows(out / "table1.md")
    for i, row in frame.iterrows():
        assert [float(re.split("[†≈ ]", cell)[0]) for cell in shown[i + 1][2:]] == row.tolist()[2:]


def test_markdown_shows_intervals_counts_title_caption_and_notice(study: Study) -> None:
    out = study.run(table, table1(study))
    rows = markdown_rows(out / "table1.md")
    assert rows[0] == ["Model", "Align", *LEADERBOARD, "Average"]
    assert rows[8][1] == "TPO (our α = 1 | β = 0.1)"  # the pipe does not break the table
    k, n = counts("ARC", 0)
    low, high = (100 * end for end in binomtest(k, n).proportion_ci(method="wilson"))
    assert rows[1][2] == f"{printed(Fraction(k, n))} [{low:.2f}, {high:.2f}]"
    assert rows[-1] == ["n", "", "1172", "817", "1267", "1000", "570", "4826"]
    text = (out / "table1.md").read_text()
    assert text.startswith("# Table 1\n")
    assert f"> {NOTICE}" in text
    assert COMMON["caption"] in text


def check_tex(text: str) -> list[list[str]]:
    """Return the cells of a LaTeX table's body; fails where braces, environments, columns or escapes are wrong."""
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    open_environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([^}]*)\}", code):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert not open_environments
    bare = re.sub(r"\\[\\&%$#_{}]", "", code.replace(r"\ifdim\width>\linewidth", ""))
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    for character in "%#~^|<>":
        assert character not in bare
    assert "_" not in re.sub(r"\\label\{[^}]*\}", "", bare)
    assert not set("αβ±†≈≥−") & set(code)
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", code)
    assert columns
    body = code.split("\\toprule")[1].split("\\bottomrule")[0].replace("\\midrule", "")
    rows = [line.strip().removesuffix("\\\\") for line in body.splitlines() if line.strip()]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)&", row)] for row in rows]
    assert {len(row) for row in cells} == {len(columns[1])}
    return cells


def test_tex_is_a_booktabs_table_with_everything_escaped(study: Study) -> None:
    text = (study.run(table, table1(study)) / "table1.tex").read_text()
    cells = check_tex(text)
    assert cells[0] == ["Model", "Align", *LEADERBOARD, "Average"]
    assert cells[8][1] == r"TPO (our $\alpha$ = 1 \textbar{} $\beta$ = 0.1)"
    assert cells[-1] == ["n", "", "1172", "817", "1267", "1000", "570", "4826"]
    assert re.fullmatch(r"\d\d\.\d\d \{\\scriptsize \[\d\d\.\d\d, \d\d\.\d\d\]\}", cells[1][2])
    assert re.match(r"\d\d\.\d\d\$\\dagger\$ \{", cells[9][2])
    assert [text.count(rule) for rule in ("\\toprule", "\\midrule", "\\bottomrule")] == [1, 2, 1]
    assert r"More detail about ORPO\_1 in \{B.1\}." in text
    assert r"This is the demo world: 100\% invented \& never compared" in text
    assert "% Table 1." in text


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_tex_compiles_and_fits_the_page(study: Study, tmp_path: Path) -> None:
    """Table 1 with the longest names and many columns, in a column and across both, by LaTeX itself."""
    recipe = table1(study)
    wide = recipe.model_copy(update={"name": "wide", "columns": tuple(
        c.model_copy(update={"label": f"{c.label} {i}"}) for i in range(2) for c in recipe.columns
    )})  # fmt: skip
    names = [study.run(table, each, each.name) / each.name for each in (recipe, wide)]
    inputs = "\n".join(rf"\input{{{name}}}" for name in names)
    (tmp_path / "paper.tex").write_text(
        "\\documentclass[twocolumn]{article}\n\\usepackage{booktabs,graphicx}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")


def test_what_tables_write_is_what_their_versions_say(study: Study) -> None:
    """Raise the versions of the table, pivot and facts recipes when a change of the bytes was meant."""
    recipe = table1(study)
    out = study.run(table, recipe)
    written = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(out.iterdir())))
    assert (recipe.version, written.hexdigest()[:16]) == (4, "7292eeaffdd6ad6e")
    assert all(kind.model_fields["version"].default == recipe.version for kind in (PivotRecipe, FactsRecipe))


class Page(HTMLParser):
    """Collects the cells, tooltips and text of a page; fails where elements are not closed in order."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}  # nothing from elsewhere
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self.titles += [value or "" for name, value in attrs if name == "title"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def test_html_is_a_page_of_its_own_with_tooltips(study: Study) -> None:
    out = study.run(table, table1(study))
    page = Page((out / "table1.html").read_text())
    assert page.cells == [cell for row in markdown_rows(out / "table1.md") for cell in row]
    assert len(page.titles) == 9 * 6
    k, n = counts("ARC", 0)
    stderr = 100 * (k * (n - k) / n**2 / (n - 1)) ** 0.5
    low, high = (100 * end for end in binomtest(k, n).proportion_ci(method="wilson"))
    expected = f"{100 * k / n:.6g}, standard error {stderr:.3g}, 95% {low:.6g} to {high:.6g}, n = 1172"
    assert page.titles[0] == f"mistral+sft: {expected}"
    for part in ("Table 1", COMMON["caption"], NOTICE):
        assert part in page.text


@pytest.mark.parametrize("label", ["<script>alert(1)</script>", r"50% \ a_b & {c} ~ ^ # $x$ | <d>", "*x* `y`"])
def test_labels_are_text_in_every_form(study: Study, label: str) -> None:
    fill(study, ["mistral+sft"], ("ARC",))
    recipe = TableRecipe(
        name="t",
        title="T",
        texts=("Model",),
        rows=(Row(lineage="mistral+sft", texts={"Model": label}),),
        columns=(column("ARC").model_copy(update={"label": label + "!"}),),
        **COMMON,
    )
    out = study.run(table, recipe)
    assert pd.read_csv(out / "t.csv").columns.tolist() == ["Model", label + "!"]
    assert markdown_rows(out / "t.md")[1][0] == label
    assert markdown_rows(out / "t.md")[0][1] == label + "!"
    page = Page((out / "t.html").read_text())
    assert (page.cells[1], page.cells[2]) == (label + "!", label)
    check_tex((out / "t.tex").read_text())


def test_rows_that_differ_in_their_count_say_so(study: Study) -> None:
    for lineage, n in (("mistral+sft", 160), ("mistral+orpo", 158)):
        scores = [("mtbench", "math", str(i), "score", float(i % 9 + 1)) for i in range(n)]
        study.suite(lineage, scores, suite="mtbench/rubric")
    recipe = TableRecipe(
        name="t",
        title="T",
        texts=("Model",),
        rows=tuple(Row(lineage=name, texts={"Model": name}) for name in ("mistral+sft", "mistral+orpo")),
        columns=(Column(label="MT-Bench", benchmark="mtbench", metric="score"),),
        **COMMON,
    )
    assert markdown_rows(study.run(table, recipe) / "t.md")[-1] == ["n", "158–160"]


def test_a_single_score_is_shown_without_an_interval(study: Study) -> None:
    study.suite("mistral+sft", [("arc", "", "1", "acc_norm", 0.5)])
    recipe = TableRecipe(
        name="t",
        title="T",
        texts=("Model",),
        rows=(Row(lineage="mistral+sft", texts={"Model": "Mistral"}),),
        columns=(column("ARC"),),
        **COMMON,
    )
    assert markdown_rows(study.run(table, recipe) / "t.md")[1] == ["Mistral", "50.00"]


def test_an_empty_cell_is_an_error_and_nothing_is_written(study: Study) -> None:
    recipe = table1(study)
    study.folders.pop()
    with pytest.raises(
        UserError, match=r"table1: no result for column 'ARC' of mistral\+tpo@alpha=0\.9@beta=0\.2, seed 1"
    ):
        study.run(table, recipe)
    assert not list((study.root / "out").iterdir())


def test_two_columns_of_one_name_are_refused(study: Study) -> None:
    recipe = table1(study)
    twice = recipe.model_copy(update={"columns": (recipe.columns[0], recipe.columns[0])})
    with pytest.raises(UserError, match="2 columns are called 'ARC'"):
        study.run(table, twice)


def test_the_same_items_give_the_same_bytes(study: Study) -> None:
    recipe = table1(study)
    first, second = study.run(table, recipe, "first"), study.run(table, recipe, "second")
    for form in ("csv", "md", "tex", "html", "cells.csv", "pairs.csv"):
        assert (first / f"table1.{form}").read_bytes() == (second / f"table1.{form}").read_bytes()
