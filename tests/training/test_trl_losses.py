"""TRL's losses and gradients against the formulas of the papers, written out here from log-probabilities of single,
unpadded sequences. The policy is not the reference, and Phi ships dropout that must be off."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM
from trl_room import PARAMS, recipe

from trialign.training.trl import build_trainer, read_rows

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
VIEWS = {"sft": ["reference"], "tpo": ["triple"]}
CASES = [
    (variant, view)
    for variant in VARIANTS
    for view in VIEWS.get(variant.split()[0], ["chosen-rejected", "reference-rejected"])
]


def token_logps(model: Any, ids: list[int]) -> torch.Tensor:
    """log p of each token of `ids` but the first, shape (len(ids) - 1,), from one unpadded sequence."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def response_logps(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log p of each token of the response, shape (len(response),)."""
    return token_logps(model, prompt + response)[len(prompt) - 1 :]


def by_hand(method: str, p: dict[str, Any], rows: list[dict[str, Any]], view: str, model: Any, ref: Any):
    """The loss of a batch of triples by the paper's formula, as TRL 1.16 reads it (docs/methods.md says where)."""
    n = len(rows)
    pairs = {"chosen-rejected": ("chosen", "rejected"), "reference-rejected": ("reference", "rejected")}
    good, bad = pairs.get(view, ("chosen", "rejected"))

    def logps(which: Any, side: str) -> list[torch.Tensor]:
        return [response_logps(which, row["prompt"], row[side]) for row in rows]

    def total(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([value.sum() for value in values])

    def mean(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([value.mean() for value in values])

    if method == "sft":
        return -torch.cat(logps(model, "reference")).mean()
    w, lo = logps(model, good), logps(model, bad)
    if method == "dpo":
        ratio = total(w) - total(logps(ref, good)) - total(lo) + total(logps(ref, bad))
        return -logsigmoid(p["beta"] * ratio).mean()
    if method == "ipo":
        each = total if p.get("logps") == "sum" else mean
        ratio = each(w) - each(logps(ref, good)) - each(lo) + each(logps(ref, bad))
        return ((ratio - 1 / (2 * p["beta"])) ** 2).mean()
    if method == "kto":
        h_w, h_l = total(w) - total(logps(ref, good)), total(lo) - total(logps(ref, bad))
        mismatched = [
            response_logps(model, rows[i]["prompt"], rows[i - 1][side]).sum()
            - response_logps(ref, rows[i]["prompt"], rows[i - 1][side]).sum()
            for side in (good, bad)
            for i in range(n)
        ]
        z = torch.stack(mismatched).mean().clamp(min=0).detach()
        desirable, undesirable = 1 - torch.sigmoid(p["beta"] * (h_w - z)), 1 - torch.sigmoid(p["beta"] * (z - h_l))
        return (desirable.sum() + undesirable.sum()) / (2 * n)
    if method == "cpo":
        return -logsigmoid(p["beta"] * (total(w) - total(lo))).mean() - torch.cat(w).mean()
    if method == "simpo":
        return -logsigmoid(p["beta"] * (mean(w) - mean(lo)) - p["gamma"]).mean()
    if method == "orpo":
        whole = torch.cat([token_logps(model, row["prompt"] + row[good]) for row in rows])  # the prompt too
        p_w, p_l = mean(w).exp(), mean(lo).exp()
        odds_ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
        return -whole.mean() - p["beta"] * logsigmoid(odds_ratio.log()).mean()
    assert method == "tpo"
    if p.get("length_normalised"):
        preference = -logsigmoid(p["beta"] * (mean(w) - mean(lo)) - p["margin"]).mean()
    else:
        preference = -logsigmoid(p["beta"] * (total(w) - total(lo))).mean()
    references = logps(model, "reference")
    if p.get("reference_loss") == "sequence_sum":
        return preference - p["alpha"] * total(references).mean()
    return preference - p["alpha"] * torch.cat(references).mean()


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


@pytest.mark.parametrize("architecture", ["mistral", "phi"])
@pytest.mark.parametrize(("variant", "view"), CASES)
def test_loss_and_gradient_are_the_formula(variant, view, architecture, models, tokens, tmp_path):
    method, params = variant.split()[0], VARIANTS[variant]
    folder = tokens(5, 1)
    train_recipe = recipe(method, params, view, batch=5)
    rows = {split: read_rows(folder / f"{split}.parquet", train_recipe) for split in ("train", "eval")}
    trainer = build_trainer(train_recipe, models[architecture], rows, tmp_path)
    weights = other_weights(trainer.model, 3)
    trainer.model.load_state_dict(weights)
    policy, reference = plain(models[architecture], weights), plain(models[architecture])

    batch = trainer.data_collator([rows["train"][i] for i in range(5)])
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    expected = by_hand(method, params, pq.read_table(folder / "train.parquet").to_pylist(), view, policy, reference)
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=2e-5)
    assert expected.item() not in (0, math.log(2))
    scale = max(p.grad.abs().max() for p in policy.parameters())
    for (name, ours), theirs in zip(policy.named_parameters(), trainer.model.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 2e-5 * scale, name


def test_kto_clamps_its_kl_at_zero(models, tokens, tmp_path):
    """Swapping policy and reference flips the sign of the mean log-ratio: one of the two KL terms is clamped."""
    folder = tokens(5, 1)
    train_recipe = recipe("kto", batch=5)
    rows = {split: read_rows(folder / f"{split}.parquet", train_recipe) for split in ("train", "eval")}
    trainer = build_trainer(train_recipe, models["mistral"], rows, tmp_path)
    one, two = copy.deepcopy(trainer.model.state_dict()), other_weights(trainer.model, 3)
    batch = trainer.data_collator([rows["train"][i] for i in range(5)])
    terms = []
    for policy, reference in ((one, two), (two, one)):
        trainer.model.load_state_dict(policy)
        trainer.ref_model.load_state_dict(reference)
        loss = trainer.compute_loss(trainer.model.train(), batch)
        terms.append(trainer._metrics["train"]["kl"][-1])
        model, ref = plain(models["mistral"], policy), plain(models["mistral"], reference)
        table = pq.read_table(folder / "train.parquet").to_pylist()
        expected = by_hand("kto", PARAMS["kto"], table, "chosen-rejected", model, ref)
        assert loss.item() == pytest.approx(expected.item(), rel=2e-5)
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
    trainer = build_trainer(train_recipe, models["mistral"], {"train": rows, "eval": rows}, tmp_path)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([rows[0], rows[1]]))

    model = plain(models["mistral"])
    kept = [token_logps(model, row)[torch.tensor(keep[1:]) == 1] for row, keep in zip(ids, mask, strict=True)]
    assert loss.item() == pytest.approx(-torch.cat(kept).mean().item(), rel=1e-5)
