"""CPO: Contrastive Preference Optimization (arXiv 2401.08417, Eq. 5).

    L = - mean log sigmoid(beta (log pi(y_w|x) - log pi(y_l|x))) + NLL(y_w)

with log-probabilities summed over the response. TRL: trl/experimental/cpo/cpo_trainer.py (1.16), loss_type "sigmoid",
cpo_alpha 1. Its NLL is the mean over the chosen responses' tokens of the micro-batch, where the paper has the mean
over sequences, so the whole batch must be one micro-batch.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from trialign.methods._base import PAIRS, Branches, Method, Norm, Params, Terms, TrlSpec

# Fields of CPOConfig that change the loss, each set to "no such change"; alpha is AlphaPO's.
PLAIN: dict[str, Any] = {"label_smoothing": 0.0, "alpha": 0.0, "is_encoder_decoder": False}


class CpoParams(Params):
    """Parameters of CPO."""

    beta: float = Field(gt=0, description="temperature of the preference term")


def _trl(params: CpoParams) -> TrlSpec:
    return TrlSpec(
        trainer="trl.experimental.cpo.CPOTrainer",
        config="trl.experimental.cpo.CPOConfig",
        fields={**PLAIN, "loss_type": "sigmoid", "beta": params.beta, "cpo_alpha": 1.0},
    )


def _loss(found: Branches, params: CpoParams, norm: Norm) -> Terms:
    from torch.nn.functional import logsigmoid

    margins = found.sums["chosen"] - found.sums["rejected"]
    nll = -found.sums["chosen"].sum() / norm.tokens["chosen"]
    return Terms(nll - logsigmoid(params.beta * margins).sum() / norm.prompts, margins)


METHOD = Method(
    name="cpo",
    label="CPO",
    Params=CpoParams,
    grid=("beta",),
    views=PAIRS,
    needs_reference=False,
    micro_batch_is_global=True,
    trl=_trl,
    loss=_loss,
)
