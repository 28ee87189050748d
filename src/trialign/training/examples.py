"""A tokens file as examples of the packed engine: prompts, each with the responses that a view reads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch.utils.data import Dataset

from trialign.errors import UserError
from trialign.recipes import View
from trialign.training.rows import Example, Ids
from trialign.training.wrapping import wrapped

# What a view's branches are called in the losses, and which columns of the tokens file they are.
VIEWS: Mapping[View, Mapping[str, str]] = {
    "reference": {"reference": "reference"},
    "chosen-rejected": {"chosen": "chosen", "rejected": "rejected"},
    "reference-rejected": {"chosen": "reference", "rejected": "rejected"},
    "triple": {"chosen": "chosen", "rejected": "rejected", "reference": "reference"},
}


class Examples(Dataset[Example]):
    """The rows of a tokens file as examples. branches: names of their responses, in order.

    packing, seed: SFT's rows of so many tokens (`wrapping`), None for one a conversation. Of what has a loss mask the
    first token is the prompt, and the rest the response.
    """

    def __init__(self, file: Path, view: View, packing: int | None = None, seed: int = 0) -> None:
        table = pq.read_table(file)
        if not len(table):
            raise UserError(f"{file} has no rows: nothing to train or to evaluate on; give its data more rows")
        self.branches: tuple[str, ...] = ("reference",) if view == "conversation" else tuple(VIEWS[view])
        self._masks: list[NDArray[np.bool_]] | None = None
        if packing:
            table = wrapped(_masked(table, view), packing, seed)
        if "loss_mask" in table.column_names:
            whole = _lists(table, "input_ids")
            self._prompts = [ids[:1] for ids in whole]
            self._responses = [[ids[1:] for ids in whole]]
            self._masks = [mask[1:].astype(bool) for mask in _lists(table, "loss_mask")]
        else:
            self._prompts = _lists(table, "prompt")
            self._responses = [_lists(table, column) for column in VIEWS[view].values()]
        self._number = len(self._prompts)

    @cached_property
    def _previous(self) -> list[int]:
        return previous_prompts(self._prompts)

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Example:
        responses = tuple(column[index] for column in self._responses)
        masks = (None,) * len(responses) if self._masks is None else (self._masks[index],)
        return Example(self._prompts[index], responses, masks, index)

    def mismatched(self, example: Example) -> Example:
        """Return an example with the responses to another prompt (`previous_prompts`), for KTO's KL term."""
        return example._replace(responses=self[self._previous[example.index]].responses)

    def longest(self, *, mismatched: bool = False) -> int:
        """Return the tokens of the longest prompt with one response, or with any other prompt's."""
        longest = [max(len(column[index]) for column in self._responses) for index in range(self._number)]
        if mismatched:
            return max(map(len, self._prompts)) + max(longest)
        return max(len(prompt) + own for prompt, own in zip(self._prompts, longest, strict=True))

    def tokens_of_longest(self) -> int:
        """Return the tokens of the longest example, which no row can be shorter than."""
        return max(self[index].tokens for index in range(len(self)))

    def tokens(self) -> int:
        """Return the tokens of all rows, each prompt counted once."""
        return sum(map(len, self._prompts)) + sum(len(ids) for column in self._responses for ids in column)


def previous_prompts(prompts: Sequence[Sequence[int] | Ids]) -> list[int]:
    """Return for each row the row nearest before it whose prompt is another one; before the first comes the last.

    UserError where all rows have one prompt.
    """
    keys = [np.asarray(prompt, np.int32).tobytes() for prompt in prompts]
    if keys.count(keys[0]) == len(keys):
        raise UserError("method kto: all rows have one prompt: its KL term needs responses to another; give it more")
    number = len(keys)
    return [
        next(other for back in range(1, number) if keys[other := (place - back) % number] != key)
        for place, key in enumerate(keys)
    ]


def _masked(table: pa.Table, view: View) -> pa.Table:
    """Return what SFT reads as whole sequences, and which of their tokens count."""
    if view == "conversation":
        return table.select(["input_ids", "loss_mask"])
    pairs = list(zip(_lists(table, "prompt"), _lists(table, "reference"), strict=True))
    ids = [np.concatenate(pair) for pair in pairs]
    masks = [np.repeat(np.array([0, 1], np.int8), [len(prompt), len(response)]) for prompt, response in pairs]
    return pa.table({"input_ids": pa.array(ids), "loss_mask": pa.array(masks)})


def _lists(table: Any, name: str) -> list[Ids]:
    column = table[name].combine_chunks()
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]
