"""Lineages: a base model and its stages in the paper's notation, `mistral+sft+tpo@alpha=0.9@beta=0.2`.

A lineage is a path segment and a Snakemake wildcard. It is canonical: numbers in their shortest spelling, keys sorted,
so that one run has one name; `Lineage.parse` and `str` are inverse on canonical text. There is no comma in it:
Snakemake splits `--target-jobs` at commas. Which parameters a stage spells is the config's business (`config.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from trialign.errors import UserError

Value = bool | int | float | str
MAX_BYTES = 255  # the longest file name that common file systems take
NAME = r"[a-z][a-z0-9_]*"
_NAME = re.compile(NAME)
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_WORD = re.compile(r"[a-z][a-z0-9_-]*")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


def spell(value: Value) -> str:
    """Return the canonical spelling of a parameter's value: `0.1`, `5e-7`, `16`, `true`, `token_mean`.

    A number takes the shorter of its positional and its scientific spelling, the positional one where they tie.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    number = Decimal(repr(value)).normalize()
    return min(f"{number:f}", f"{number:e}".replace("e+", "e"), key=len)


def read(text: str) -> Value:
    """Read a value from its spelling; UserError when it is neither a number, `true`, `false` nor a word."""
    if text in ("true", "false"):
        return text == "true"
    if _NUMBER.fullmatch(text):
        number = float(text)
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if _WORD.fullmatch(text):
        return text
    raise UserError(f"'{text}' is not a parameter value: write a number, true, false or a word, such as alpha=0.9")


@dataclass(frozen=True)
class Stage:
    """One training stage: the name of a preset and the parameters spelled beside it, sorted by key."""

    name: str
    params: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        return self.name + "".join(f"@{key}={spell(value)}" for key, value in self.params)

    @staticmethod
    def parse(text: str) -> Stage:
        """Read `tpo@alpha=0.9@beta=0.2`; UserError where it is not a stage."""
        name, *pairs = text.split("@")
        if not _NAME.fullmatch(name):
            raise UserError(f"'{name}' is not a stage name: a lower-case letter, then letters, digits and _")
        params: dict[str, Value] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals or not _KEY.fullmatch(key):
                raise UserError(f"'{pair}' in stage '{text}' is not key=value, such as alpha=0.9")
            if key in params:
                raise UserError(f"'{key}' is given twice in stage '{text}': leave one")
            params[key] = read(value)
        return Stage(name, tuple(sorted(params.items())))


@dataclass(frozen=True)
class Lineage:
    """A base model and its stages."""

    base: str
    stages: tuple[Stage, ...] = ()

    def __str__(self) -> str:
        return "+".join([self.base, *map(str, self.stages)])

    @property
    def parent(self) -> Lineage | None:
        """The lineage less its last stage; None for a base."""
        return Lineage(self.base, self.stages[:-1]) if self.stages else None

    @property
    def last(self) -> Stage | None:
        """The last stage; None for a base."""
        return self.stages[-1] if self.stages else None

    @staticmethod
    def parse(text: str) -> Lineage:
        """Read `mistral+sft+tpo@alpha=0.9@beta=0.2`; UserError, naming the lineage, where it is not one."""
        base, *stages = text.split("+")
        if not _NAME.fullmatch(base):
            raise UserError(
                f"lineage '{text}': '{base}' is not a model name (lower-case letter, then letters, digits, _)"
            )
        try:
            lineage = Lineage(base, tuple(Stage.parse(stage) for stage in stages))
        except UserError as error:
            raise UserError(f"lineage '{text}': {error}") from None
        if len(str(lineage).encode()) > MAX_BYTES:
            raise UserError(f"lineage '{text}' is longer than {MAX_BYTES} bytes: put parameters into a stage preset")
        return lineage
