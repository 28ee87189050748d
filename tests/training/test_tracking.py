"""What trainings report to TensorBoard, read back by its own reader, is their log; and no bit depends on it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trl_room import assert_same_run, run_of, training_process

from trialign import paths
from trialign.training import train
from trialign.training.callbacks import newest_checkpoint

RUN = "mistral+tpo@alpha=0.9@beta=0.2/seed1"
Scalar = tuple[str, int, float]


def tracked(run: Any, root: Path) -> Any:
    """The run as a step of a results tree whose study asks for TensorBoard."""
    (root / paths.SHARED).mkdir(parents=True)
    (root / paths.SHARED / paths.TRACKING).write_text('["tensorboard"]\n')
    return dataclasses.replace(run, shared=root / paths.SHARED, place=f"runs/{RUN}")


def reported(root: Path) -> list[Scalar]:
    """Every scalar that TensorBoard shows of the run: tag, step, value."""
    reader = EventAccumulator(str(root / paths.TRACKED / RUN), size_guidance={"scalars": 0})
    reader.Reload()
    return sorted((tag, point.step, point.value) for tag in reader.Tags()["scalars"] for point in reader.Scalars(tag))


def logged(run: Any) -> list[Scalar]:
    """Every number of the run's own log, as float32, under the names that the Trainer gives them."""
    found = []
    for line in (run.out / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        step = entry.pop("step")
        for name, value in entry.items():
            tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
            found.append((tag, step, struct.unpack("f", struct.pack("f", value))[0]))
    return sorted(found)


@pytest.mark.parametrize("from_a_checkpoint", [True, False])
@pytest.mark.parametrize("engine", ["packed", "trl"])
def test_a_killed_run_goes_on_in_the_same_curves(
    engine, from_a_checkpoint, step, models, tokens, tmp_path, monkeypatch
) -> None:
    """Steps that are done again replace what the killed start had reported of them."""
    folder, root = tokens(18), tmp_path / "results"
    whole, killed = (
        run_of(step, tmp_path, "tpo", models["mistral"], folder, name, engine=engine, epochs=8)
        for name in ("whole", "killed")
    )
    train.train(whole)
    killed = tracked(killed, root)
    monkeypatch.setenv("TRIALIGN_CHECKPOINT_SECONDS", "0")
    process = training_process(killed)
    while not (newest := newest_checkpoint(killed.scratch)) or int(newest.name.rpartition("-")[2]) < 7:
        assert process.exitcode is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    time.sleep(1)  # files of events are read in the order of their names, which tell seconds
    assert reported(root)[-1][1] >= 6  # what was flushed before the kill is there
    shutil.rmtree(killed.out)
    killed.out.mkdir()
    if not from_a_checkpoint:
        shutil.rmtree(killed.scratch)
        killed.scratch.mkdir()
    facts = train.train(killed)
    assert (facts["resumed_at"] is not None) == from_a_checkpoint
    assert facts["trainer"]["report_to"] == ["tensorboard"] and facts["trainer"]["run_name"] == RUN
    assert_same_run(whole, killed)
    assert reported(root) == logged(killed)
    assert {tag for tag, _, _ in reported(root)} > {"train/loss", "train/grad_norm", "eval/loss"}


def test_a_training_outlives_its_tracking(step, models, tokens, tmp_path, capfd) -> None:
    folder = tokens(18)
    whole, other = (
        run_of(step, tmp_path, "tpo", models["mistral"], folder, name, engine="packed") for name in ("whole", "other")
    )
    train.train(whole)
    other = tracked(other, tmp_path / "results")
    (tmp_path / "results" / paths.TRACKED).write_text("a file where the folder should be")
    train.train(other)
    assert capfd.readouterr().err.count("tracking ends here, the training goes on: ") == 1
    assert_same_run(whole, other)


def test_of_several_processes_the_first_reports(step, models, tokens, tmp_path) -> None:
    run = run_of(step, tmp_path, "tpo", models["mistral"], tokens(16), "two", engine="packed", learning_rate=1e-3)
    two = tracked(dataclasses.replace(run, processes=2), tmp_path / "results")
    train.train(two)
    assert reported(tmp_path / "results") == logged(two)


def test_nothing_is_reported_where_nothing_is_asked_for(step, models, tokens, tmp_path) -> None:
    run = run_of(step, tmp_path, "sft", models["mistral"], tokens(18), "one", engine="packed")
    root = tmp_path / "results"
    run = tracked(run, root)
    (root / paths.SHARED / paths.TRACKING).write_text("[]\n")
    assert train.train(run)["trainer"]["report_to"] == []
    assert not (root / paths.TRACKED).exists()
