from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from trialign.reporting.sparkline import HEIGHT, MARGIN, POINTS, WIDTH, curve, thinned


def log(path: Path, losses: list[float]) -> Path:
    lines = [json.dumps({"step": i, "loss": loss}) for i, loss in enumerate(losses, 1)]
    path.write_text("\n".join([*lines, json.dumps({"eval_loss": 1.0, "step": len(losses)})]) + "\n")
    return path


def test_a_curve_spans_its_picture(tmp_path: Path) -> None:
    found = curve(log(tmp_path / "log.jsonl", [4.0, 2.0, 3.0]))
    points = [tuple(map(float, point.split(","))) for point in found.line.split()]
    top, bottom = MARGIN, HEIGHT - MARGIN
    assert points == [(MARGIN, top), (WIDTH / 2, bottom), (WIDTH - MARGIN, (top + bottom) / 2)]
    assert (found.steps, found.values, found.span) == ((1, 3), (4.0, 3.0), (2.0, 4.0))


def test_losses_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    assert curve(log(tmp_path / "log.jsonl", [4.0, float("nan")])) is None
    assert curve(log(tmp_path / "log.jsonl", [4.0, 5.0, float("inf")])).span == (4.0, 5.0)


def test_a_flat_curve_is_a_line(tmp_path: Path) -> None:
    assert {point.split(",")[1] for point in curve(log(tmp_path / "log.jsonl", [1.0] * 4)).line.split()} == {"86.0"}


@pytest.mark.parametrize("number", [POINTS, POINTS + 1, 4800])
def test_a_long_log_is_shown_by_means(number: int) -> None:
    """Of a straight line, each stretch's mean is the middle of its values, and no step is lost."""
    points = [(step, float(step)) for step in range(1, number + 1)]
    shown = thinned(points)
    assert len(shown) == POINTS and shown[0] == (1, 1.0) and shown[-1][0] == number
    for (before, _), (step, mean) in pairwise(shown):
        assert mean == pytest.approx((before + 1 + step) / 2)
