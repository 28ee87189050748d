"""SIGKILL at random moments of a training, for every method: the resumed run's weights are an undisturbed one's."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from trl_room import PARAMS, assert_same_run, run_of, training_process

from trialign.training.callbacks import newest_checkpoint

KILLS = 20
pytestmark = pytest.mark.soak


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["packed", "trl"])
@pytest.mark.parametrize("method", sorted(PARAMS))
def test_kills_at_random_moments_change_no_bit(method, engine, models, tokens, step, tmp_path, monkeypatch) -> None:
    """Twenty runs, each killed once or more at a moment of the whole run's span, imports left out, and resumed."""
    seed = int(os.environ.get("TRIALIGN_SOAK_SEED", str(time.time_ns() % 10_000)))
    chance, folder = random.Random(f"{seed} {method}"), tokens(18)
    monkeypatch.setenv("TRIALIGN_CHECKPOINT_SECONDS", "0")
    whole = run_of(step, tmp_path, method, models["phi"], folder, "whole", engine=engine, epochs=8)
    span = _finish(whole)
    at = []
    for number in range(KILLS):
        run = replace(step(whole.recipe, models["phi"], folder, f"killed{number}"), inputs=whole.inputs)
        while True:
            process = training_process(run)
            process.join(chance.uniform(0, span))
            if process.exitcode is not None:  # it was faster: another start of the same run, from nothing
                shutil.rmtree(run.out)
                shutil.rmtree(run.scratch)
                run.out.mkdir()
                run.scratch.mkdir()
                continue
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            break
        checkpoint = newest_checkpoint(run.scratch)
        at.append(int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0)
        shutil.rmtree(run.out)  # as every start does
        run.out.mkdir()
        _finish(run)
        assert_same_run(whole, run)
    print(f"{method}, {engine}, seed {seed}: {KILLS} kills, resumed at steps {sorted(at)} of 40")


def _finish(run) -> float:
    """Train to the end in a process. Returns its seconds."""
    start = time.monotonic()
    process = training_process(run)
    process.join()
    assert process.exitcode == 0 and (Path(run.out) / "model/model.safetensors").is_file()
    return time.monotonic() - start
