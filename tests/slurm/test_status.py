"""The status of a study on a cluster: what waits and why, what runs in which job, and a SLURM that is silent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.slurm.cluster import Cluster
from tests.slurm.study import TEST, Study


def status(study: Study, *more: str) -> Any:
    words = [word for file in study.configs for word in ("--configfile", file)]
    done = subprocess.run(
        [
            f"{Path(sys.executable).parent}/trialign", "status", "--json", "--profile", "slurm", *words,
            "--config", f"results_dir={study.results}", *more,
        ],
        cwd=study.folder, env=study.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_jobs_that_wait_and_run_are_said(plain: Cluster, tmp_path: Path) -> None:
    study = Study(tmp_path / "study", plain, tmp_path / "results", TEST)
    overlay = study.folder / "config/long.yaml"
    overlay.write_text("world: {documents: 200000}\n")  # seconds: time to find it at work
    study.configs = (*study.configs, str(overlay))
    target = f"{study.results}/data/world"
    nodes = [row.split()[0] for row in plain.run("sinfo", "-h", "-N", "-o", "%N").splitlines()]
    every = ",".join(sorted(set(nodes)))
    plain.run("scontrol", "update", f"nodename={every}", "state=drain", "reason=test")
    controller, at_work = study.start("--", target), 0
    try:
        study.wait_for("submission", lambda: bool(study.jobs("pending")))
        (job,) = study.jobs("pending")
        study.wait_for("entry", lambda: bool(status(study, target)["rows"]))
        found = status(study, target)
        (row,) = found["rows"]
        assert (row["what"], row["state"], row["job"]) == ("world", "waiting", job)
        assert row["slurm"].startswith("PENDING: ") and len(row["slurm"]) > len("PENDING: ")
        assert [one["lives"] for one in found["snakemake"]] == [True]

        plain.run("scontrol", "update", f"nodename={every}", "state=resume")
        study.wait_for("lease", lambda: bool(list(study.results.glob(".work/*/lease.json"))))
        (lease,) = study.results.glob(".work/*/lease.json")
        at_work = json.loads(lease.read_text())["pid"]
        os.kill(at_work, signal.SIGSTOP)  # it lives for as long as it is looked at, however slow that is
        (row,) = status(study, target)["rows"]
        assert (row["state"], row["job"], row["slurm"]) == ("running", job, "RUNNING")
        assert row["host"] and row["pid"] == at_work and row["since"]

        plain.stop_controller()
        try:
            found = status(study, target)
        finally:
            plain.start_controller()
        assert [row["state"] for row in found["rows"]] == ["running"]  # of a process on this host the kernel knows
        assert any(note.startswith("SLURM does not answer (squeue: ") for note in found["notes"])
        assert controller.poll() is None
    finally:
        if at_work:
            os.kill(at_work, signal.SIGCONT)
        plain.run("scontrol", "update", f"nodename={every}", "state=resume", check=False)
        study.end()
