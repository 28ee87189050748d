"""TPO: Triple Preference Optimization (arXiv 2405.16681).

    L = - mean log sigmoid(beta (log pi(y_w|x) - log pi(y_l|x))) + alpha L_ref                      (Eq. 8 and 10)

with log-probabilities summed over the response. L_ref is the negative log-likelihood of the reference response:
`reference_loss: token_mean` (what the released code computes, and TRL) is the mean over all reference tokens of the
batch, `sequence_sum` (Eq. 9) the mean over prompts of the sum over a reference's tokens. `length_normalised` is TPO-L:
log-probabilities per token and a target `margin`, as in SimPO.

TRL: trl/experimental/tpo/tpo_trainer.py (1.16), loss_type "sigmoid" or "tpo-l". L_ref is a mean over the micro-batch,
so the whole batch must be one micro-batch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trialign.methods._base import Branches, Method, Norm, Params, Terms, TrlSpec, stock


class TpoParams(Params):
    """Parameters of TPO."""

    alpha: float = Field(ge=0, description="weight of the reference term")
    beta: float = Field(gt=0, description="temperature of the preference term")
    reference_loss: Literal["token_mean", "sequence_sum"] = Field(
        default="token_mean", description="reference term per token (the released code) or per sequence (Eq. 9)"
    )
    length_normalised: bool = Field(default=False, description="TPO-L: log-probabilities per token")
    margin: float = Field(default=0.0, ge=0, description="target margin of TPO-L, gamma")

    @model_validator(mode="after")
    def _margin_is_of_tpo_l(self) -> TpoParams:
        if self.margin and not self.length_normalised:
            raise ValueError("margin is a parameter of TPO-L: set length_normalised: true, or leave it out")
        return self


def _trl(params: TpoParams) -> TrlSpec:
    return TrlSpec(
        trainer="trl.experimental.tpo.TPOTrainer",
        config="trl.experimental.tpo.TPOConfig",
        fields={
            "loss_type": "tpo-l" if params.length_normalised else "sigmoid",
            "beta": params.beta,
            "tpo_alpha": params.alpha,
            "tpo_l_gamma": params.margin,
            "label_smoothing": 0.0,
            "pad_to_multiple_of": None,
        },
        # Without weight TRL leaves the reference out of the batch.
        adapt=_sequence_sum if params.reference_loss == "sequence_sum" and params.alpha else stock,
    )


def _sequence_sum(trainer: type) -> type:
    """Return `trainer` with the reference term of Eq. 9: the token mean times the batch's tokens per reference."""

    class SequenceSumTpo(trainer):
        def _compute_loss(self, model, inputs, return_outputs):
            references = inputs["completion_mask"].chunk(3)[2]  # the batch is chosen, rejected, reference
            self.tpo_alpha = self.args.tpo_alpha * references.sum().item() / len(references)
            return super()._compute_loss(model, inputs, return_outputs)

    return SequenceSumTpo


def _loss(found: Branches, params: TpoParams, norm: Norm) -> Terms:
    from torch.nn.functional import logsigmoid

    scores = found.means if params.length_normalised else found.sums.__getitem__
    margins = scores("chosen") - scores("rejected")
    over = norm.tokens["reference"] if params.reference_loss == "token_mean" else norm.prompts
    reference = -found.sums["reference"].sum() / over
    preference = -logsigmoid(params.beta * margins - params.margin).sum() / norm.prompts
    return Terms(preference + params.alpha * reference, margins)


METHOD = Method(
    name="tpo",
    label="TPO",
    Params=TpoParams,
    grid=("alpha", "beta"),
    views=("triple",),
    needs_reference=False,
    micro_batch_is_global=True,
    trl=_trl,
    loss=_loss,
)
