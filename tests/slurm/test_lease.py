"""Who holds a lease, asked of a real SLURM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
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


@pytest.fixture
def stuck() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is stopped, as one that hangs."""
    process = subprocess.Popen(["sleep", "300"])
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.wait()


def lease_of(work: Path, process: subprocess.Popen[bytes], job: str) -> Path:
    birth = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    return held_by(work, host=socket.gethostname(), pid=process.pid, birth=birth, job=job)


def test_a_process_that_outlived_its_job_is_ended_and_followed(
    plain: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: subprocess.Popen[bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Seen: SLURM ended a job, a process of it lived on, stopped; each new start came after a job that was over."""
    monkeypatch.setattr(os, "environ", os.environ | plain.env)
    job = running(plain)
    work = lease_of(tmp_path / "work", stuck, job)
    monkeypatch.setenv("SLURM_JOB_ID", "999999")
    with pytest.raises(Again), lease.held(work):  # while its job runs it is left alone
        pass
    assert stuck.poll() is None
    plain.run("scancel", job)
    while [job, "CANCELLED"] not in plain.jobs("%i", "%T"):
        time.sleep(0.1)
    with lease.held(work):
        assert stuck.wait(timeout=5) == -signal.SIGKILL
    assert f"process {stuck.pid} outlived its SLURM job {job}: killed" in capsys.readouterr().err


def test_a_process_of_a_job_s_earlier_start_is_ended_and_its_other_step_is_waited_for(
    plain: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: subprocess.Popen[bytes]
) -> None:
    """A requeued job has the number that it had."""
    monkeypatch.setattr(os, "environ", os.environ | plain.env)
    monkeypatch.setattr(lease, "SLURM_POLL_SECONDS", 1.0)
    time.sleep(3)
    job = running(plain)  # started after the process
    monkeypatch.setenv("SLURM_JOB_ID", job)
    with lease.held(lease_of(tmp_path / "earlier", stuck, job)):
        assert stuck.wait(timeout=5) == -signal.SIGKILL
    beside = subprocess.Popen(["sleep", "4"])
    started = time.monotonic()
    with lease.held(lease_of(tmp_path / "beside", beside, job)):
        assert beside.poll() is not None or time.monotonic() - started > 3
    assert beside.wait() == 0
    plain.run("scancel", job)


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
