"""Packed rows: each prompt once, its responses after it, several examples one after another, nothing padded.

An example is a prompt and its responses. In a row its tokens lie as prompt, response, response, ...; the positions of
each response go on from the prompt's end. `plan` says which examples share a row, `Row` where everything lies in one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Ids = NDArray[np.int32]


class Example(NamedTuple):
    """A prompt and its responses, token ids each.

    prompt: at least one token. responses: of the method's branches, in their order. masks: which tokens of each
    response count, None for all of them. index: its place in the tokens file.
    """

    prompt: Ids
    responses: tuple[Ids, ...]
    masks: tuple[NDArray[np.bool_] | None, ...]
    index: int

    @property
    def tokens(self) -> int:
        """The length in a row."""
        return len(self.prompt) + sum(map(len, self.responses))

    def predicted(self, branch: int) -> int:
        """Return how many tokens of a response count."""
        mask = self.masks[branch]
        return len(self.responses[branch]) if mask is None else int(mask.sum())


class Segment(NamedTuple):
    """A run of a row's tokens, which attends to itself causally, and to all of the segment `context`, if it has one."""

    length: int
    context: int | None


def plan(lengths: Sequence[int], budget: int, ranks: int = 1) -> list[list[list[int]]]:
    """Return for each rank its rows, for each row the examples (indices into `lengths`) that it holds.

    Rows hold at most `budget` tokens, or one longer example; all ranks have as many rows, of which the last may be
    empty, and nearly as many tokens: the longest example goes to the emptiest row. Deterministic.
    """
    budget = max(budget, *lengths)
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    each = math.ceil(sum(lengths) / (budget * ranks))
    while (rows := _fill(order, lengths, each * ranks, budget)) is None:
        each += 1
    return [[sorted(row) for row in rows[rank::ranks]] for rank in range(ranks)]


def _fill(order: Sequence[int], lengths: Sequence[int], number: int, budget: int) -> list[list[int]] | None:
    """Return the examples in `number` rows; None where they do not fit."""
    rows: list[list[int]] = [[] for _ in range(number)]
    loads = [0] * number
    for index in order:
        emptiest = loads.index(min(loads))
        loads[emptiest] += lengths[index]
        if loads[emptiest] > budget:
            return None
        rows[emptiest].append(index)
    return rows


@dataclass(frozen=True)
class Row:
    """A packed row of T tokens, N of which are predicted for the loss.

    input_ids, position_ids: (1, T). segments: where which example's parts lie, in the row's order. sources, targets:
    (N,), where the hidden state is that predicts a token, and its id; example by example, branch by branch. lengths:
    (examples, branches), how many predicted tokens each branch has. indices: the examples' places in the tokens file.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: tuple[Segment, ...]
    sources: torch.Tensor
    targets: torch.Tensor
    lengths: torch.Tensor
    indices: tuple[int, ...]

    def to(self, device: torch.device) -> Row:
        """Return the row with what the model reads on `device`."""
        moved = [
            x.to(device, non_blocking=True) for x in (self.input_ids, self.position_ids, self.sources, self.targets)
        ]
        return Row(moved[0], moved[1], self.segments, moved[2], moved[3], self.lengths, self.indices)


def make_row(examples: Sequence[Example], *, prompts: bool = False) -> Row:
    """Return the row of some examples, at least one.

    prompts: whether the prompt's own tokens are predicted, too, as a first branch.
    """
    ids: list[Ids] = []
    positions: list[NDArray[np.int64]] = []
    segments: list[Segment] = []
    sources: list[NDArray[np.int64]] = []
    targets: list[Ids] = []
    lengths: list[list[int]] = []
    at = 0
    for example in examples:
        start, size = at, len(example.prompt)
        context = len(segments)
        segments.append(Segment(size, None))
        ids.append(example.prompt)
        positions.append(np.arange(size))
        counts = []
        if prompts:
            sources.append(np.arange(start, start + size - 1))
            targets.append(example.prompt[1:])
            counts.append(size - 1)
        at += size
        for response, mask in zip(example.responses, example.masks, strict=True):
            # the prompt's last token predicts the first of the response, each of its tokens the next
            before = np.arange(at - 1, at - 1 + len(response))
            before[:1] = start + size - 1
            kept = slice(None) if mask is None else mask
            sources.append(before[kept])
            targets.append(response[kept])
            counts.append(len(targets[-1]))
            segments.append(Segment(len(response), context))
            ids.append(response)
            positions.append(np.arange(size, size + len(response)))
            at += len(response)
        lengths.append(counts)
    return Row(
        torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
        torch.from_numpy(np.concatenate(positions))[None],
        tuple(segments),
        torch.from_numpy(np.concatenate(sources)),
        torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        torch.tensor(lengths),
        tuple(example.index for example in examples),
    )
