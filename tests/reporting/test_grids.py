from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from invented import Study, right

from trialign.diverged import write
from trialign.errors import UserError
from trialign.recipes import Column, GridRecipe
from trialign.reporting.gather import Measurements
from trialign.reporting.grids import draw_lines, grid, points_of

NOTICE = "This is the demo world & no more."
ALPHAS, BETAS = ("0.1", "0.9", "1"), ("0.1", "0.2", "10")
CELLS = {a: {b: f"mistral+tpo@alpha={a}@beta={b}" for b in BETAS} for a in ALPHAS}
ARC = Column(label="ARC", benchmark="arc", metric="acc_norm", scale=100)
SCORE = Column(label="Winogrande", benchmark="winogrande", metric="acc", scale=100)


def correct(a: str, b: str) -> int:
    return 20 + 5 * ALPHAS.index(a) + BETAS.index(b)


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
            stderr = (value * (100 - value) / 49) ** 0.5
            assert (low, high) == pytest.approx((value - stderr, value + stderr))
    (baseline,) = [line for line in panel.lines if line.get_label() == "Mistral+SFT"]
    assert set(baseline.get_ydata()) == {50.0}
    assert baseline.is_dashed()
    assert NOTICE in figure.get_supxlabel().replace("\n", " ")


def test_every_file_carries_the_notice(study: Study, recipe: GridRecipe) -> None:
    out = study.run(grid, recipe)
    assert {path.name for path in out.iterdir()} == {f"figure3.{kind}" for kind in ("png", "svg", "pdf", "csv")}
    svg = ElementTree.parse(out / "figure3.svg")
    assert NOTICE in [element.text for element in svg.iter("{http://purl.org/dc/elements/1.1/}description")]
    assert NOTICE.encode() in (out / "figure3.png").read_bytes()
    assert b"/Subject (" + NOTICE.encode() in (out / "figure3.pdf").read_bytes()


def test_the_same_numbers_give_the_same_bytes_in_another_process(study: Study, recipe: GridRecipe) -> None:
    first = study.run(grid, recipe, "first")
    second = study.root / "second"
    second.mkdir()
    program = (
        "import sys; from pathlib import Path; from trialign.recipes import parse; from trialign.steps import Step\n"
        "from trialign.reporting.grids import grid\n"
        "folders = tuple(map(Path, sys.argv[3:])); out = Path(sys.argv[2])\n"
        "grid(Step(parse(sys.argv[1]), {'results': folders}, out, out))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    arguments = [recipe.canonical(), str(second), *map(str, study.folders)]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, env=environment)
    for kind in ("csv", "png", "svg", "pdf"):
        assert (first / f"figure3.{kind}").read_bytes() == (second / f"figure3.{kind}").read_bytes()


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
