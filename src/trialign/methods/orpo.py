"""ORPO: Odds Ratio Preference Optimization (arXiv 2403.07691, Eq. 6 and 7; beta is the paper's lambda).

    L = NLL(x, y_w) - beta mean log sigmoid(log odds(y_w|x) - log odds(y_l|x)),    odds(y|x) = p / (1 - p)

with log p the mean log-probability of the response's tokens. TRL: trl/experimental/orpo/orpo_trainer.py (1.16). Its
NLL is the mean over the tokens of the micro-batch, of prompt and chosen response, where the paper has the response
only, so the whole batch must be one micro-batch.
"""

from __future__ import annotations

from pydantic import Field

from trialign.methods._base import PAIRS, Branches, Method, Norm, Params, Terms, TrlSpec


class OrpoParams(Params):
    """Parameters of ORPO."""

    beta: float = Field(gt=0, description="weight of the odds-ratio term, the paper's lambda")


def _trl(params: OrpoParams) -> TrlSpec:
    return TrlSpec(
        trainer="trl.experimental.orpo.ORPOTrainer",
        config="trl.experimental.orpo.ORPOConfig",
        fields={"beta": params.beta, "padding_value": None, "is_encoder_decoder": False},
    )


def _loss(found: Branches, params: OrpoParams, norm: Norm) -> Terms:
    from torch.nn.functional import logsigmoid

    chosen, rejected = found.means("chosen"), found.means("rejected")
    odds = (chosen - rejected) - ((-chosen.exp()).log1p() - (-rejected.exp()).log1p())
    # TRL's NLL: over the tokens of prompt and chosen response
    nll = -(found.sums["prompt"] + found.sums["chosen"]).sum() / (norm.tokens["prompt"] + norm.tokens["chosen"])
    return Terms(nll - params.beta * logsigmoid(odds).sum() / norm.prompts, odds)


METHOD = Method(
    name="orpo",
    label="ORPO",
    Params=OrpoParams,
    grid=("beta",),
    views=PAIRS,
    needs_reference=False,
    micro_batch_is_global=True,
    trl=_trl,
    loss=_loss,
    reads_prompt=True,
)
