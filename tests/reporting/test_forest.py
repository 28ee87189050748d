from __future__ import annotations

import random

import pandas as pd
import pytest
from invented import Record, Study
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from trialign.diverged import write
from trialign.errors import UserError
from trialign.recipes import Column, ForestRecipe, Labelled
from trialign.reporting.forest import draw, entries_of, forest
from trialign.reporting.gather import Measurements

ARC = Column(label="ARC", benchmark="arc", metric="acc_norm", scale=100)
JUDGED = Column(label="MT-Bench", benchmark="mtbench", metric="score")
ROWS = ("mistral+sft+dpo", "mistral+sft+ipo", "mistral+tpo")
SHARES = {"mistral+sft": 0.4, "mistral+sft+dpo": 0.75, "mistral+sft+ipo": 0.42, "mistral+tpo": 0.15}


def records(lineage: str) -> list[Record]:
    draw_of = random.Random(lineage)
    arc = [("arc", "", str(i), "acc_norm", float(draw_of.random() < SHARES[lineage])) for i in range(150)]
    score = [("mtbench", "", str(i), "score", draw_of.gauss(5 + 2 * SHARES[lineage], 1)) for i in range(40)]
    return arc + score


@pytest.fixture
def recipe(study: Study) -> ForestRecipe:
    for lineage in SHARES:
        study.suite(lineage, records(lineage))
    return ForestRecipe(
        name="forest",
        title="Forest",
        caption="Differences.",
        seeds=(1,),
        rows=tuple(Labelled(lineage=row, label=row.removeprefix("mistral")) for row in ROWS),
        columns=(ARC, JUDGED),
        baseline=Labelled(lineage="mistral+sft", label="Mistral+SFT"),
    )


def test_the_csv_holds_differences_less_the_baseline_and_their_adjusted_p(study: Study, recipe: ForestRecipe) -> None:
    frame = pd.read_csv(study.run(forest, recipe) / "forest.csv").set_index(["panel", "lineage"])
    assert list(frame.index) == [(panel, row) for panel in ("ARC", "MT-Bench") for row in ROWS]
    values = {
        lineage: pd.DataFrame(records(lineage)).set_index(0)[4].groupby(level=0).apply(list) for lineage in SHARES
    }
    for panel, benchmark, scale in (("ARC", "arc", 100), ("MT-Bench", "mtbench", 1)):
        p_values = []
        for row in ROWS:
            own, base = (pd.Series(values[lineage][benchmark]) for lineage in (row, "mistral+sft"))
            found = frame.loc[(panel, row)]
            assert found["difference"] == pytest.approx(scale * (own - base).mean())
            assert found["n"] == len(own)
            low, high = stats.t.interval(0.95, len(own) - 1, scale * (own - base).mean(), scale * (own - base).sem())
            assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.06 * (high - low))
            table = pd.crosstab(own, base)
            p_values.append(mcnemar(table, exact=True).pvalue if scale == 100 else stats.ttest_rel(own, base).pvalue)
        assert frame.loc[panel, "p"].tolist() == pytest.approx(p_values)
        smallest = min(p_values)
        assert frame.loc[panel, "p_holm"].min() == pytest.approx(min(1, 3 * smallest))


def test_filled_markers_are_significant_and_the_numbers_stand_beside_them(study: Study, recipe: ForestRecipe) -> None:
    entries = entries_of(recipe, Measurements("forest", study.folders))
    panel = draw(recipe, entries).axes[0]
    points = [line for line in panel.lines if line.get_marker() == "o"]
    for point, entry in zip(points, entries[:3], strict=True):
        assert point.get_xdata()[0] == entry.difference.difference
        assert (point.get_markerfacecolor() != "white") == (entry.p_holm < 0.05)
    assert [entry.p_holm < 0.05 for entry in entries[:3]] == [True, False, True]
    assert points[0].get_color() != points[2].get_color()  # better and worse
    texts = [text.get_text() for text in panel.texts]
    assert "n = 150" in texts
    d, low, high = (f"{entries[0].difference[i]:+.1f}" for i in (0, 2, 3))
    assert f"{d} [{low}, {high}]" in texts
    assert [label.get_text() for label in panel.get_yticklabels()] == ["+sft+dpo", "+sft+ipo", "+tpo"]
    assert panel.get_ylim()[0] > panel.get_ylim()[1]  # the first row is on top


def test_a_diverged_run_leaves_its_row_empty_and_says_why(study: Study, recipe: ForestRecipe) -> None:
    write(study.root / "runs" / ROWS[1] / "seed1" / "leaderboard", {"step": 7})
    entries = entries_of(recipe, Measurements("forest", study.folders))
    panel = draw(recipe, entries).axes[0]
    assert sum(line.get_marker() == "o" for line in panel.lines) == 2
    assert [text.get_text() for text in panel.texts].count("training diverged") == 1
    frame = pd.read_csv(study.run(forest, recipe) / "forest.csv").set_index("lineage")
    assert frame.loc[ROWS[1], ["difference", "low", "p", "p_holm"]].isna().all().all()
    adjusted = frame[frame["panel"] == "ARC"].loc[[ROWS[0], ROWS[2]]]
    assert adjusted["p_holm"].min() == pytest.approx(2 * adjusted["p"].min())  # the family is of what was measured


def test_a_row_without_data_is_named(study: Study, recipe: ForestRecipe) -> None:
    study.folders.pop()
    with pytest.raises(UserError, match=r"forest: no result for column 'ARC' of mistral\+tpo, seed 1"):
        study.run(forest, recipe)
