"""What happens around a training run: progress on stderr, an end to a diverged one, whole checkpoints on a clock."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback, TrainerControl, TrainerState

from trialign import slurm
from trialign.deadline import Deadline
from trialign.errors import Again
from trialign.progress import SECONDS, Progress
from trialign.training import distributed

CHECKPOINT_SECONDS = 600.0


class ProgressLines(TrainerCallback):
    """One line on stderr every few seconds, also told to `progress`: step of how many, loss, tokens/s, time left.

    tokens_per_step: how many tokens the policy reads in a step, on the average. first_step_after: seconds from the
    start of this process to its first step, None before that.
    """

    def __init__(self, tokens_per_step: float, progress: Progress):
        self._tokens_per_step, self._progress = tokens_per_step, progress
        self.first_step_after: float | None = None
        self._start = self._last = 0.0
        self._first_step = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._start = self._last = time.monotonic()
        self._first_step = state.global_step
        if state.is_world_process_zero:
            self._progress.tell(state.global_step, state.max_steps, "steps")

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.first_step_after is None:
            self.first_step_after = round(time.time() - psutil.Process().create_time(), 3)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        steps = state.global_step - self._first_step
        if "loss" not in state.log_history[-1] or steps == 0 or not state.is_world_process_zero:
            return
        if now - self._last < SECONDS and state.global_step < state.max_steps:
            return
        self._last = now
        seconds = (now - self._start) / steps
        loss, speed = state.log_history[-1]["loss"], self._tokens_per_step / seconds
        left = round(seconds * (state.max_steps - state.global_step))
        print(
            f"step {state.global_step}/{state.max_steps}  loss {loss:.4f}  {speed:,.0f} tokens/s  "
            f"{timedelta(seconds=left)} left",
            file=sys.stderr,
            flush=True,
        )
        told = {"loss": loss, "tokens_per_second": speed, "seconds_left": left}
        self._progress.tell(state.global_step, state.max_steps, "steps", **told)


class Diverged(Exception):
    """The loss or the gradient of a step is not finite. facts: `step`, and the `value` of what is `not_finite`."""

    def __init__(self, step: int, name: str, value: float):
        super().__init__(f"{name} is {value} at step {step}")
        self.facts = {"step": step, "not_finite": name, "value": str(value)}


class StopDiverged(TrainerCallback):
    """Raise Diverged once the loss or the gradient's norm is not finite: the harness would score such a model, too.

    The trainer logs a step before it saves, so no checkpoint holds such weights.
    """

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for name in ("loss", "grad_norm"):
            value = state.log_history[-1].get(name, 0.0)
            if not math.isfinite(value):
                raise Diverged(state.global_step, name, value)


class CheckpointClock(TrainerCallback):
    """Ask for a checkpoint every TRIALIGN_CHECKPOINT_SECONDS (600), and for a last one before time is up.

    Time is up before the end of the SLURM job that this runs in (Again: it goes on in another), or at SIGTERM, which
    SLURM sends to what it cancels or preempts (SystemExit). Nothing is asked for after the last step.
    """

    def __init__(self) -> None:
        self._seconds = float(os.environ.get("TRIALIGN_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS))
        self._last = self._step_began = self._save_began = 0.0
        self._slowest_step = self._slowest_save = 0.0
        self._told_to_end, self._stop = False, False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last = self._step_began = time.monotonic()
        self._deadline = Deadline()
        if slurm.own_job():
            signal.signal(signal.SIGTERM, self._terminate)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        self._slowest_step, self._step_began = max(self._slowest_step, now - self._step_began), now
        needed = 2 * self._slowest_step + 3 * self._slowest_save
        due = now - self._last >= self._seconds
        # clocks differ, and all processes must write a checkpoint or none
        due, self._stop = distributed.first_says((due, self._told_to_end or self._deadline.is_within(needed)))
        if state.global_step < state.max_steps and (due or self._stop):
            control.should_save = True
            self._save_began = now

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last = self._step_began = time.monotonic()
        self._slowest_save = max(self._slowest_save, self._last - self._save_began)
        if self._stop and self._told_to_end:
            print(f"told to end: checkpoint at step {state.global_step}", file=sys.stderr, flush=True)
            sys.exit(128 + signal.SIGTERM)
        if self._stop:
            raise Again(f"out of time at step {state.global_step} of {state.max_steps}, with a checkpoint")

    def _terminate(self, *_: Any) -> None:
        self._told_to_end = True


def newest_checkpoint(scratch: Path) -> Path | None:
    """Return the newest whole checkpoint under `scratch`, or None."""
    return max(scratch.glob("checkpoint-*"), key=_step, default=None)


def publish_checkpoint(written: Path, scratch: Path) -> None:
    """Move the checkpoint folder `written` into `scratch` by one rename, then drop the older ones.

    Its bytes are on the disk before its name is there, so a name never stands for half a checkpoint.
    """
    for file in written.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    target = scratch / written.name
    shutil.rmtree(target, ignore_errors=True)
    written.rename(target)
    for other in scratch.glob("checkpoint-*"):
        if _step(other) < _step(target):
            shutil.rmtree(other, ignore_errors=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
