from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from invented import Study

from trialign.errors import UserError
from trialign.recipes import CurvesRecipe, Labelled
from trialign.reporting.curves import curves, draw

DPO, TPO, BROKEN = "mistral+sft+dpo@beta=0.1", "mistral+tpo@alpha=1@beta=0.1", "mistral+tpo@alpha=1@beta=9"


def logged(study: Study, lineage: str, method: str, view: str, entries: list[dict[str, Any]], seed: int = 1) -> Path:
    """Write a run's record and its log, as the packed engine does."""
    folder = study.root / "runs" / lineage / f"seed{seed}"
    folder.mkdir(parents=True)
    whole = "eval_loss" in entries[-1]
    recipe = {"method": method, "view": view, "params": {"beta": 0.1}, "training": {"engine": "packed"}}
    record = {"recipe": recipe, "facts": {"final": {"loss": 1.0} if whole else None}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder / "run.json"


@pytest.fixture
def records(study: Study) -> list[Path]:
    dpo = [{"step": i, "loss": 0.7 / i, "grad_norm": 2.0, "margins": float(i)} for i in range(1, 7)]
    tpo = [{"step": i, "loss": 50.0, "logps/reference": -5.0 + i, "learning_rate": 1e-3} for i in range(1, 5)]
    broken = [
        *({"step": i, "loss": 1.0 * i, "grad_norm": 3.0} for i in (1, 2)),
        {"step": 3, "loss": "nan", "grad_norm": "inf"},
    ]
    summary = {"step": 6, "train_runtime": 3.0, "train_loss": 99.0}
    evaluated = {"step": 6, "eval_loss": 0.4, "eval_margins": 8.0}
    return [
        logged(study, DPO, "dpo", "chosen-rejected", [*dpo, summary, evaluated]),
        logged(study, TPO, "tpo", "triple", [*tpo, {"step": 4, "eval_loss": 40.0}]),
        logged(study, BROKEN, "tpo", "triple", broken),
    ]  # fmt: skip


def recipe(smooth: int = 1, **changes: Any) -> CurvesRecipe:
    rows = tuple(Labelled(lineage=name, label=name.removeprefix("mistral")) for name in (DPO, TPO, BROKEN))
    settings = {"name": "curves", "title": "Curves", "caption": "Training.", "seeds": (1,), "rows": rows}
    return CurvesRecipe(**settings | changes, smooth=smooth)


def test_the_csv_holds_every_step_as_it_was_logged(study: Study, records: list[Path]) -> None:
    frame = pd.read_csv(study.run(curves, recipe(3), run=records) / "curves.csv")
    assert list(frame) == ["lineage", "seed", "split", "step", "quantity", "value"]
    margins = frame[(frame["lineage"] == DPO) & (frame["quantity"] == "margin")]
    assert margins["value"].tolist() == [1, 2, 3, 4, 5, 6, 8]
    assert margins["split"].tolist() == ["train"] * 6 + ["eval"]
    losses = frame[(frame["lineage"] == BROKEN) & (frame["quantity"] == "loss")]["value"]
    assert losses[:-1].tolist() == [1, 2] and losses.isna().iloc[-1]
    assert 99.0 not in frame["value"].tolist()  # the trainer's summary is no step


def panels(study: Study, records: list[Path], smooth: int, ended: set[tuple[str, int]]) -> tuple[dict[str, Any], str]:
    frame = pd.read_csv(study.run(curves, recipe(smooth), f"out{smooth}", run=records) / "curves.csv")
    figure = draw(recipe(smooth), frame, ended)
    return {axes.get_title(loc="left"): axes for axes in figure.axes}, figure.get_supxlabel().replace("\n", " ")


def test_what_no_run_logged_has_no_panel_and_smoothing_is_said(study: Study, records: list[Path]) -> None:
    drawn, footer = panels(study, records, 1, {(BROKEN, 1)})
    assert list(drawn) == ["loss", "margin", "reference log-prob", "gradient norm", "learning rate"]
    assert "means" not in footer and "Dots: evaluation" in footer
    line, dot = drawn["margin"].lines
    assert line.get_ydata().tolist() == [1, 2, 3, 4, 5, 6] and dot.get_ydata().tolist() == [8]
    assert drawn["loss"].get_yscale() == "log" and drawn["margin"].get_yscale() == "linear"
    drawn, footer = panels(study, records, 3, set())
    assert drawn["margin"].lines[0].get_ydata().tolist() == [1, 1.5, 2, 3, 4, 5]
    assert "means of the last 3 steps" in footer


def test_a_diverged_run_ends_where_it_ended_with_a_cross(study: Study, records: list[Path]) -> None:
    drawn, footer = panels(study, records, 1, {(BROKEN, 1)})
    (cross,) = [line for line in drawn["loss"].lines if line.get_marker() == "x"]
    assert (cross.get_xdata().tolist(), cross.get_ydata().tolist()) == ([2], [2.0])
    assert "Crosses: training diverged." in footer
    assert all(np.isfinite(line.get_ydata()).all() for line in drawn["loss"].lines)


def test_runs_differ_in_their_seeds(study: Study, records: list[Path]) -> None:
    other = logged(
        study, DPO, "dpo", "chosen-rejected", [{"step": 1, "loss": 5.0}, {"step": 1, "eval_loss": 4.0}], seed=2
    )
    rows = (Labelled(lineage=DPO, label="DPO"),)
    frame = pd.read_csv(study.run(curves, recipe(rows=rows, seeds=(1, 2)), run=[records[0], other]) / "curves.csv")
    assert frame.groupby("seed")["step"].max().to_dict() == {1: 6, 2: 1}
    lines = draw(recipe(rows=rows, seeds=(1, 2)), frame, set()).axes[0].lines
    assert len(lines) == 4 and len({line.get_color() for line in lines}) == 1  # two runs, each with its evaluation


def test_a_log_that_is_missing_is_named(study: Study, records: list[Path]) -> None:
    records[1].with_name("log.jsonl").unlink()
    with pytest.raises(UserError, match=r"seed1/log\.jsonl is missing"):
        study.run(curves, recipe(), run=records)
