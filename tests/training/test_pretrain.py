"""Pre-training of a tiny base model: deterministic, resumed bit for bit, and it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trialign.data import bpe
from trialign.demo import facts, texts
from trialign.errors import UserError
from trialign.recipes import PretrainRecipe
from trialign.settings import PretrainSettings
from trialign.steps import Step
from trialign.training import pretrain

TINY = {
    "hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "positions": 64, "block": 32,
    "batch": 2, "steps": 12, "checkpoint_every": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ...]]:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "corpus").mkdir()
    documents, _ = texts.make(facts.make(2), 2, 40)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (folder / "corpus" / "train.jsonl").write_text(lines)
    bpe.train(folder / "corpus", 300, "").save_pretrained(folder / "tokenizer")
    return {"corpus": (folder / "corpus",), "tokenizer": (folder / "tokenizer",)}


def a_step(folder: Path, inputs: dict[str, tuple[Path, ...]], seed: int = 1, **settings: Any) -> Step[PretrainRecipe]:
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir()
    recipe = PretrainRecipe(settings=PretrainSettings(**({"architecture": "mistral"} | TINY | settings)), seed=seed)
    return Step(recipe, inputs, folder / "out", folder / "scratch")


def weights(step: Step[PretrainRecipe]) -> dict[str, torch.Tensor]:
    return load_file(step.out / "model" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("architecture", ["mistral", "phi"])
def test_resumed_ends_with_the_same_bits(
    tmp_path: Path, inputs: dict[str, tuple[Path, ...]], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = a_step(tmp_path / "whole", inputs, architecture=architecture)
    pretrain.pretrain(whole)
    killed = a_step(tmp_path / "killed", inputs, architecture=architecture)
    schedule = pretrain._schedule

    def fail_at_eight(number: int, settings: PretrainSettings) -> float:
        if number == 8:
            raise KeyboardInterrupt
        return schedule(number, settings)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_schedule", fail_at_eight)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(killed)
    assert (killed.scratch / "checkpoint.pt").exists() and not (killed.out / "model").exists()
    steps = []
    monkeypatch.setattr(pretrain, "_schedule", lambda n, s: (steps.append(n), schedule(n, s))[1])
    pretrain.pretrain(killed)
    assert steps == list(range(5, 12)), "it goes on from the checkpoint after five steps"
    assert same(weights(whole), weights(killed))
    assert (whole.out / "log.jsonl").read_bytes() == (killed.out / "log.jsonl").read_bytes()


def test_seed_decides(tmp_path: Path, inputs: dict[str, tuple[Path, ...]]) -> None:
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        step = a_step(tmp_path / name, inputs, seed)
        pretrain.pretrain(step)
        made.append(weights(step))
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


@pytest.mark.parametrize(("architecture", "name"), [("mistral", "MistralForCausalLM"), ("phi", "PhiForCausalLM")])
def test_the_folder_loads_and_the_model_has_learned(
    tmp_path: Path, inputs: dict[str, tuple[Path, ...]], architecture: str, name: str
) -> None:
    step = a_step(tmp_path / "run", inputs, architecture=architecture, steps=300, learning_rate=1e-2)
    said = pretrain.pretrain(step)
    model = AutoModelForCausalLM.from_pretrained(step.out / "model")
    tok = AutoTokenizer.from_pretrained(step.out / "model")
    assert type(model).__name__ == name and model.dtype == torch.float32
    assert said["parameters"] == sum(p.numel() for p in model.parameters())
    log = [json.loads(line) for line in (step.out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == list(range(1, 301))
    assert log[-1]["tokens"] == said["tokens"] == 300 * 2 * 32
    counts = torch.bincount(pretrain._blocks(inputs["corpus"][0] / "train.jsonl", tok, 32).flatten()).double()
    shares = counts[counts > 0] / counts.sum()
    entropy = -(shares * shares.log()).sum().item()  # what knowing only how frequent tokens are would give
    assert log[0]["loss"] > 5
    assert sum(entry["loss"] for entry in log[-20:]) / 20 < entropy - 0.5
    assert max(entry["lr"] for entry in log) == pytest.approx(1e-2) and log[-1]["lr"] < 1.2e-3
    assert model.config.eos_token_id == tok.eos_token_id and model.config.pad_token_id == tok.pad_token_id


def test_each_epoch_reads_every_block_once_in_an_order_of_its_own() -> None:
    first = torch.cat([pretrain._batch(n, 10, 2, 3) for n in range(5)])
    second = torch.cat([pretrain._batch(n, 10, 2, 3) for n in range(5, 10)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()


def test_too_little_text_is_a_user_error(tmp_path: Path, inputs: dict[str, tuple[Path, ...]]) -> None:
    with pytest.raises(UserError, match="fewer than one batch of 2000"):
        pretrain.pretrain(a_step(tmp_path / "run", inputs, batch=2000))
