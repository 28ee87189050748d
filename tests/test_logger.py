"""The status: how many of how many, a time left that follows from the rules' durations, and what a failed job says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from snakemake_logger_plugin_trialign import Clock
from tests.conftest import REPOSITORY, TEST_CONFIG, command
from trialign import config, lease, paths, study
from trialign.steps import digest


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


def test_a_killed_job_shows_its_run_the_last_lines_of_its_log_and_how_to_repeat_it(tmp_path: Path) -> None:
    """A process that is killed outright says nothing itself: the logger does.

    The step waits for this process, which holds its lease, until it is killed: it takes a second else.
    """
    experiment = config.load_files([REPOSITORY / "config" / f"{name}.yaml" for name in ("config", "demo", "test")])
    recipe = json.loads(study.world_recipe(experiment).canonical())
    log = tmp_path / "logs" / "world.log"
    with lease.held(tmp_path / paths.WORK / digest({"recipe": recipe, "inputs": {}})):
        run = subprocess.Popen(
            [
                f"{Path(sys.executable).parent}/snakemake", "--logger", "trialign", *TEST_CONFIG,
                "--config", f"results_dir={tmp_path}", "--cores", "1", "--nolock",
                "--", f"{tmp_path}/data/prepared/ultrachat",
            ],
            cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        while not log.with_suffix(".sh").exists():
            assert run.poll() is None, run.communicate()
            time.sleep(0.01)
        log.write_text("drawing the facts\nwriting the texts\n")
        steps = [child for child in psutil.Process(run.pid).children(recursive=True) if str(log) in child.cmdline()]
        assert steps
        steps[-1].kill()
        printed = run.communicate(timeout=120)[0]
    assert run.returncode != 0
    assert "✗ failed: world" in printed
    assert f"last lines of {log}:\n    drawing the facts\n    writing the texts\n" in printed
    assert f"repeat it alone: sh {log.with_suffix('.sh')}" in printed
    assert printed.rstrip().endswith(f"failed in the end (what depends on them was not run):\n  world: {log}")
    again = command("sh", str(log.with_suffix(".sh")))
    assert again.returncode == 0 and (tmp_path / "data/world").exists(), again.stdout
