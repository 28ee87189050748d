"""Pairs of lineages: from item records to differences, families and marks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from invented import Record, Study, right
from scipy import stats
from statsmodels.stats.multitest import multipletests

from trialign.diverged import write as mark
from trialign.errors import UserError
from trialign.recipes import Column, PivotRecipe, Row, TableRecipe
from trialign.reporting import pairs
from trialign.reporting.gather import Measurements
from trialign.reporting.pairs import family, marks
from trialign.reporting.tables import pivot, table

ARC = Column(label="ARC", benchmark="arc", metric="acc_norm", scale=100)
MMLU = Column(label="MMLU", benchmark="mmlu", metric="acc", scale=100, aggregate="subsets")
SCORE = Column(label="MT-Bench", benchmark="mtbench", metric="score")
AVERAGE = Column(label="Average", mean_of=(ARC, MMLU))
A, B, C = "mistral+sft", "mistral+orpo@beta=0.1", "mistral+tpo@alpha=1@beta=0.1"


def answers(benchmark: str, metric: str, values: Sequence[float], subset: str = "", start: int = 0) -> list[Record]:
    return [(benchmark, subset, f"{i:03}", metric, float(v)) for i, v in enumerate(values, start=start)]


def rated(values: np.ndarray) -> list[Record]:
    """Return ratings of (questions, turns)."""
    return [
        ("mtbench", "writing", f"{q}/{t + 1}", "score", float(value))
        for q, row in enumerate(values)
        for t, value in enumerate(row)
    ]


def measured(study: Study, runs: Mapping[str, list[Record]], seed: int = 1, suite: str = "leaderboard") -> Measurements:
    for lineage, records in runs.items():
        study.suite(lineage, records, seed=seed, suite=suite)
    return Measurements("table1", study.folders)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def test_items_are_paired_by_their_names_not_their_places(study: Study, random: np.random.Generator) -> None:
    a, b = random.integers(0, 2, (2, 40))
    records = answers("arc", "acc_norm", b)
    found = measured(study, {A: answers("arc", "acc_norm", a), B: records[::-1]})
    (difference,) = pairs.differences(found, ARC, [A, B], [1])
    assert difference.difference == pytest.approx(100 * (a - b).mean())
    assert difference.stderr == pytest.approx(100 * stats.sem(a - b))
    assert (difference.n, difference.test) == (40, "bootstrap, McNemar")


def test_the_turns_of_a_question_are_one_cluster(study: Study, random: np.random.Generator) -> None:
    a, b = random.integers(1, 11, (2, 80, 2))
    (found,) = pairs.differences(measured(study, {A: rated(a), B: rated(b)}), SCORE, [A, B], [1])
    of_questions = (a - b).mean(axis=1)
    assert found.stderr == pytest.approx(stats.sem(of_questions))
    assert found.p == pytest.approx(stats.ttest_1samp(of_questions, 0).pvalue)
    assert (found.n, found.test) == (160, "bootstrap, t")


def test_a_mean_of_benchmarks_and_of_subsets_weighs_each_alike(study: Study, random: np.random.Generator) -> None:
    values = {name: random.integers(0, 2, (2, n)) for name, n in (("arc", 30), ("law", 10), ("physics", 50))}
    runs = {
        lineage: answers("arc", "acc_norm", values["arc"][i])
        + answers("mmlu", "acc", values["law"][i], "law")
        + answers("mmlu", "acc", values["physics"][i], "physics")
        for i, lineage in enumerate((A, B))
    }
    (found,) = pairs.differences(measured(study, runs), AVERAGE, [A, B], [1])
    deltas = {name: 100 * (one - other) for name, (one, other) in values.items()}
    weights = {"arc": 1 / 2, "law": 1 / 4, "physics": 1 / 4}
    assert found.difference == pytest.approx(sum(weights[name] * deltas[name].mean() for name in weights))
    assert found.stderr == pytest.approx(math.hypot(*(weights[name] * stats.sem(deltas[name]) for name in weights)))
    assert (found.n, found.test) == (90, "bootstrap, t")


def test_a_difference_is_that_of_the_cells(study: Study, random: np.random.Generator) -> None:
    """Whatever the column: where all have the same items, what the table shows is what is compared."""
    runs = {
        lineage: answers("arc", "acc_norm", random.integers(0, 2, 30))
        + answers("mmlu", "acc", random.integers(0, 2, 10), "law")
        + answers("mmlu", "acc", random.integers(0, 2, 20), "physics")
        for lineage in (A, B, C)
    }
    found = measured(study, runs)
    for column in (ARC, MMLU, AVERAGE, MMLU.model_copy(update={"aggregate": "items"})):
        values = {lineage: found.value(column, lineage, [1]).value for lineage in (A, B, C)}
        for pair in family(found, column, [A, B, C], [1]):
            assert pair.difference.difference == pytest.approx(values[pair.a] - values[pair.b])


def test_rows_with_other_items_are_compared_on_what_both_have(study: Study) -> None:
    """A third row that has all items loses none by it."""
    a, b, c = [1, 1, 0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 1, 0, 1, 0]
    found = measured(study, {
        A: answers("arc", "acc_norm", a), B: answers("arc", "acc_norm", b, start=2), C: answers("arc", "acc_norm", c)
    })  # fmt: skip
    ab, ac, bc = pairs.differences(found, ARC, [A, B, C], [1])
    assert [pair.n for pair in (ab, ac, bc)] == [4, 6, 4]
    assert ab.difference == pytest.approx(100 * (np.mean(a[2:]) - np.mean(b)))
    assert ac.difference == pytest.approx(100 * (np.mean(a) - np.mean(c)))


def test_rows_without_a_common_item_cannot_be_compared(study: Study) -> None:
    found = measured(study, {A: answers("arc", "acc_norm", [1, 0]), B: answers("arc", "acc_norm", [1, 0], start=2)})
    with pytest.raises(
        UserError, match=r"table1: .* have no item of column 'ARC' in common: evaluate them on the same"
    ):
        pairs.differences(found, ARC, [A, B], [1])


def test_a_diverged_row_has_no_differences_and_takes_none_from_the_others(study: Study) -> None:
    study.suite(A, right("arc", "acc_norm", 30, 50))
    mark(study.suite(B, []), {"step": 7})
    study.suite(C, right("arc", "acc_norm", 20, 50))
    found = family(Measurements("table1", study.folders), ARC, [A, B, C], [1])
    assert [pair.difference.missing for pair in found] == ["training diverged", "", "training diverged"]
    assert math.isnan(found[0].difference.difference) and math.isnan(found[0].p_holm) and found[0].difference.n == 0
    assert found[1].difference.difference == 20
    assert found[1].p_holm == found[1].difference.p, "the family is the pairs that there are"


def test_several_seeds_are_paired_seed_by_seed(study: Study, random: np.random.Generator) -> None:
    effects = random.normal(0, 1, (2, 3))
    for seed in range(3):
        for lineage, effect in zip((A, B), effects, strict=True):
            study.suite(lineage, answers("mtbench", "score", np.arange(8) + effect[seed]), seed=seed)
    (found,) = pairs.differences(Measurements("t", study.folders), SCORE, [A, B], [0, 1, 2])
    expected = stats.ttest_rel(*effects).confidence_interval()
    assert (found.seeds_low, found.seeds_high) == pytest.approx((expected.low, expected.high))
    assert found.difference == pytest.approx((effects[0] - effects[1]).mean())
    assert found.n == 8


def test_a_family_is_all_pairs_of_a_column_each_lineage_once(study: Study, random: np.random.Generator) -> None:
    runs = {name: answers("arc", "acc_norm", random.random(200) < p) for name, p in ((A, 0.5), (B, 0.62), (C, 0.75))}
    found = family(measured(study, runs), ARC, [A, B, C, A], [1])
    assert [(pair.a, pair.b) for pair in found] == [(A, B), (A, C), (B, C)]
    p_values = [pair.difference.p for pair in found]
    assert [pair.p_holm for pair in found] == pytest.approx(multipletests(p_values, method="holm")[1])


def marked(study: Study, scores: Mapping[str, Sequence[float]], column: Column = ARC) -> dict[str, str]:
    found = measured(study, {name: answers("arc", "acc_norm", values) for name, values in scores.items()})
    values = {name: found.value(column, name, [1]) for name in scores}
    return marks(values, family(found, column, list(scores), [1]))


def test_marks_are_of_the_best_and_of_what_is_not_told_apart_from_it(study: Study) -> None:
    """Of 100 items C has 60, B 58 of the same, A 20 of them: B is 2 behind of 2, p = 0.5; A 40 behind of 40."""
    runs = {name: [i < k for i in range(100)] for name, k in ((A, 20), (B, 58), (C, 60))}
    assert marked(study, runs) == {B: "near", C: "best"}


def test_the_correction_decides(study: Study) -> None:
    """6 behind of 6 is p = 0.03125 alone, and 0.09375 among three pairs of which the others are no less."""
    c = [i < 60 for i in range(100)]
    b = [i < 54 for i in range(100)]
    assert marked(study, {A: b, C: c}) == {C: "best"}
    other = Study(study.root / "other")
    assert marked(other, {A: b, B: b, C: c}) == {A: "near", B: "near", C: "best"}


def test_equals_are_all_best_and_one_alone_is_nothing(study: Study) -> None:
    assert marked(study, {A: [1, 0, 1], B: [1, 1, 0]}) == {A: "best", B: "best"}
    assert marked(Study(study.root / "one"), {A: [1, 0, 1]}) == {}


def test_a_single_item_tells_nothing_apart(study: Study) -> None:
    assert marked(study, {A: [0.2], B: [0.9]}) == {A: "near", B: "best"}


def frame_of(study: Study, kind: str) -> pd.DataFrame:
    return pd.read_csv(study.root / f"out/t.{kind}.csv")


def test_cells_and_pairs_of_a_table_are_written(study: Study, random: np.random.Generator) -> None:
    values = {name: random.random(50) < 0.5 for name in (A, B)}
    for name, of_items in values.items():
        study.suite(name, answers("arc", "acc_norm", of_items))
    mark(study.suite(C, []), {"step": 7})
    recipe = TableRecipe(
        name="t", title="T", caption="C.", seeds=(1,), texts=("Model", "Align"), columns=(ARC,),
        rows=tuple(Row(lineage=name, texts={"Model": name[:3], "Align": str(i)}) for i, name in enumerate((A, B, C))),
    )  # fmt: skip
    out = study.run(table, recipe)
    cells = frame_of(study, "cells")
    assert ",".join(cells) == "Model,Align,lineage,column,value,stderr,low,high,n,seeds,missing"
    assert cells["lineage"].tolist() == [A, B, C] and cells["Align"].tolist() == [0, 1, 2]
    wilson = stats.binomtest(int(values[A].sum()), 50).proportion_ci(method="wilson")
    assert cells.loc[0, ["value", "low", "high"]].tolist() == pytest.approx(
        [100 * values[A].mean(), 100 * wilson.low, 100 * wilson.high]
    )
    assert cells["n"].tolist() == [50, 50, 0] and cells["seeds"].tolist() == [1, 1, 1]
    assert cells["missing"].fillna("").tolist() == ["", "", "training diverged"]
    assert cells.loc[2, ["value", "stderr", "low", "high"]].isna().all()
    listed = frame_of(study, "pairs")
    columns = "column,a,b,difference,stderr,low,high,seeds_low,seeds_high,p,p_holm,n,test,missing"
    assert ",".join(listed) == columns
    assert list(zip(listed["a"], listed["b"], strict=True)) == [(A, B), (A, C), (B, C)]
    assert listed.loc[0, "difference"] == pytest.approx(100 * (values[A].mean() - values[B].mean()))
    assert listed["n"].tolist() == [50, 0, 0]
    assert {path.name for path in out.iterdir()} == {
        f"t.{kind}" for kind in ("csv", "md", "tex", "html", "cells.csv", "pairs.csv")
    }
    assert "†" in (out / "t.md").read_text() and "–†" not in (out / "t.md").read_text()


def test_the_pairs_of_a_pivot_are_its_cells(study: Study, random: np.random.Generator) -> None:
    lineages = [[f"mistral+{sft}+{method}" for method in ("dpo", "cpo")] for sft in ("sft", "sft10k")]
    for name in (name for row in lineages for name in row):
        study.suite(name, rated(random.integers(1, 11, (10, 2))), suite="mtbench/rubric")
    recipe = PivotRecipe(
        name="t", title="T", caption="C.", seeds=(1,), corner="Model", rows=("SFT", "10K"), columns=("DPO", "CPO"),
        cells={row: dict(zip(("DPO", "CPO"), lineages[i], strict=True)) for i, row in enumerate(("SFT", "10K"))},
        column=SCORE,
    )  # fmt: skip
    out = study.run(pivot, recipe)
    listed, cells = frame_of(study, "pairs"), frame_of(study, "cells")
    assert len(listed) == 6 and set(listed["column"]) == {"MT-Bench"}
    assert cells["column"].tolist() == ["DPO", "CPO"] * 2 and cells["Model"].tolist() == ["SFT", "SFT", "10K", "10K"]
    text = (out / "t.md").read_text()
    assert text.count("†") == 2, "one best cell of the whole table, and the legend"
    assert "best of the table" in text


def test_the_legend_says_what_intervals_are_over(study: Study) -> None:
    for seed in (1, 2):
        for name, k in ((A, 3 + seed), (B, 5)):
            study.suite(name, right("arc", "acc_norm", k, 10), seed=seed)
    rows = tuple(Row(lineage=name, texts={"Model": name}) for name in (A, B))
    for seeds, over in (((1,), "over items]"), ((1, 2), "over items and 2 seeds]")):
        recipe = TableRecipe(
            name="t", title="T", caption="C.", seeds=seeds, texts=("Model",), columns=(ARC,), rows=rows
        )
        assert over in (study.run(table, recipe, f"out{len(seeds)}") / "t.md").read_text()
