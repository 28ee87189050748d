"""What a method is: its parameters, the data it reads, and how stock TRL trains it.

A method is one file of this package with one `METHOD = Method(...)`. Everything here and in those files is free of
torch at import, for the Snakefile and the plan read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trialign.errors import UserError, nearest
from trialign.recipes import View

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
class Method:
    """A way to train.

    name: as in lineages, the name of its file. label: as in tables. Params: its parameters. grid: those that a lineage
    always spells. views: what it can read, the usual one first. needs_reference: whether its loss compares with the
    parent's log-probabilities. micro_batch_is_global: whether TRL's loss depends on how a batch is split, so that the
    whole batch must be one micro-batch. trl: how stock TRL trains it.
    """

    name: str
    label: str
    Params: type[Params]
    grid: tuple[str, ...]
    views: tuple[View, ...]
    needs_reference: bool
    micro_batch_is_global: bool
    trl: Callable[[Any], TrlSpec]

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
