"""SimPO: Simple Preference Optimization (arXiv 2405.14734, Eq. 6).

    L = - mean log sigmoid(beta (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|) - gamma)

TRL: trl/experimental/cpo/cpo_trainer.py (1.16), loss_type "simpo", cpo_alpha 0.
"""

from __future__ import annotations

from pydantic import Field

from trialign.methods._base import PAIRS, Branches, Method, Norm, Params, Terms, TrlSpec
from trialign.methods.cpo import PLAIN


class SimpoParams(Params):
    """Parameters of SimPO."""

    beta: float = Field(gt=0, description="scale of the length-normalised reward")
    gamma: float = Field(ge=0, description="target margin between the two rewards")


def _trl(params: SimpoParams) -> TrlSpec:
    return TrlSpec(
        trainer="trl.experimental.cpo.CPOTrainer",
        config="trl.experimental.cpo.CPOConfig",
        fields={
            **PLAIN,
            "loss_type": "simpo",
            "beta": params.beta,
            "simpo_gamma": params.gamma,
            "cpo_alpha": 0.0,
        },
    )


def _loss(found: Branches, params: SimpoParams, norm: Norm) -> Terms:
    from torch.nn.functional import logsigmoid

    margins = found.means("chosen") - found.means("rejected")
    return Terms(-logsigmoid(params.beta * margins - params.gamma).sum() / norm.prompts, margins)


METHOD = Method(
    name="simpo",
    label="SimPO",
    Params=SimpoParams,
    grid=("beta", "gamma"),
    views=PAIRS,
    needs_reference=False,
    micro_batch_is_global=False,
    trl=_trl,
    loss=_loss,
)
