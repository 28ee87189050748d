"""SFT: supervised fine-tuning, the cross-entropy of the assistant's tokens.

    L = - sum_t log pi(y_t | y_<t, x) / T      over all T assistant tokens of the global batch

TRL: trl/trainer/sft_trainer.py (1.16), loss_type "nll". It divides by the tokens of the global batch, not of the
micro-batch, so accumulation does not move it. Read from conversations (all assistant turns), or from triples (view
"reference": SFT on the reference responses, the paper's SFT-10K).
"""

from __future__ import annotations

from trialign.methods._base import Branches, Method, Norm, Params, Terms, TrlSpec


class SftParams(Params):
    """SFT has no parameters of its own."""


def _trl(params: SftParams) -> TrlSpec:
    return TrlSpec(
        trainer="trl.SFTTrainer",
        config="trl.SFTConfig",
        fields={
            "loss_type": "nll",
            "label_smoothing_factor": 0.0,
            "router_aux_loss_coef": None,
            "packing": False,
            "padding_free": False,
            "shuffle_dataset": False,
            "pad_to_multiple_of": None,
        },
    )


def _loss(found: Branches, params: SftParams, norm: Norm) -> Terms:
    return Terms(-found.sums["reference"].sum() / norm.tokens["reference"], None)


METHOD = Method(
    name="sft",
    label="SFT",
    Params=SftParams,
    grid=(),
    views=("conversation", "reference"),
    needs_reference=False,
    micro_batch_is_global=False,
    trl=_trl,
    loss=_loss,
)
