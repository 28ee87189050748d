"""Training on GPUs: bf16 compute on fp32 master weights against fp32 on the CPU, and two GPUs against one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from trl_room import recipe, run_of

from trialign import methods
from trialign.training import train

SETTINGS = {"epochs": 2, "learning_rate": 1e-3}
ALONE = """
import sys
from pathlib import Path
from trialign import recipes
from trialign.steps import Step
from trialign.training import train
recipe, parent, tokens, reference, out, scratch = sys.argv[1:]
names = ("parent", "tokens", "reference")
inputs = {name: (Path(path),) for name, path in zip(names, (parent, tokens, reference)) if path}
train.train(Step(recipes.parse(recipe), inputs, Path(out), Path(scratch)))
"""


def alone(run, gpus: str) -> None:
    """Train in a process of its own that sees these GPUs, or none."""
    inputs = [*(run.inputs.get(name, ("",))[0] for name in ("parent", "tokens", "reference"))]
    arguments = [run.recipe.canonical(), *inputs, run.out, run.scratch]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpus}
    subprocess.run([sys.executable, "-c", ALONE, *map(str, arguments)], check=True, env=environment)


def losses(run) -> list[float]:
    entries = [json.loads(line) for line in (run.out / "log.jsonl").open()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.parametrize("engine", ["trl", "packed"])
@pytest.mark.parametrize("method", methods.names())
def test_bf16_on_a_gpu_follows_fp32_on_the_cpu(method, engine, models, tokens, step, tmp_path):
    folder = tokens(16)
    exact, mixed = (
        run_of(step, tmp_path, method, models["mistral"], folder, name, engine=engine, precision=name, **SETTINGS)
        for name in ("fp32", "bf16")
    )
    alone(exact, "")
    alone(mixed, "0")
    assert losses(mixed) == pytest.approx(losses(exact), rel=3e-2, abs=3e-2)
    weights = load_file(mixed.out / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_a_step_of_5e_7_moves_the_master_weights_on_a_gpu(models, tokens, step):
    """In bf16 weights it would vanish."""
    run = step(recipe("dpo", precision="bf16", learning_rate=5e-7), models["mistral"], tokens(16))
    alone(run, "0")
    before, after = (load_file(path / "model.safetensors") for path in (run.input("parent"), run.out / "model"))
    moved = max((after[name] - before[name]).abs().max().item() for name in before)
    assert 1e-8 < moved < 1e-5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("method", [name for name in methods.names() if not methods.get(name).micro_batch_is_global])
def test_two_gpus_train_as_one(method, models, tokens, step):
    folder = tokens(16)
    two = dataclasses.replace(step(recipe(method, **SETTINGS), models["mistral"], folder, "two"), processes=2)
    train.train(two)
    one = step(recipe(method, **SETTINGS), models["mistral"], folder, "one")
    alone(one, "0")
    assert losses(two) == pytest.approx(losses(one), rel=1e-3, abs=1e-4)
