"""Ending before the job's time limit, with a `squeue` that says how long is left."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from trialign import deadline
from trialign.deadline import Deadline
from trialign.errors import Again


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts this process into a job with so much time left, as squeue prints it."""

    def inside(left: str) -> None:
        (tmp_path / "squeue").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho "42|{left}"\n')
        (tmp_path / "squeue").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "42")

    return inside


@pytest.mark.parametrize(
    ("left", "seconds"),
    [("5:00", 300 - 30), ("1-00:00:00", 86400 - 60), ("UNLIMITED", math.inf), ("INVALID", math.inf)],
)
def test_the_deadline_is_the_jobs_less_a_slack(job, clock, tmp_path, left, seconds):
    job(left)
    found = Deadline()
    assert "--job 42" in (tmp_path / "asked").read_text()
    assert not found.is_within(min(seconds, 1e9) - 1)
    assert found.is_within(seconds)
    clock[0] += 100
    assert found.is_within(seconds - 100)


def test_outside_of_a_job_time_is_never_up(clock, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not Deadline().is_within(1e12)


def work(found: Deadline, clock: list[float], seconds: list[float]) -> list[float]:
    """Do units that take so many seconds; returns those that were done."""
    done = []
    try:
        for unit in found.each(seconds, "batches"):
            clock[0] += unit
            done.append(unit)
    except Again as again:
        assert again.after is None
        assert str(again) == f"out of time with {len(seconds) - len(done)} batches to go"
    return done


def test_a_unit_begins_if_one_twice_as_slow_as_the_slowest_would_end_in_time(job, clock):
    job("5:00")  # 270 seconds to work in
    assert work(Deadline(), clock, [50, 30, 30, 30, 30, 30]) == [50, 30, 30, 30, 30]  # 170 spent: 100 = 2 x 50 left
    assert work(Deadline(), clock, [50, 30, 30, 29]) == [50, 30, 30, 29]
    found = Deadline()
    assert work(found, clock, [100]) == [100]
    assert work(found, clock, [1]) == []  # the slowest of what was done before counts, too


def test_a_start_does_something_however_late_it_comes(job, clock):
    job("5:00")
    found = Deadline()
    clock[0] += 290
    assert work(found, clock, [1, 1, 1]) == [1]
