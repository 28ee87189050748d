"""The methods' losses as their papers have them, written out from log-probabilities of single, unpadded sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM
from trl_room import PARAMS

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
