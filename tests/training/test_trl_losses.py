"""TRL's losses and gradients against the formulas of the papers, written out here from log-probabilities of single,
unpadded sequences. The policy is not the reference, and Phi ships dropout that must be off."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from formulas import FORMULAS, VARIANTS, Batch, kto, other_weights, plain, token_logps
from trl_room import PARAMS, recipe

from trialign import methods
from trialign.training import trl
from trialign.training.trl import Split, build_trainer, read_rows

CASES = [(variant, architecture) for variant in VARIANTS for architecture in ("mistral", "phi")]
USUAL = {"sft": "reference", "tpo": "triple"}
GOOD = {"chosen-rejected": "chosen", "reference-rejected": "reference", "triple": "chosen"}


@pytest.fixture
def build(models, tokens, tmp_path) -> Callable[..., tuple[Any, dict[str, Any], list[dict[str, Any]]]]:
    """Make a method's trainer of five triples; returns it, its batch of all five, and the five triples."""

    def make(method: str, params: dict[str, Any], view: str, architecture: str):
        folder = tokens(5, 2)
        of_five = recipe(method, params, view, batch=5)
        rows = {split: read_rows(folder / f"{split}.parquet", of_five) for split in ("train", "eval")}
        trainer = build_trainer(of_five, models[architecture], rows, tmp_path, Split(1, of_five.training.batch, 1))
        triples = pq.read_table(folder / "train.parquet").to_pylist()
        return trainer, trainer.data_collator([rows["train"][i] for i in range(5)]), triples

    return make


@pytest.mark.parametrize(("variant", "architecture"), CASES)
def test_loss_and_gradient_are_the_formula(variant, architecture, build, models):
    method, params = variant.split()[0], VARIANTS[variant]
    trainer, inputs, triples = build(method, params, USUAL.get(method, "chosen-rejected"), architecture)
    weights = other_weights(trainer.model, 3)
    trainer.model.load_state_dict(weights)
    loss = trainer.compute_loss(trainer.model.train(), inputs)
    loss.backward()

    policy = plain(models[architecture], weights)
    expected = FORMULAS[method](params, Batch(triples, "chosen", policy, plain(models[architecture])))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-5)
    assert abs(expected.item() - math.log(2)) > 1e-3  # the policy is not the reference
    scale = max(weight.grad.abs().max() for weight in policy.parameters())
    for (name, ours), theirs in zip(policy.named_parameters(), trainer.model.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 2e-5 * scale, name


@pytest.mark.parametrize("method", ["dpo", "kto", "cpo", "orpo"])
def test_from_a_base_model_the_reference_response_is_the_chosen_one(method, build, models):
    trainer, inputs, triples = build(method, PARAMS[method], "reference-rejected", "mistral")
    weights = other_weights(trainer.model, 3)
    trainer.model.load_state_dict(weights)
    loss = trainer.compute_loss(trainer.model, inputs)
    batch = Batch(triples, "reference", plain(models["mistral"], weights), plain(models["mistral"]))
    assert loss.item() == pytest.approx(FORMULAS[method](PARAMS[method], batch).item(), rel=2e-5)


def test_kto_clamps_its_kl_at_zero(build, models):
    """Swapping policy and reference flips the sign of the mean log-ratio: one of the two KL terms is clamped."""
    trainer, inputs, triples = build("kto", PARAMS["kto"], "chosen-rejected", "mistral")
    one, two = plain(models["mistral"]).state_dict(), other_weights(trainer.model, 3)
    terms = []
    for policy, reference in ((one, two), (two, one)):
        trainer.model.load_state_dict(policy)
        trainer.ref_model.load_state_dict(reference)
        loss = trainer.compute_loss(trainer.model.train(), inputs)
        terms.append(trainer._metrics["train"]["kl"][-1])
        batch = Batch(triples, "chosen", plain(models["mistral"], policy), plain(models["mistral"], reference))
        assert loss.item() == pytest.approx(kto(PARAMS["kto"], batch).item(), rel=2e-5)
    assert min(terms) == 0 < max(terms)


def test_sft_reads_the_loss_mask_of_conversations(models, tmp_path):
    """The mean over the masked-in tokens of all conversations, whichever turns they are in."""
    ids = [[0, 5, 6, 7, 1, 8, 9, 1], [0, 9, 8, 7, 6, 1]]
    mask = [[0, 0, 0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    table = pa.table(
        {
            "prompt_id": ["a", "b"],
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "loss_mask": pa.array(mask, pa.list_(pa.int8())),
        }
    )
    pq.write_table(table, tmp_path / "train.parquet")
    train_recipe = recipe("sft", view="conversation", batch=2)
    rows = read_rows(tmp_path / "train.parquet", train_recipe)
    trainer = build_trainer(
        train_recipe,
        models["mistral"],
        {"train": rows, "eval": rows},
        tmp_path,
        Split(1, train_recipe.training.batch, 1),
    )
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([rows[0], rows[1]]))

    model = plain(models["mistral"])
    kept = [token_logps(model, row)[torch.tensor(keep[1:]) == 1] for row, keep in zip(ids, mask, strict=True)]
    assert loss.item() == pytest.approx(-torch.cat(kept).mean().item(), rel=1e-5)


def test_packed_rows_hold_every_token_once_in_rows_of_one_length(models, tmp_path):
    """TRL's wrapped packing of conversations: the same tokens with the same mask, cut at the length of a row."""
    rng = random.Random(0)
    ids = [[0, *(rng.randrange(3, 90) for _ in range(rng.randrange(3, 20))), 1] for _ in range(40)]
    mask = [[0, *(rng.randrange(2) for _ in row[1:])] for row in ids]
    columns = {"input_ids": pa.array(ids, pa.list_(pa.int32())), "loss_mask": pa.array(mask, pa.list_(pa.int8()))}
    pq.write_table(pa.table({"prompt_id": list(map(str, range(40))), **columns}), tmp_path / "train.parquet")
    packing = recipe("sft", view="conversation", packing=16, batch=64)  # more than there are: none is left out
    rows, left_out = trl._packed(read_rows(tmp_path / "train.parquet", packing), packing)
    assert {len(row["input_ids"]) for row in list(rows)[:-1]} == {16} and left_out == 0
    flat = [pair for row in rows for pair in zip(row["input_ids"], row["labels"], strict=True)]
    read = [pair for row, keep in zip(ids, mask, strict=True) for pair in zip(row, keep, strict=True)]
    want = [(token, token if kept else -100) for token, kept in read]
    assert sorted(flat) == sorted(want)
    starts = [k for k, (token, _) in enumerate(flat) if token == 0]
    whole = [tuple(token for token, _ in flat[i:j]) for i, j in itertools.pairwise([*starts, len(flat)])]
    assert sorted(whole) == sorted(map(tuple, ids)), "a conversation's tokens follow one another"
    assert whole != list(map(tuple, ids)), "conversations are shuffled before they are packed"
    smaller = recipe("sft", view="conversation", packing=16, batch=10)
    filled, left_out = trl._packed(read_rows(tmp_path / "train.parquet", smaller), smaller)
    assert len(filled) == len(rows) // 10 * 10 and left_out == len(rows) % 10 > 0, "only whole batches can be split"
    assert list(filled) == list(rows)[: len(filled)]
    assert trl.split_batch(smaller, methods.get("sft"), 2, len(filled)) == (2, 5, 1)
