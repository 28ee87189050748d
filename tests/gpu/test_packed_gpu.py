"""The packed engine on a GPU: varlen attention in bf16 and segments in fp32, against single sequences in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from formulas import FORMULAS, Batch, other_weights, plain, token_logps
from trl_room import PARAMS, recipe, triples

from trialign import methods
from trialign.training import attention, logps, packed

BF16 = 2**-8  # the unit of rounding


@pytest.fixture
def engine(models, tmp_path, monkeypatch):
    """Make a packed trainer on the GPU, whose policy differs from its parent; returns it, its examples, a CPU batch."""

    def make(method: str, architecture: str, precision: str) -> tuple[Any, list[Any], Batch]:

        table = triples(12, 3)
        pq.write_table(table, tmp_path / "train.parquet")
        of_all = recipe(method, batch=12, precision=precision)
        data = {split: packed.Examples(tmp_path / "train.parquet", of_all.view) for split in ("train", "eval")}
        parent = plain(models[architecture])
        batch = Batch(table.to_pylist(), "chosen", None, parent)
        stored = _stored(batch, data["train"]) if methods.get(method).needs_reference else {}
        trainer = packed.build_trainer(
            of_all, models[architecture], data, dict.fromkeys(data, stored), tmp_path, budget=120
        )
        weights = other_weights(parent, 3)
        trainer.model.load_state_dict(weights)
        batch.policy = plain(models[architecture], weights)
        return trainer, [data["train"][place] for place in range(12)], batch

    return make


def _stored(batch: Batch, examples: packed.Examples) -> dict[str, Any]:
    """The parent's log-probabilities, of single sequences on the CPU."""

    def of(given: Any) -> list[list[float]]:
        return [
            [
                token_logps(batch.reference, [*example.prompt, *response])[len(example.prompt) - 1 :].sum().item()
                for response in example.responses
            ]
            for example in given
        ]

    own = [examples[place] for place in range(len(examples))]
    found = dict(zip(examples.branches, np.array(of(own)).T, strict=True))
    others = np.array(of([examples.mismatched(example) for example in own])).T
    return found | {f"mismatched:{name}": values for name, values in zip(examples.branches, others, strict=True)}


def found(trainer: Any, examples: list[Any], precision: str) -> dict[int, torch.Tensor]:
    """The log-probabilities of an example's response tokens, in the order of its branches, by the example's place."""
    values: dict[int, torch.Tensor] = {}
    for row, _ in trainer._rows(examples):
        order = logps.Order(row, None)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            trainer.order(trainer.model, order)
        values |= dict(zip(row.indices, order.logps.cpu().split(row.lengths.sum(dim=1).tolist()), strict=True))
    return values


def exact(batch: Batch, examples: list[Any]) -> dict[int, torch.Tensor]:
    return {
        example.index: torch.cat(
            [
                token_logps(batch.policy, [*example.prompt, *response])[len(example.prompt) - 1 :]
                for response in example.responses
            ]
        ).detach()
        for example in examples
    }


@pytest.mark.parametrize("architecture", ["mistral", "phi"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_log_probabilities_are_those_of_single_sequences(precision, architecture, engine, monkeypatch):
    calls = []
    varlen = attention._varlen
    monkeypatch.setattr(attention, "_varlen", lambda *given: calls.append(1) or varlen(*given))
    trainer, examples, batch = engine("tpo", architecture, precision)
    ours, theirs = found(trainer, examples, precision), exact(batch, examples)
    bound = 1e-4 if precision == "fp32" else 40 * BF16  # of logits up to 10, each token's error at most half of a unit
    assert max((ours[place] - theirs[place]).abs().max() for place in theirs) < bound
    assert bool(calls) == (precision == "bf16")


@pytest.mark.parametrize("method", methods.names())
@pytest.mark.parametrize(("precision", "least"), [("fp32", 1 - 1e-6), ("bf16", 0.99)])
def test_gradients_point_where_the_formula_does(precision, least, method, engine):
    trainer, examples, batch = engine(method, "mistral", precision)
    loss = trainer.training_step(trainer.model, examples)
    expected = FORMULAS[method](PARAMS[method], batch)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4 if precision == "fp32" else 2e-2)
    ours, theirs = (
        torch.cat([weight.grad.cpu().flatten() for weight in model.parameters()])
        for model in (trainer.model, batch.policy)
    )
    assert torch.cosine_similarity(ours, theirs, dim=0) > least
    assert ours.norm().item() == pytest.approx(theirs.norm().item(), rel=1e-3 if precision == "fp32" else 5e-2)


def test_checkpointing_changes_no_gradient(engine, tmp_path: Path):
    trainer, examples, _ = engine("tpo", "mistral", "bf16")
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, examples)
        gradients.append(torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9999
