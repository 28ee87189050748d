from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from invented import Study, right
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from trialign.diverged import write
from trialign.errors import UserError
from trialign.recipes import Column, GridRecipe, HeatmapRecipe
from trialign.reporting.gather import Measurements
from trialign.reporting.grids import comparisons, draw_cells, draw_lines, grid, heatmap, luminance, points_of

NOTICE = "This is the demo world & no more."
ALPHAS, BETAS = ("0.1", "0.9", "1"), ("0.1", "0.2", "10")
CELLS = {a: {b: f"mistral+tpo@alpha={a}@beta={b}" for b in BETAS} for a in ALPHAS}
ARC = Column(label="ARC", benchmark="arc", metric="acc_norm", scale=100)
SCORE = Column(label="Winogrande", benchmark="winogrande", metric="acc", scale=100)


def correct(a: str, b: str) -> int:
    return 20 + 5 * ALPHAS.index(a) + BETAS.index(b)


def stats_df(frame: pd.DataFrame, row: pd.Series) -> float:
    """Welch's and Satterthwaite's degrees of freedom of a mean of two benchmarks of 50 items."""
    parts = frame[(frame["lineage"] == row["lineage"]) & (frame["panel"] != "Average")]["stderr"] ** 2
    return parts.sum() ** 2 / (parts**2 / 49).sum()


@pytest.fixture
def recipe(study: Study) -> GridRecipe:
    for a in ALPHAS:
        for b in BETAS:
            k = correct(a, b)
            study.suite(CELLS[a][b], right("arc", "acc_norm", k, 50) + right("winogrande", "acc", 50 - k, 50))
    study.suite("mistral+sft", right("arc", "acc_norm", 25, 50) + right("winogrande", "acc", 25, 50))
    return GridRecipe(
        name="figure3",
        title="Figure 3",
        caption="Alpha and beta.",
        notice=NOTICE,
        seeds=(1,),
        cells=CELLS,
        columns=(ARC, SCORE, Column(label="Average", mean_of=(ARC, SCORE))),
        baseline="mistral+sft",
        baseline_label="Mistral+SFT",
    )


def wilson(percent: float) -> tuple[float, float]:
    """Scipy's interval of a percentage of 50 items."""
    found = stats.binomtest(round(percent / 2), 50).proportion_ci(0.95, method="wilson")
    return 100 * found.low, 100 * found.high


def test_the_csv_holds_the_numbers_behind_the_figure(study: Study, recipe: GridRecipe) -> None:
    frame = pd.read_csv(study.run(grid, recipe) / "figure3.csv")
    assert len(frame) == 3 * (1 + 9)
    assert list(dict.fromkeys(frame["panel"])) == ["ARC", "Winogrande", "Average"]
    arc = frame[(frame["panel"] == "ARC") & frame["alpha"].notna()]
    places = [(float(a), float(b)) for a in ALPHAS for b in BETAS]
    assert list(zip(arc["alpha"], arc["beta"], strict=True)) == places  # in order of numbers: 10 after 0.2
    assert arc["value"].tolist() == [100 * correct(a, b) / 50 for a in ALPHAS for b in BETAS]
    assert frame.loc[frame["panel"] == "Average", "value"].tolist() == pytest.approx([50] * 10)
    baseline = frame[frame["alpha"].isna()]
    assert baseline["lineage"].tolist() == ["mistral+sft"] * 3
    for _, row in frame.iterrows():
        expected = wilson(row["value"])
        if row["panel"] == "Average":
            expected = stats.t.interval(0.95, stats_df(frame, row), row["value"], row["stderr"])
        assert (row["low"], row["high"]) == pytest.approx(expected)
    assert baseline["stderr"].tolist() == pytest.approx([100 * (0.25 / 49) ** 0.5] * 2 + [100 * (0.25 / 49 / 2) ** 0.5])


def test_the_picture_shows_these_numbers(study: Study, recipe: GridRecipe) -> None:
    figure = draw_lines(recipe, points_of(recipe, Measurements(recipe.name, study.folders)))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["ARC", "Winogrande", "Average"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["acc_norm (%)", "acc (%)", "mean (%)"]
    panel = figure.axes[0]
    for beta, bars in zip(BETAS, panel.containers, strict=True):
        line, _, (errors,) = bars.lines
        assert bars.get_label() == f"β = {beta}"
        assert list(line.get_xdata()) == pytest.approx([float(a) for a in ALPHAS], abs=0.02)
        expected = [100 * correct(a, beta) / 50 for a in ALPHAS]
        assert list(line.get_ydata()) == expected
        spans = [(low[1], high[1]) for low, high in errors.get_segments()]
        for (low, high), value in zip(spans, expected, strict=True):
            assert (low, high) == pytest.approx(wilson(value))
    (baseline,) = [line for line in panel.lines if line.get_label() == "Mistral+SFT"]
    assert set(baseline.get_ydata()) == {50.0}
    assert baseline.is_dashed()
    assert NOTICE in figure.get_supxlabel().replace("\n", " ")


def test_a_diverged_run_leaves_a_gap_in_its_line(study: Study, recipe: GridRecipe) -> None:
    write(study.root / "runs" / CELLS["0.9"]["0.2"] / "seed1" / "leaderboard", {"step": 7})
    points = points_of(recipe, Measurements("figure3", study.folders))
    drawn = [line.get_ydata() for line in draw_lines(recipe, points).axes[0].get_lines()]
    assert sum(np.isnan(np.asarray(values, float)).sum() for values in drawn) == 1
    out = study.run(grid, recipe)
    frame = pd.read_csv(out / "figure3.csv").query("lineage == @CELLS['0.9']['0.2']")
    assert frame["value"].isna().all() and (frame["n"] == 0).all()


def test_a_point_without_data_is_named(study: Study, recipe: GridRecipe) -> None:
    study.folders.remove(next(path for path in study.folders if "@alpha=0.9@beta=10" in str(path)))
    with pytest.raises(
        UserError, match=r"figure3: no result for column 'ARC' of mistral\+tpo@alpha=0\.9@beta=10, seed 1"
    ):
        study.run(grid, recipe)
    assert not list(Path(study.root / "out").iterdir())


# --- heat maps --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cells(study: Study) -> HeatmapRecipe:
    """Two panels of 3 x 2 cells; in the first, cells are ever better than the baseline, and one is worse."""
    draw = random.Random(1)
    base = [float(draw.random() < 0.5) for _ in range(120)]
    grid_of = {a: {b: f"mistral+tpo@alpha={a}@beta={b}" for b in BETAS[:2]} for a in ALPHAS}
    shifts = dict(zip([lineage for row in grid_of.values() for lineage in row.values()], range(-1, 5), strict=True))
    for lineage, shift in {"mistral+sft": 0, **shifts}.items():
        flips = [draw.random() < abs(shift) * 0.1 for _ in base]
        values = [float(shift > 0) if flip else value for flip, value in zip(flips, base, strict=True)]
        arc = [("arc", "", str(i), "acc_norm", value) for i, value in enumerate(values)]
        study.suite(lineage, arc + right("winogrande", "acc", 25 + shift, 50))
    return HeatmapRecipe(
        name="heatmap", title="Heat map", caption="Alpha and beta.", notice=NOTICE, seeds=(1,), cells=grid_of,
        columns=(ARC, SCORE), baseline="mistral+sft", baseline_label="Mistral+SFT",
    )  # fmt: skip


def items(study: Study, lineage: str) -> np.ndarray:
    frame = pd.read_parquet(study.root / "runs" / lineage / "seed1" / "leaderboard" / "items.parquet")
    return frame.loc[frame["benchmark"] == "arc", "value"].to_numpy()


def holm_by_hand(p_values: list[float]) -> list[float]:
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = highest
    return adjusted


def test_cells_are_compared_with_the_baseline_item_by_item(study: Study, cells: HeatmapRecipe) -> None:
    frame = pd.read_csv(study.run(heatmap, cells) / "heatmap.csv")
    arc = frame[(frame["panel"] == "ARC") & frame["alpha"].notna()]
    base, expected = items(study, "mistral+sft"), []
    for _, row in arc.iterrows():
        own = items(study, row["lineage"])
        assert row["difference"] == pytest.approx(100 * (own - base).mean())
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        table = pd.crosstab(own, base).reindex(index=[0, 1], columns=[0, 1], fill_value=0)
        expected.append(mcnemar(table, exact=True).pvalue)
    assert arc["p"].tolist() == pytest.approx(expected)
    assert arc["p_holm"].tolist() == pytest.approx(holm_by_hand(expected))
    assert frame.loc[frame["alpha"].isna(), ["difference", "p", "p_holm"]].isna().all().all()


def test_what_differs_is_marked_and_every_number_can_be_read(study: Study, cells: HeatmapRecipe) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    measured = Measurements("heatmap", study.folders)
    points, compared = points_of(cells, measured), comparisons(cells, measured)
    panel = draw_cells(cells, points, compared).axes[0]
    texts = [text for text in panel.texts if text.get_text()]
    own = [point for point in points if point.panel == "ARC"][1:]
    assert [t.get_text() for t in texts if t.get_fontsize() == 7] == [f"{p.value.value:.1f}" for p in own]
    halves = [(p.value.interval[1] - p.value.interval[0]) / 2 for p in own]
    assert [t.get_text() for t in texts if t.get_fontsize() == 5] == [f"±{half:.1f}" for half in halves]
    differing = [compared["ARC", p.lineage] for p in own if compared["ARC", p.lineage].p_holm < 0.05]
    marks = [t.get_text() for t in texts if t.get_fontsize() == 4.5]
    assert marks == ["▲" if each.difference.difference > 0 else "▼" for each in differing] and "▲" in marks
    boxes = {(box.get_x() + 0.5, box.get_y() + 0.5): box for box in panel.patches if isinstance(box, Rectangle)}
    for text in (t for t in texts if t.get_fontsize() in (4.5, 5, 7)):
        x, y = text.get_position()
        light = sorted(luminance(to_rgb(c)) for c in (text.get_color(), boxes[round(x), round(y)].get_facecolor()[:3]))
        assert (light[1] + 0.05) / (light[0] + 0.05) >= 4.5  # WCAG 2.1, level AA


def test_a_luminance_is_wcags() -> None:
    assert luminance((1, 1, 1)) == pytest.approx(1) and luminance((0, 0, 0)) == 0
    assert luminance((1, 0, 0)) == pytest.approx(0.2126) and luminance((0.5, 0.5, 0.5)) == pytest.approx(
        0.2140, abs=1e-4
    )


def test_the_baseline_may_be_a_cell_and_a_diverged_cell_is_hatched(study: Study, cells: HeatmapRecipe) -> None:
    middle = cells.cells["0.9"]["0.2"]
    write(study.root / "runs" / cells.cells["1"]["0.1"] / "seed1" / "leaderboard", {"step": 7})
    recipe = cells.model_copy(update={"baseline": middle, "name": "own"})
    measured = Measurements("own", study.folders)
    figure = draw_cells(recipe, points_of(recipe, measured), comparisons(recipe, measured))
    assert [patch.get_hatch() for patch in figure.axes[0].patches].count("////") == 1
    assert "Hatched: training diverged." in figure.get_supxlabel().replace("\n", " ")
    frame = pd.read_csv(study.run(heatmap, recipe) / "own.csv")
    assert frame.loc[frame["lineage"] == middle, "p_holm"].isna().all()
    assert (
        frame.loc[frame["lineage"] == cells.cells["1"]["0.1"], ["value", "low", "difference", "p"]].isna().all().all()
    )
