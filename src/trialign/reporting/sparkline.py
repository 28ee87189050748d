"""A run's loss as a small curve in a page: plain SVG in the colour of the text around it."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT, MARGIN = 320, 90, 4  # in the picture's own units
POINTS = 160  # a longer log is shown by means of as many stretches


class Curve(NamedTuple):
    """A curve: its line in the picture, and the first and the last of the steps and values."""

    line: str
    steps: tuple[int, int]
    values: tuple[float, float]
    span: tuple[float, float]


def curve(log: Path) -> Curve | None:
    """Return the loss over the steps of a `log.jsonl`; None where fewer than two finite losses were logged."""
    entries = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    points = [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
    points = thinned([(step, loss) for step, loss in points if math.isfinite(loss)])
    if len(points) < 2:
        return None
    (first, start), (last, end) = points[0], points[-1]
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    across, up = (WIDTH - 2 * MARGIN) / (last - first), (HEIGHT - 2 * MARGIN) / ((high - low) or 1)
    line = " ".join(f"{MARGIN + across * (x - first):.1f},{HEIGHT - MARGIN - up * (y - low):.1f}" for x, y in points)
    return Curve(line, (first, last), (start, end), (low, high))


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most POINTS points: each the mean loss of a stretch, at its last step; the first point stays."""
    if len(points) <= POINTS:
        return points
    ends = [round(i * (len(points) - 1) / (POINTS - 1)) for i in range(POINTS)]
    stretches = [points[a + 1 : b + 1] for a, b in pairwise(ends)]
    means = [(part[-1][0], math.fsum(loss for _, loss in part) / len(part)) for part in stretches]
    return [points[0], *means]
