"""Two processes (gloo, FSDP2) against one, and splits of a batch against the whole batch."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trl_room import recipe

from trialign import methods
from trialign.errors import UserError
from trialign.training import train, trl
from trialign.training.callbacks import newest_checkpoint

# whose stock loss does not depend on how a batch is split
SPLITTABLE = [name for name in methods.names() if not methods.get(name).micro_batch_is_global]


def losses(run) -> list[float]:
    entries = [json.loads(line) for line in (run.out / "log.jsonl").open()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run.out / "model" / "model.safetensors")


def assert_alike(first, second) -> None:
    """Equal but for the order of floating-point sums, step by step and at the end.

    On Mistral, which has no biases: the gradient of Phi's key biases is zero, and AdamW makes whole steps of its noise.
    """
    assert losses(second) == pytest.approx(losses(first), rel=2e-5, abs=1e-6)
    ours, others = weights(first), weights(second)
    assert ours.keys() == others.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", SPLITTABLE)
def test_two_processes_train_as_one(method, models, tokens, step):
    folder, settings = tokens(16), {"epochs": 2, "learning_rate": 1e-3}
    one = step(recipe(method, **settings), models["mistral"], folder, "one")
    two = dataclasses.replace(step(recipe(method, **settings), models["mistral"], folder, "two"), processes=2)
    assert train.train(one)["split"] == {"processes": 1, "micro_batch": 4, "accumulation": 1}
    facts = train.train(two)
    assert facts["split"] == {"processes": 2, "micro_batch": 2, "accumulation": 1} and facts["steps"] == 8
    assert facts["trainer"]["fsdp_config"]["version"] == 2
    assert_alike(one, two)


@pytest.mark.parametrize("method", SPLITTABLE)
def test_a_batch_in_micro_batches_is_the_batch(method, models, tokens, step):
    folder = tokens(16)
    whole = step(recipe(method, learning_rate=1e-3), models["mistral"], folder, "whole")
    parts = step(recipe(method, learning_rate=1e-3, micro_batch=1), models["mistral"], folder, "parts")
    train.train(whole)
    assert train.train(parts)["split"] == {"processes": 1, "micro_batch": 1, "accumulation": 4}
    assert_alike(whole, parts)


@pytest.mark.parametrize(
    ("made", "processes", "rows", "message"),
    [
        (recipe("tpo"), 2, 16, "method tpo: TRL's loss depends on how a batch is split"),
        (recipe("kto", micro_batch=2), 1, 16, "method kto: TRL's loss depends on how a batch is split"),
        (recipe("dpo"), 3, 16, "training.batch=4 does not divide into micro-batches of 1 on 3 devices"),
        (recipe("dpo", micro_batch=4), 2, 16, "training.batch=4 does not divide into micro-batches of 4 on 2 devices"),
        (recipe("sft"), 2, 18, r"18 rows leave a last batch of 2, .* \(16\)"),
    ],
)
def test_what_cannot_be_split_is_refused(made, processes, rows, message):
    with pytest.raises(UserError, match=message):
        trl.split_batch(made, methods.get(made.method), processes, rows)


def test_a_mistake_in_the_processes_is_the_users_one_line(models, tokens, step):
    two = dataclasses.replace(step(recipe("tpo"), models["mistral"], tokens(16), "two"), processes=2)
    with pytest.raises(UserError, match="method tpo: TRL's loss depends"):
        train.train(two)


SCRIPT = """
import json, sys
from pathlib import Path
from trialign import recipes
from trialign.steps import Step
from trialign.training import train, trl
recipe, parent, tokens, out, scratch = sys.argv[1:]
inputs = {"parent": (Path(parent),), "tokens": (Path(tokens),)}
train.train(Step(recipes.parse(recipe), inputs, Path(out), Path(scratch), 2))
"""


def test_two_killed_processes_leave_no_one_behind_and_resume(models, tokens, step, monkeypatch):
    folder, settings = tokens(16), {"epochs": 12, "learning_rate": 1e-3}
    whole = dataclasses.replace(step(recipe("dpo", **settings), models["phi"], folder, "whole"), processes=2)
    train.train(whole)
    killed = dataclasses.replace(step(recipe("dpo", **settings), models["phi"], folder, "killed"), processes=2)
    arguments = [killed.recipe.canonical(), killed.input("parent"), folder, killed.out, killed.scratch]
    environment = os.environ | {"TRIALIGN_CHECKPOINT_SECONDS": "0"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, arguments)], env=environment)
    while not newest_checkpoint(killed.scratch) or _step(killed.scratch) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while _workers(killed.scratch) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _workers(killed.scratch)
    facts = train.train(killed)
    assert 5 <= facts["resumed_at"] < facts["steps"] == 48
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(killed)[name], weight, rtol=0, atol=0)


def _step(scratch: Path) -> int:
    return int(newest_checkpoint(scratch).name.removeprefix("checkpoint-"))


def _workers(scratch: Path) -> list[str]:
    """Return the processes whose command line names the scratch folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"{scratch}/order.json" in text:
            found.append(text)
    return found
