"""The status line: how many of how many, and a time left that follows from the rules' durations."""

from __future__ import annotations

import time

import pytest

from snakemake_logger_plugin_trialign import Clock
from tests.conftest import TEST_CONFIG, command


def test_the_time_left_is_the_rules_means_times_their_jobs_over_the_jobs_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = Clock()
    clock.plan({"train": 4, "judge": 3})
    assert clock.left() is None
    clock.start(1, "train")
    clock.start(2, "train")
    now = 120.0  # both took 20 s, side by side
    clock.finish(1)
    clock.finish(2)
    clock.start(3, "judge")
    now = 122.0
    clock.finish(3)
    assert (clock.done(), clock.total()) == (3, 7)
    # 2 trainings of 20 s and 2 judgings of 2 s, at 42 busy seconds in 22
    assert clock.left() == pytest.approx((2 * 20 + 2 * 2) / (42 / 22))
    assert clock.text() == "0:00:22, about 0:00:23 left"


def test_a_line_for_each_job_where_the_output_is_no_terminal(tmp_path) -> None:
    target = f"{tmp_path}/data/prepared/ultrachat"
    done = command(
        "snakemake", "--logger", "trialign", *TEST_CONFIG, "--config", f"results_dir={tmp_path}", "--cores", "1",
        "--nolock", "--", target,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "[1/2] world, 0:00:" in done.stdout and "[2/2] prepare ultrachat, 0:00:" in done.stdout
