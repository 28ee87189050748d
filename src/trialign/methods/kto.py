"""KTO: Kahneman-Tversky Optimization (arXiv 2402.01306, Eq. 7 and 8, both weights 1).

    L = mean over the responses of the batch:  1 - sigmoid(beta (h - z))  of a desirable one,
                                               1 - sigmoid(beta (z - h))  of an undesirable one
    h = log pi(y|x) - log ref(y|x),    z = max(0, mean (log pi(y'|x) - log ref(y'|x)))    without gradient

y' is the same side's response to the data's previous prompt; log-probabilities are summed. The chosen response of a
pair is desirable, the rejected one undesirable. TRL: trl/trainer/kto_trainer.py (1.16), loss_type "kto". z is a mean
over the micro-batch, clamped there, so the whole batch must be one micro-batch.

This is KTO proper. The paired form (`kto_pair` of early TRL) is in no trainer of TRL 1.16 and is not offered.
"""

from __future__ import annotations

from pydantic import Field

from trialign.methods._base import PAIRS, Branches, Method, Norm, Params, Terms, TrlSpec


class KtoParams(Params):
    """Parameters of KTO."""

    beta: float = Field(gt=0, description="strength of the pull towards the reference model")


def _trl(params: KtoParams) -> TrlSpec:
    return TrlSpec(
        trainer="trl.KTOTrainer",
        config="trl.KTOConfig",
        fields={
            "loss_type": "kto",
            "beta": params.beta,
            "desirable_weight": 1.0,
            "undesirable_weight": 1.0,
            "router_aux_loss_coef": None,
            "sync_ref_model": False,
            "precompute_ref_log_probs": False,
            "pad_to_multiple_of": None,
        },
    )


def _loss(found: Branches, params: KtoParams, norm: Norm) -> Terms:
    chosen, rejected = found.ratios("chosen"), found.ratios("rejected")
    desirable = 1 - (params.beta * (chosen - norm.kl)).sigmoid()
    undesirable = 1 - (params.beta * (norm.kl - rejected)).sigmoid()
    return Terms((desirable + undesirable).sum() / (2 * norm.prompts), chosen - rejected)


METHOD = Method(
    name="kto",
    label="KTO",
    Params=KtoParams,
    grid=("beta",),
    views=PAIRS,
    needs_reference=True,
    micro_batch_is_global=True,
    trl=_trl,
    loss=_loss,
    reads_mismatched=True,
)
