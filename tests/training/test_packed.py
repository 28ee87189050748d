"""The packed engine against formulas written out from single, unpadded sequences with their whole logits."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from formulas import FORMULAS, VARIANTS, Batch, other_weights, plain, token_logps, total
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PhiConfig, Qwen3Config
from trl_room import BOS, EOS, PARAMS, VOCAB, assert_same_run, recipe, run_of, training_process

from trialign.errors import UserError
from trialign.training import attention, logps, packed, train
from trialign.training.callbacks import newest_checkpoint
from trialign.training.rows import plan

SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "bos_token_id": BOS, "eos_token_id": EOS, "initializer_range": 0.2,
}  # fmt: skip
CONFIGS = {
    "mistral": MistralConfig(num_key_value_heads=2, sliding_window=None, **SHAPE),
    "window": MistralConfig(num_key_value_heads=2, sliding_window=300, **SHAPE),
    "phi": PhiConfig(**SHAPE),
    "llama": LlamaConfig(num_key_value_heads=1, tie_word_embeddings=True, **SHAPE),
    "qwen3": Qwen3Config(num_key_value_heads=2, head_dim=16, **SHAPE),
}
# prompt and response lengths: short ones, UltraFeedback's proportions, prompts of one token, prompts beyond responses
LENGTHS = {
    "short": ((2, 9), (1, 12)), "feedback": ((5, 90), (10, 120)), "one token": ((1, 2), (1, 30)),
    "long prompt": ((60, 150), (1, 20)),
}  # fmt: skip


def triples(file: Path, lengths: str, number: int, seed: int = 1) -> list[dict[str, Any]]:
    rng = random.Random(f"{lengths} {seed}")
    (low, high), (short, long) = LENGTHS[lengths]
    some = lambda a, b: [rng.randrange(3, VOCAB) for _ in range(rng.randrange(a, b))]  # noqa: E731
    rows = [
        {"prompt_id": str(i), "prompt": some(low, high), **{side: [*some(short, long), EOS] for side in SIDES}}
        for i in range(number)
    ]
    ids = pa.list_(pa.int32())
    schema = pa.schema([("prompt_id", pa.string()), *((name, ids) for name in ("prompt", *SIDES))])
    pq.write_table(pa.Table.from_pylist(rows, schema), file)
    return rows


SIDES = ("reference", "chosen", "rejected")


@pytest.fixture
def parent(tmp_path, models):
    """Save a tiny random model of an architecture, with a tokenizer."""

    def make(architecture: str) -> Path:
        from transformers import AutoTokenizer

        torch.manual_seed(1)
        folder = tmp_path / architecture
        AutoModelForCausalLM.from_config(CONFIGS[architecture]).save_pretrained(folder)
        AutoTokenizer.from_pretrained(models["mistral"]).save_pretrained(folder)
        return folder

    return make


def stored(batch: Batch, branches: tuple[str, ...]) -> dict[str, Any]:
    """The parent's log-probabilities, one sequence at a time; `chosen` of the engine is the batch's good side."""
    column = {"chosen": batch.good, "rejected": "rejected"}
    found = {}
    for branch in branches:
        for name, shift in ((branch, 0), (f"mismatched:{branch}", 1)):
            sums = total(batch.logps(batch.reference, column[branch], shift)).detach().double().numpy()
            found[name] = np.roll(sums, 1) if shift else sums
    return found


@pytest.fixture
def engine(parent, tmp_path):
    """Make a packed trainer of some triples; returns it, its examples, and the formulas' batch."""

    def make(method: str, params: dict[str, Any], architecture: str, lengths: str, number: int = 5, view: str = "",
             budget: int = 250, **training: Any):  # fmt: skip
        of_all = recipe(method, params, view, batch=number, **training)
        rows = triples(tmp_path / "train.parquet", lengths, number)
        folder = parent(architecture)
        data = {split: packed.Examples(tmp_path / "train.parquet", of_all.view) for split in ("train", "eval")}
        reference = plain(folder)
        batch = Batch(rows, "reference" if of_all.view == "reference-rejected" else "chosen", None, reference)
        needed = stored(batch, data["train"].branches) if method in ("dpo", "ipo", "kto") else {}
        trainer = packed.build_trainer(of_all, folder, data, {"train": needed, "eval": needed}, tmp_path, budget)
        weights = other_weights(trainer.model, 3)
        trainer.model.load_state_dict(weights)
        batch.policy = plain(folder, weights)
        return trainer, [data["train"][i] for i in range(number)], batch

    return make


CASES = [
    *((variant, "mistral", lengths) for variant in VARIANTS for lengths in LENGTHS),
    *(
        (variant, architecture, "feedback")
        for variant in PARAMS
        for architecture in CONFIGS
        if architecture != "mistral"
    ),
]


def assert_gradients(trainer: Any, policy: Any, bound: float = 1e-5) -> None:
    scale = max(weight.grad.abs().max() for weight in policy.parameters())
    for (name, ours), theirs in zip(policy.named_parameters(), trainer.model.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < bound * scale, name


@pytest.mark.parametrize(("variant", "architecture", "lengths"), CASES)
def test_loss_and_gradient_are_the_formula(variant, architecture, lengths, engine):
    method, params = variant.split()[0], VARIANTS[variant]
    trainer, examples, batch = engine(method, params, architecture, lengths)
    loss = trainer.training_step(trainer.model, examples)
    expected = FORMULAS[method](params, batch)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert_gradients(trainer, batch.policy)


def logps_of(trainer: Any, examples: list[Any]) -> list[list[torch.Tensor]]:
    """The engine's log-probabilities of each response's tokens, by the examples' order and branch."""
    found: dict[int, list[torch.Tensor]] = {}
    for row, _ in trainer._rows(examples):
        order = logps.Order(row, None)
        with torch.no_grad():
            trainer.order(trainer.model, order)
        parts = iter(order.logps.split(row.lengths.flatten().tolist()))
        for index in row.indices:
            found[index] = [next(parts) for _ in range(row.lengths.shape[1])]
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_log_probabilities_are_those_of_single_sequences(architecture, lengths, engine):
    trainer, examples, batch = engine("tpo", PARAMS["tpo"], architecture, lengths, number=7)
    for found, row in zip(logps_of(trainer, examples), batch.rows, strict=True):
        for ours, side in zip(found, ("chosen", "rejected", "reference"), strict=True):
            theirs = token_logps(batch.policy, row["prompt"] + row[side])[len(row["prompt"]) - 1 :]
            assert (ours - theirs).abs().max() < 1e-5


def gradient(trainer: Any, examples: list[Any]) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    trainer.training_step(trainer.model, examples)
    return {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize("method", PARAMS)
def test_the_gradient_does_not_depend_on_the_split(method, engine):
    """One row of all examples, or 2, 4, 16 and more rows of a few."""
    trainer, examples, _ = engine(method, PARAMS[method], "mistral", "feedback", number=16, budget=100_000)
    whole = gradient(trainer, examples)
    scale = max(value.abs().max() for value in whole.values())
    tokens = sum(example.tokens for example in examples)
    for parts in (2, 4, 16):
        trainer.budget = tokens // parts + max(example.tokens for example in examples) * (parts < 16)
        assert len(list(trainer._rows(examples))) >= min(parts, 2)
        split = gradient(trainer, examples)
        assert max((split[name] - whole[name]).abs().max() for name in whole) < 1e-6 * scale


@pytest.mark.parametrize("method", ["tpo", "orpo", "kto"])
def test_gradient_checkpointing_changes_no_gradient(method, engine):
    trainer, examples, batch = engine(method, PARAMS[method], "mistral", "feedback", gradient_checkpointing=True)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    trainer.model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    trainer.training_step(trainer.model, examples)
    FORMULAS[method](PARAMS[method], batch).backward()
    assert calls
    assert_gradients(trainer, batch.policy)


def test_the_head_holds_the_logits_of_a_few_examples_only(engine, monkeypatch):
    """One example at a time gives what all at once give."""
    trainer, examples, _ = engine("tpo", PARAMS["tpo"], "phi", "feedback", budget=10_000)
    whole = gradient(trainer, examples)
    monkeypatch.setattr(logps, "CHUNK_BYTES", 1)
    parts = gradient(trainer, examples)
    scale = max(value.abs().max() for value in whole.values())
    assert max((parts[name] - whole[name]).abs().max() for name in whole) < 1e-6 * scale


@pytest.mark.parametrize("method", ["dpo", "kto", "cpo", "orpo"])
def test_from_a_base_model_the_reference_response_is_the_chosen_one(method, engine):
    trainer, examples, batch = engine(method, PARAMS[method], "mistral", "short", view="reference-rejected")
    loss = trainer.training_step(trainer.model, examples)
    assert loss.item() == pytest.approx(FORMULAS[method](PARAMS[method], batch).item(), rel=1e-5)


def test_a_sliding_window_that_is_too_short_is_refused(engine):
    with pytest.raises(UserError, match=r"attends to 300 .* or set training.engine: trl"):
        LENGTHS["beyond"] = ((290, 300), (20, 30))
        engine("tpo", PARAMS["tpo"], "window", "beyond")


def test_attention_without_segments_is_refused(engine):
    trainer, _, _ = engine("tpo", PARAMS["tpo"], "mistral", "short")
    with pytest.raises(RuntimeError, match="attends in one row of segments"):
        trainer.model.model(input_ids=torch.tensor([[5, 6, 7]]))


def naive_varlen(q, k, v, starts_q, starts_k, longest_q, longest_k, *, scale, window_size, enable_gqa):
    """varlen_attn by its documentation: each run of queries sees its own run of keys, causally from their ends."""
    assert window_size == (-1, 0) and (longest_q, longest_k) == (starts_q.diff().max(), starts_k.diff().max())
    assert starts_q.dtype == starts_k.dtype == torch.int32
    found = torch.empty_like(q)
    for head in range(q.shape[1]):
        shared = head * k.shape[1] // q.shape[1] if enable_gqa else head
        for (a, b), (c, d) in zip(starts_q.unfold(0, 2, 1).tolist(), starts_k.unfold(0, 2, 1).tolist(), strict=True):
            scores = scale * q[a:b, head] @ k[c:d, shared].T
            unseen = torch.ones_like(scores, dtype=torch.bool).triu(1 + (d - c) - (b - a))
            found[a:b, head] = scores.masked_fill(unseen, -math.inf).softmax(-1) @ v[c:d, shared]
    return found


@pytest.mark.parametrize("architecture", ["mistral", "phi"])
def test_the_call_for_gpus_attends_as_segments_do(architecture, engine, monkeypatch):
    """Its kernel is written out here; tests/gpu has the real one."""
    trainer, examples, _ = engine("tpo", PARAMS["tpo"], architecture, "feedback")
    by_segments = logps_of(trainer, examples)
    calls = []
    attention._check_kernel.cache_clear()
    monkeypatch.setattr(
        "torch.nn.attention.varlen.varlen_attn", lambda *a, **k: calls.append(1) or naive_varlen(*a, **k)
    )
    attention._check_kernel(torch.device("cpu"), torch.float32, 4, {"mistral": 2, "phi": 4}[architecture], 8)
    monkeypatch.setattr(attention, "_by_segments", attention._varlen)
    at_once = logps_of(trainer, examples)
    assert calls
    for one, other in zip(by_segments, at_once, strict=True):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True))


def test_a_kernel_that_aligns_otherwise_is_refused(monkeypatch):
    """Queries at the start of their keys, as torch aligns `is_causal`, instead of at their end."""

    def aligned_at_the_start(q, k, v, starts_q, starts_k, *_, scale, **__):
        spans = zip(starts_q.unfold(0, 2, 1).tolist(), starts_k.unfold(0, 2, 1).tolist(), strict=True)
        parts = [(x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d])) for (a, b), (c, d) in spans]
        attend = torch.nn.functional.scaled_dot_product_attention
        return torch.cat([attend(*p, is_causal=True, scale=scale, enable_gqa=True).transpose(0, 1) for p in parts])

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", aligned_at_the_start)
    attention._check_kernel.cache_clear()
    with pytest.raises(UserError, match=r"varlen attention of this GPU .* is off by .* set training.engine: trl"):
        attention._check_kernel(torch.device("cpu"), torch.float32, 4, 2, 16)


@given(
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=40),
    budget=st.integers(1, 2000),
    ranks=st.integers(1, 5),
)
def test_a_plan_holds_each_example_once_in_rows_of_the_budget(lengths, budget, ranks):
    found = plan(lengths, budget, ranks)
    assert len(found) == ranks and len({len(rows) for rows in found}) == 1
    assert sorted(index for rows in found for row in rows for index in row) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in row) for rows in found for row in rows]
    assert max(loads) <= max(budget, *lengths)
    # the longest first to the emptiest: no row is ahead of another by more than one example
    assert max(loads) - min(loads) <= max(lengths)
    assert found == plan(lengths, budget, ranks)


# --- whole runs -------------------------------------------------------------------------------------------------------


def losses(run: Any) -> list[float]:
    entries = map(json.loads, (run.out / "log.jsonl").open())
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.parametrize("method", PARAMS)
@pytest.mark.parametrize("architecture", ["mistral", "phi"])
def test_a_run_is_that_of_the_stock_trainer(method, architecture, step, models, tokens, tmp_path):
    """Same order, losses, weights and evaluation, step by step; 18 rows in batches of 4 leave a last one of 2."""
    folder = tokens(18)
    stock, ours = (
        run_of(step, tmp_path, method, models[architecture], folder, engine, engine=engine, epochs=2)
        for engine in ("trl", "packed")
    )
    facts = [train.train(run) for run in (stock, ours)]
    assert losses(ours) == pytest.approx(losses(stock), rel=1e-4, abs=1e-5) and len(losses(ours)) == 10
    assert facts[1]["final"]["loss"] == pytest.approx(facts[0]["final"]["loss"], abs=1e-3)
    ends = [load_file(run.out / "model/model.safetensors") for run in (stock, ours)]
    # a key's bias moves no softmax where nothing is rotated: its gradient is rounding, which AdamW makes steps of
    names = [name for name in ends[0] if not name.endswith("k_proj.bias")]
    assert max((ends[0][name] - ends[1][name]).abs().max().item() for name in names) < 2e-4
    AutoModelForCausalLM.from_pretrained(ours.out / "model")(input_ids=torch.tensor([[5, 6, 7]]))


@pytest.mark.parametrize("method", ["sft", "kto", "tpo"])
def test_a_killed_run_ends_with_the_same_bits(method, step, models, tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIALIGN_CHECKPOINT_SECONDS", "0")
    folder = tokens(18)
    whole, killed = (
        run_of(step, tmp_path, method, models["phi"], folder, name, engine="packed", epochs=8, dropout=0.1)
        for name in ("whole", "killed")
    )
    train.train(whole)
    process = training_process(killed)
    while _newest(killed) < 7:  # in the second epoch of 5 steps
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    shutil.rmtree(killed.out)
    killed.out.mkdir()
    assert train.train(killed)["resumed_at"] >= 7
    assert_same_run(whole, killed)


def _newest(run: Any) -> int:
    checkpoint = newest_checkpoint(run.scratch)
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


@pytest.mark.parametrize("method", PARAMS)
def test_two_processes_train_as_one(method, step, models, tokens, tmp_path):
    """FSDP2 over gloo, also the methods whose stock loss must have its batch whole, and a last batch of one prompt."""
    folder = tokens(17)
    one, two = (
        run_of(step, tmp_path, method, models["mistral"], folder, name, engine="packed", micro_batch_tokens=60)
        for name in ("one", "two")
    )
    two = dataclasses.replace(two, processes=2)
    facts = [train.train(run) for run in (one, two)]
    assert facts[1]["split"] == {"processes": 2, "micro_batch_tokens": 60}
    assert losses(two) == pytest.approx(losses(one), rel=1e-4, abs=1e-5) and len(losses(two)) == 5
    ends = [load_file(run.out / "model/model.safetensors") for run in (one, two)]
    assert max((ends[0][name] - ends[1][name]).abs().max().item() for name in ends[0]) < 1e-4


def test_a_policy_that_is_its_reference_has_a_dpo_loss_of_ln_2(step, models, tokens, tmp_path):
    """Also where the parent is published in bf16."""
    folder = tokens(16)
    first = run_of(step, tmp_path, "sft", models["mistral"], folder, "first", published_dtype="bf16")
    train.train(first)
    child = run_of(step, tmp_path, "dpo", first.out / "model", folder, "child", engine="packed", batch=16)
    train.train(child)
    assert losses(child)[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("packing", [None, 9])
def test_conversations_are_trained_as_by_the_stock_trainer(packing, step, models, tmp_path):
    """One a row, or wrapped into rows of 9 tokens: 27 of them are 3 rows."""
    ids = [[0, 5, 6, 7, 1, 8, 9, 1], [0, 9, 8, 7, 6, 1], [0, 4, 4, 1], [0, 3, 9, 9, 5, 1, 7, 1, 1]]
    mask = [[0, 0, 0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 0, 0, 1]]
    columns = {"input_ids": pa.array(ids, pa.list_(pa.int32())), "loss_mask": pa.array(mask, pa.list_(pa.int8()))}
    for split in ("train", "eval"):
        pq.write_table(pa.table({"prompt_id": list("abcd"), **columns}), tmp_path / f"{split}.parquet")
    runs = [
        step(
            recipe("sft", view="conversation", engine=engine, batch=3, packing=packing, epochs=3),
            models["mistral"],
            tmp_path,
            engine,
        )
        for engine in ("trl", "packed")
    ]
    facts = [train.train(run) for run in runs]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-5)
    assert facts[1]["final"]["loss"] == pytest.approx(facts[0]["final"]["loss"], rel=1e-3)
