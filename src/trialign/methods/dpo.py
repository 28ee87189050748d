"""DPO: Direct Preference Optimization (arXiv 2305.18290, Eq. 7).

    L = - mean log sigmoid(beta ((log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x))))

with log-probabilities summed over the response; ref is the parent. TRL: trl/trainer/dpo_trainer.py (1.16), loss_type
"sigmoid".
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from trialign.methods._base import PAIRS, Branches, Method, Norm, Params, Terms, TrlSpec

# Fields of DPOConfig that change the loss, each set to "no such change".
PLAIN: dict[str, Any] = {
    "loss_weights": [1.0],
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "label_smoothing": 0.0,
    "use_weighting": False,
    "router_aux_loss_coef": None,
    "sync_ref_model": False,
    "precompute_ref_log_probs": False,
    "padding_free": False,
    "pad_to_multiple_of": None,
}


class DpoParams(Params):
    """Parameters of DPO."""

    beta: float = Field(gt=0, description="strength of the pull towards the reference model")


def _trl(params: DpoParams) -> TrlSpec:
    return TrlSpec(
        trainer="trl.DPOTrainer",
        config="trl.DPOConfig",
        fields={**PLAIN, "loss_type": ["sigmoid"], "beta": params.beta},
    )


def _loss(found: Branches, params: DpoParams, norm: Norm) -> Terms:
    from torch.nn.functional import logsigmoid

    margins = found.ratios("chosen") - found.ratios("rejected")
    return Terms(-logsigmoid(params.beta * margins).sum() / norm.prompts, margins)


METHOD = Method(
    name="dpo",
    label="DPO",
    Params=DpoParams,
    grid=("beta",),
    views=PAIRS,
    needs_reference=True,
    micro_batch_is_global=False,
    trl=_trl,
    loss=_loss,
)
