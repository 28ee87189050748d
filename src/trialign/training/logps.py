"""Log-probabilities of the predicted tokens and the loss's gradient, without the logits of a batch.

The model's own head is made to do it (`attach`), inside the model's forward, where FSDP2 has its weights whole: it
takes the hidden states that predict something, and for a few examples at a time computes their logits, the
log-probabilities, the loss of these examples and its gradient, so that no more than those logits are ever held. The
loss of an example must depend on no other's log-probabilities but through constants of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from trialign.training.rows import Row

CHUNK_BYTES = 1 << 26  # of fp32 logits at a time, or those of one example

# (log-probabilities of whole examples (n,), the first of these examples, how many) -> their part of the loss
LossOf = Callable[[torch.Tensor, int, int], torch.Tensor]


@dataclass
class Order:
    """What the head is to do in the next forward: a row, and the loss whose gradient is wanted, or None."""

    row: Row
    loss_of: LossOf | None
    logps: torch.Tensor | None = None  # found: (N,), of the row's targets


Run = Callable[[torch.nn.Module, Order], torch.Tensor]


def attach(model: PreTrainedModel) -> Run:
    """Let the head of `model` take orders.

    Returns what runs one through the model, or what wraps it: the loss, with its graph; 0 without a loss.
    """
    head = model.get_output_embeddings()
    waiting: list[Order] = []

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        order = waiting.pop()
        states = hidden[0].index_select(0, order.row.sources)
        loss, order.logps = Head.apply(states, head.weight, head.bias, order)
        return loss

    head.forward = forward

    def run(called: torch.nn.Module, order: Order) -> torch.Tensor:
        waiting.append(order)
        row = order.row
        return called(
            input_ids=row.input_ids, position_ids=row.position_ids, segments=row.segments, use_cache=False
        ).logits

    return run


class Head(torch.autograd.Function):
    """(N, hidden) states, (V, hidden) weight, (V,) bias or None -> loss (scalar), log-probabilities (N,) (no gradient).

    log p(t) = z_t - log sum_v exp z_v; with g = dL/dlog p, dL/dz = g (onehot(t) - softmax(z)), computed as soon as an
    example's logits are there: three matrix products, as with the whole logits.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, order: Order) -> Any:
        """Return loss and log-probabilities, and keep the gradients of states, weight and bias."""
        loss_of = order.loss_of
        wanted = loss_of is not None
        dtype = torch.get_autocast_dtype(states.device.type) if torch.is_autocast_enabled(states.device.type) else None
        with torch.autocast(states.device.type, enabled=False):
            given = states.dtype
            states = states if dtype is None else states.to(dtype)
            kernel = weight if dtype is None else weight.to(dtype)
            logps = torch.empty(len(states), dtype=torch.float32, device=states.device)
            total = torch.zeros((), dtype=torch.float32, device=states.device)
            grads = _Gradients(states, weight, bias) if wanted else None
            for part in _parts(order.row, weight.shape[0]):
                own, targets = states[part.tokens], order.row.targets[part.tokens]
                logits = torch.nn.functional.linear(own, kernel, None if bias is None else bias.to(own.dtype)).float()
                found, sums = _log_probabilities(logits, targets)
                logps[part.tokens] = found
                if wanted:
                    loss, slope = _slope(loss_of, found, part)
                    total += loss
                    grads.add(part.tokens, own, kernel, _of_logits(logits, sums, targets, slope))
        if wanted:
            ctx.grads = (grads.states.to(given), grads.weight.to(weight.dtype), grads.bias)
        ctx.mark_non_differentiable(logps)
        return total, logps

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: torch.Tensor) -> Any:
        """Return the kept gradients, times that of the loss."""
        states, weight, bias = ctx.grads
        del ctx.grads
        return states.mul_(upstream), weight.mul_(upstream), None if bias is None else bias.mul_(upstream), None


class _Part(NamedTuple):
    """Some of a row's examples: their tokens among the row's predicted ones, the first of them, how many."""

    tokens: slice
    first: int
    number: int


def _parts(row: Row, vocabulary: int) -> Iterator[_Part]:
    """Yield a row's examples, as many at a time as CHUNK_BYTES of logits allow, one at least."""
    most = CHUNK_BYTES // (4 * vocabulary)
    first, start, stop = 0, 0, 0
    for index, tokens in enumerate(row.lengths.sum(dim=1).tolist()):
        if index > first and stop + tokens - start > most:
            yield _Part(slice(start, stop), first, index - first)
            first, start = index, stop
        stop += tokens
    yield _Part(slice(start, stop), first, len(row.lengths) - first)


def _log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and sums of exponentials, (n,) each; `logits` (n, V) become these exponentials."""
    largest = logits.amax(dim=1)
    own = logits.gather(1, targets[:, None])[:, 0]
    sums = logits.sub_(largest[:, None]).exp_().sum(dim=1)
    return own - largest - sums.log(), sums


def _slope(loss_of: LossOf, logps: torch.Tensor, part: _Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of some examples, and its gradient by their log-probabilities."""
    with torch.enable_grad():
        leaf = logps.requires_grad_()
        loss = loss_of(leaf, part.first, part.number)
        (slope,) = torch.autograd.grad(loss, leaf, materialize_grads=True)
    logps.requires_grad_(False)
    return loss.detach(), slope


def _of_logits(
    exponentials: torch.Tensor, sums: torch.Tensor, targets: torch.Tensor, slope: torch.Tensor
) -> torch.Tensor:
    """Return dL/dz, in the place of the exponentials."""
    of_logits = exponentials.mul_((-slope / sums)[:, None])
    return of_logits.scatter_add_(1, targets[:, None], slope[:, None])


class _Gradients:
    """The gradients of the head's inputs, filled part by part."""

    def __init__(self, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.states = torch.zeros_like(states)
        self.weight = torch.zeros_like(weight, dtype=torch.float32)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(self, tokens: slice, states: torch.Tensor, kernel: torch.Tensor, of_logits: torch.Tensor) -> None:
        """Add those of some tokens."""
        if self.bias is not None:
            self.bias += of_logits.sum(dim=0)
        of_logits = of_logits.to(kernel.dtype)
        torch.mm(of_logits, kernel, out=self.states[tokens])
        if self.weight.dtype == kernel.dtype:
            self.weight.addmm_(of_logits.T, states)
        else:
            self.weight += of_logits.T @ states
