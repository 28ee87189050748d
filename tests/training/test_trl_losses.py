"""TRL's losses and gradients against the formulas of the papers, written out here from log-probabilities of single,
unpadded sequences. The policy is not the reference, and Phi ships dropout that must be off."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM
from trl_room import PARAMS, recipe

from trialign import methods
from trialign.training import trl
from trialign.training.trl import Split, build_trainer, read_rows

VARIANTS = {
    **PARAMS,
    "ipo sum": {"beta": 0.2, "logps": "sum"},
    "tpo without reference": {"alpha": 0.0, "beta": 0.2},
    "tpo sequence_sum": {"alpha": 0.3, "beta": 0.7, "reference_loss": "sequence_sum"},
    "tpo length_normalised": {"alpha": 0.3, "beta": 2.0, "length_normalised": True, "margin": 0.7},
    "tpo both": {
        "alpha": 0.3,
        "beta": 2.0,
        "length_normalised": True,
        "margin": 0.7,
        "reference_loss": "sequence_sum",
    },
}
CASES = [(variant, architecture) for variant in VARIANTS for architecture in ("mistral", "phi")]
USUAL = {"sft": "reference", "tpo": "triple"}
GOOD = {"chosen-rejected": "chosen", "reference-rejected": "reference", "triple": "chosen"}


def token_logps(model: Any, ids: list[int]) -> torch.Tensor:
    """log p of each token of `ids` but the first, shape (len(ids) - 1,), from one unpadded sequence."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


@dataclass
class Batch:
    """A batch of triples under a policy and a reference model; `good` is the side that `rejected` loses against."""

    rows: list[dict[str, Any]]
    good: str
    policy: Any
    reference: Any

    def logps(self, model: Any, side: str, shift: int = 0) -> list[torch.Tensor]:
        """log p of the tokens of each response, given its prompt or, mismatched, that of the row `shift` later."""
        pairs = [(self.rows[(i + shift) % len(self.rows)]["prompt"], row[side]) for i, row in enumerate(self.rows)]
        return [token_logps(model, prompt + response)[len(prompt) - 1 :] for prompt, response in pairs]

    def policy_logps(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return self.logps(self.policy, self.good), self.logps(self.policy, "rejected")

    def ratios(self, side: str, reduce: Callable, shift: int = 0) -> torch.Tensor:
        """log pi(y|x) - log ref(y|x) of each response."""
        return reduce(self.logps(self.policy, side, shift)) - reduce(self.logps(self.reference, side, shift))


def total(logps: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([each.sum() for each in logps])


def mean(logps: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([each.mean() for each in logps])


def sft(p: dict[str, Any], b: Batch) -> torch.Tensor:
    return -torch.cat(b.logps(b.policy, "reference")).mean()


def dpo(p: dict[str, Any], b: Batch) -> torch.Tensor:
    return -logsigmoid(p["beta"] * (b.ratios(b.good, total) - b.ratios("rejected", total))).mean()


def ipo(p: dict[str, Any], b: Batch) -> torch.Tensor:
    reduce = total if p.get("logps") == "sum" else mean
    return ((b.ratios(b.good, reduce) - b.ratios("rejected", reduce) - 1 / (2 * p["beta"])) ** 2).mean()


def kto(p: dict[str, Any], b: Batch) -> torch.Tensor:
    z = torch.cat([b.ratios(side, total, shift=1) for side in (b.good, "rejected")]).mean().clamp(min=0).detach()
    desirable = 1 - torch.sigmoid(p["beta"] * (b.ratios(b.good, total) - z))
    undesirable = 1 - torch.sigmoid(p["beta"] * (z - b.ratios("rejected", total)))
    return torch.cat([desirable, undesirable]).mean()


def cpo(p: dict[str, Any], b: Batch) -> torch.Tensor:
    w, lo = b.policy_logps()
    return -logsigmoid(p["beta"] * (total(w) - total(lo))).mean() - torch.cat(w).mean()


def simpo(p: dict[str, Any], b: Batch) -> torch.Tensor:
    w, lo = b.policy_logps()
    return -logsigmoid(p["beta"] * (mean(w) - mean(lo)) - p["gamma"]).mean()


def orpo(p: dict[str, Any], b: Batch) -> torch.Tensor:
    p_w, p_l = (mean(side).exp() for side in b.policy_logps())
    odds_ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    whole = [token_logps(b.policy, row["prompt"] + row[b.good]) for row in b.rows]  # the prompt's tokens too
    return -torch.cat(whole).mean() - p["beta"] * logsigmoid(odds_ratio.log()).mean()


def tpo(p: dict[str, Any], b: Batch) -> torch.Tensor:
    w, lo = b.policy_logps()
    references = b.logps(b.policy, "reference")
    reduce, margin = (mean, p["margin"]) if p.get("length_normalised") else (total, 0.0)
    preference = -logsigmoid(p["beta"] * (reduce(w) - reduce(lo)) - margin).mean()
    summed = p.get("reference_loss") == "sequence_sum"
    return preference - p["alpha"] * (total(references).mean() if summed else torch.cat(references).mean())


FORMULAS = {f.__name__: f for f in (sft, dpo, ipo, kto, cpo, simpo, orpo, tpo)}


def plain(folder: Any, weights: dict[str, torch.Tensor] | None = None) -> Any:
    """The model of a folder, untouched by TRL and in eval mode, with `weights` if given."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if weights is not None:
        model.load_state_dict(weights)
    return model


def other_weights(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """Weights near those of `model`, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(seed)
    return {name: w + 0.05 * torch.randn(w.shape, generator=generator) for name, w in model.state_dict().items()}


@pytest.fixture
def build(models, tokens, tmp_path) -> Callable[..., tuple[Any, dict[str, Any], list[dict[str, Any]]]]:
    """Make a method's trainer of five triples; returns it, its batch of all five, and the five triples."""

    def make(method: str, params: dict[str, Any], view: str, architecture: str):
        folder = tokens(5, 1)
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
