"""IPO: Identity Preference Optimization (arXiv 2310.12036, Eq. 17; beta is the paper's tau).

    L = mean (h_w - h_l - 1 / (2 beta))^2,    h = log pi(y|x) - log ref(y|x)

TRL: trl/trainer/dpo_trainer.py (1.16), loss_type "ipo", where h is divided by the number of the response's tokens
(`logps: mean`). TRL before that change, 0.7.10 among it, summed (`logps: sum`), and so does the paper's equation.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trialign.methods._base import PAIRS, Branches, Method, Norm, Params, Terms, TrlSpec, stock
from trialign.methods.dpo import PLAIN


class IpoParams(Params):
    """Parameters of IPO."""

    beta: float = Field(gt=0, description="regularisation, the paper's tau")
    logps: Literal["mean", "sum"] = Field(
        default="mean", description="log-probabilities per token (TRL 1.16) or summed over the response (Eq. 17)"
    )


def _trl(params: IpoParams) -> TrlSpec:
    return TrlSpec(
        trainer="trl.DPOTrainer",
        config="trl.DPOConfig",
        fields={**PLAIN, "loss_type": ["ipo"], "beta": params.beta},
        adapt=_summed if params.logps == "sum" else stock,
    )


def _summed(trainer: type) -> type:
    """Return `trainer` with IPO's log-probabilities summed.

    TRL divides by the sum of the completion mask over all positions, and uses the mask shifted by one everywhere else.
    The first position, always prompt and never predicted, is therefore free to make that sum 1.
    """

    class SummedIpo(trainer):
        def _compute_loss(self, model, inputs, return_outputs):
            mask = inputs["completion_mask"].clone()
            mask[:, 0] = 1 - mask.sum(dim=1)
            return super()._compute_loss(model, {**inputs, "completion_mask": mask}, return_outputs)

    return SummedIpo


def _loss(found: Branches, params: IpoParams, norm: Norm) -> Terms:
    chosen, rejected = (
        found.ratios(branch) / (found.lengths[branch] if params.logps == "mean" else 1)
        for branch in ("chosen", "rejected")
    )
    margins = chosen - rejected
    return Terms(((margins - 1 / (2 * params.beta)) ** 2).sum() / norm.prompts, margins)


METHOD = Method(
    name="ipo",
    label="IPO",
    Params=IpoParams,
    grid=("beta",),
    views=PAIRS,
    needs_reference=True,
    micro_batch_is_global=False,
    trl=_trl,
    loss=_loss,
)
