"""Who holds a lease, asked of a real SLURM."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from trialign import lease, slurm
from trialign.errors import Again, UserError


def held_by(work: Path, **holder: object) -> Path:
    """A folder with the lease of a process on another host."""
    work.mkdir()
    (work / lease.LEASE).write_text(json.dumps({"host": "elsewhere", "pid": 1, "birth": "1", "job": None} | holder))
    return work


def running(cluster: Cluster) -> str:
    """A job that runs for five minutes."""
    job = cluster.run("sbatch", "--parsable", "-t5", "-o", "/dev/null", "--wrap", "sleep 300").strip()
    while [job, "RUNNING"] not in cluster.jobs("%i", "%T"):
        time.sleep(0.1)
    return job


def test_a_holder_on_another_host_lives_as_long_as_its_job(
    plain: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ | plain.env)
    job = running(plain)
    work = held_by(tmp_path / "work", job=job)
    assert lease.is_held(work)
    monkeypatch.setenv("SLURM_JOB_ID", "999999")  # a second start in a job of its own never waits beside the first
    with pytest.raises(Again) as again, lease.held(work):
        pass
    assert again.value.after == job
    monkeypatch.delenv("SLURM_JOB_ID")
    plain.run("scancel", job)
    while [job, "CANCELLED"] not in plain.jobs("%i", "%T"):
        time.sleep(0.1)
    assert not lease.is_held(work)
    with lease.held(work) as mine:
        assert json.loads((mine / lease.LEASE).read_text())["pid"] == os.getpid()
    assert not work.exists()


def test_a_holder_of_which_nobody_can_tell_is_left_alone(
    plain: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ | plain.env)
    work = held_by(tmp_path / "login")  # a process of another login node
    with pytest.raises(UserError, match="cannot be told from here; if it is gone, delete this file"), lease.held(work):
        pass
    job = running(plain)
    other = held_by(tmp_path / "job", job=job)
    plain.stop_controller()  # SLURM does not answer
    try:
        with pytest.raises(UserError, match=f"SLURM job {job}.*cannot be told"), lease.held(other):
            pass
    finally:
        plain.start_controller()
        plain.run("scancel", job)
    assert (other / lease.LEASE).exists()


def test_the_last_task_of_an_array_is_told_from_the_others(plain: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the number of the whole array, for which squeue lists all tasks."""
    monkeypatch.setattr(os, "environ", os.environ | plain.env)
    array = plain.run(
        "sbatch", "--parsable", "--array=1-3", "-t5", "-o", "/dev/null", "--wrap", "sleep 300"
    ).strip()  # fmt: skip
    while plain.jobs("%F", "%T").count([array, "RUNNING"]) < 3:
        time.sleep(0.1)
    numbers = {number: task for number, task, of in plain.jobs("%A", "%i", "%F") if of == array}
    assert array in numbers
    for minutes, number in enumerate(sorted(numbers), start=10):
        plain.run("scontrol", "update", f"jobid={numbers[number]}", f"timelimit={minutes}")
    for minutes, number in enumerate(sorted(numbers), start=10):
        monkeypatch.setenv("SLURM_JOB_ID", number)
        assert 60 * (minutes - 1) < slurm.seconds_left() <= 60 * minutes
    plain.run("scancel", numbers[array])
    while slurm.state(array) not in (None, "CANCELLED"):
        time.sleep(0.1)
    assert all(slurm.state(number) == "RUNNING" for number in numbers if number != array)
    plain.run("scancel", array)
