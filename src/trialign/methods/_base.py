"""What a method is: its parameters, the data it reads, and how stock TRL trains it.

A method is one file of this package with one `METHOD = Method(...)`. Everything here and in those files is free of
torch at import, for the Snakefile and the plan read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from trialign.errors import UserError, nearest
from trialign.recipes import View

if TYPE_CHECKING:
    from torch import Tensor

PAIRS: tuple[View, ...] = ("chosen-rejected", "reference-rejected")


class Params(BaseModel):
    """Base of the methods' parameters: frozen, finite, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def stock(trainer: type) -> type:
    """Return the stock trainer class as it is."""
    return trainer


@dataclass(frozen=True)
class TrlSpec:
    """How TRL 1.16 trains a method.

    trainer, config: import paths of the stock trainer and its config. fields: every config field that shapes the loss.
    adapt: returns the trainer class to use in place of the stock one, for what no field of its config can say.
    """

    trainer: str
    config: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    adapt: Callable[[type], type] = stock


@dataclass(frozen=True)
class Branches:
    """What a loss of the packed engine is a function of, for n prompts; keys are branches, tensors are (n,).

    sums: log pi(y|x), summed over a response's tokens. lengths: these tokens. reference: the parent's log pi(y|x), of
    methods that need it. The branch "prompt" is the prompt's own tokens after the first, of methods that read them.
    """

    sums: Mapping[str, Tensor]
    lengths: Mapping[str, Tensor]
    reference: Mapping[str, Tensor]

    def means(self, branch: str) -> Tensor:
        """Return log pi(y|x) per token of a response."""
        return self.sums[branch] / self.lengths[branch]

    def ratios(self, branch: str) -> Tensor:
        """Return log pi(y|x) - log ref(y|x)."""
        return self.sums[branch] - self.reference[branch]


@dataclass(frozen=True)
class Norm:
    """What a loss is divided by, whatever its prompts were split into: those of the global batch.

    prompts: how many. tokens: of each branch. kl: KTO's z, where the method needs it.
    """

    prompts: int
    tokens: Mapping[str, int]
    kl: float = 0.0


class Terms(NamedTuple):
    """The part of the loss of some prompts (scalar), and how far each one's chosen response leads (n,), or None."""

    loss: Tensor
    margins: Tensor | None


@dataclass(frozen=True)
class Method:
    """A way to train.

    name: as in lineages, the name of its file. label: as in tables. Params: its parameters. grid: those that a lineage
    always spells. views: what it can read, the usual one first. needs_reference: whether its loss compares with the
    parent's log-probabilities. micro_batch_is_global: whether TRL's loss depends on how a batch is split, so that the
    whole batch must be one micro-batch. trl: how stock TRL trains it. loss: the packed engine's, of some of the global
    batch's prompts; the sum over all of them is the loss; None: stock TRL alone trains it. reads_prompt: whether the
    loss asks for the prompt's own log-probability. reads_mismatched: whether it asks for those of the responses to
    another prompt (`Norm.kl`).
    """

    name: str
    label: str
    Params: type[Params]
    grid: tuple[str, ...]
    views: tuple[View, ...]
    needs_reference: bool
    micro_batch_is_global: bool
    trl: Callable[[Any], TrlSpec]
    loss: Callable[[Branches, Any, Norm], Terms] | None = None
    reads_prompt: bool = False
    reads_mismatched: bool = False

    def parse(self, values: Mapping[str, Any]) -> Params:
        """Return the typed parameters; UserError, one line, naming each wrong one and what is allowed."""
        try:
            return self.Params(**values)
        except ValidationError as error:
            problems = "; ".join(self._problem(details) for details in error.errors())
            raise UserError(f"method {self.name}: {problems}") from None

    def _problem(self, details: Any) -> str:
        name = ".".join(str(part) for part in details["loc"])
        known = ", ".join(self.Params.model_fields) or "none"
        if details["type"] == "extra_forbidden":
            return f"no parameter {name!r}{nearest(name, self.Params.model_fields)}; its parameters: {known}"
        if details["type"] == "missing":
            return f"{name} is missing; its parameters: {known}"
        value = f"{name}={details['input']!r}: " if name else ""
        return value + details["msg"].removeprefix("Value error, ")
