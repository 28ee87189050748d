"""The clock of checkpoints, on a clock that stands still between steps."""

from __future__ import annotations

import os

import pytest
from transformers import TrainerControl, TrainerState

from trialign import deadline
from trialign.errors import Again
from trialign.training import callbacks
from trialign.training.callbacks import CheckpointClock


@pytest.mark.parametrize(("slowest_step", "save", "last"), [(50, 0, 4), (50, 20, 2), (10, 60, 2)])
def test_the_last_checkpoint_is_written_before_the_job_ends(monkeypatch, tmp_path, slowest_step, save, last):
    """Of 300 seconds 30 stay free, and as much as two of the slowest steps and three of the slowest saves so far."""
    now = [1000.0]
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now[0])
    assert callbacks.time is deadline.time
    (tmp_path / "squeue").write_text("#!/bin/sh\necho '42|5:00'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("TRIALIGN_CHECKPOINT_SECONDS", "1")
    monkeypatch.setattr(callbacks.signal, "signal", lambda *_: None)

    clock, state, control = CheckpointClock(), TrainerState(max_steps=100), TrainerControl()
    clock.on_train_begin(None, state, control)
    with pytest.raises(Again, match=f"out of time at step {last} of 100, with a checkpoint"):
        for step in range(1, 10):
            now[0] += slowest_step
            state.global_step = step
            clock.on_step_end(None, state, control)
            assert control.should_save
            now[0] += save
            clock.on_save(None, state, control)
    assert now[0] <= 1000 + 270
