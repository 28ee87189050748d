"""Attention over packed rows (`rows.Row`): by segments, exact, for every model that takes transformers' interface.

A prompt attends to itself causally, a response to its whole prompt and to itself causally. Each segment is one call of
scaled_dot_product_attention; on a GPU, in 16 bits, all of a row are one call of `torch.nn.attention.varlen`, whose
kernels know no fp32, with each response's keys gathered behind its prompt's. No mask of a whole row is ever made, and
none is given to a model: a mask that is missing, or of another kind than the model expects, is silently wrong.
"""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel

from trialign.errors import UserError
from trialign.training.rows import Segment

NAME = "trialign_segments"
_KINDS = ("full_attention", "sliding_attention")  # of layers
_SCALED = ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling")  # of configs
KERNEL_ERROR = 0.05  # of values around 1 in 16 bits, whose rounding is 0.01
MASKS = 256  # masks of responses that are kept: their shapes come again


def prepare(model: PreTrainedModel, longest: int) -> None:
    """Let `model` attend by segments. longest: tokens of the longest prompt with one response.

    UserError where the model would look at less than that, its sliding window being shorter, or does something to
    attention or logits that is not done here.
    """
    config = model.config
    window = getattr(config, "sliding_window", None)
    if window and longest > window:
        raise UserError(
            f"a prompt with its response has {longest} tokens, and the model attends to {window} (sliding_window): "
            "lower the data's max_length, or set training.engine: trl"
        )
    other = sorted(set(getattr(config, "layer_types", None) or ()) - set(_KINDS))
    if other or any(getattr(config, name, None) for name in _SCALED):
        raise UserError(
            f"the packed engine does not do what {config.model_type} does ({', '.join(other) or 'scaled logits'}): set "
            "training.engine: trl"
        )
    AttentionInterface.register(NAME, segment_attention)
    model.set_attn_implementation(NAME)


def segment_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, *, scaling: float, dropout: float = 0.0,
    segments: tuple[Segment, ...] | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attend in one row: query (1, heads, T, d), key and value (1, key heads, T, d). Returns (1, T, heads, d).

    RuntimeError without segments, or with a mask: the result would be another than the one meant.
    """
    if segments is None or attention_mask is not None or query.shape[0] != 1:
        raise RuntimeError(f"{NAME} attends in one row of segments, without a mask")
    attend = _varlen if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) else _by_segments
    return attend(query, key, value, segments, scaling, dropout), None


def _by_segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: tuple[Segment, ...], scaling: float,
    dropout: float,
) -> torch.Tensor:  # fmt: skip
    lengths = [segment.length for segment in segments]
    # `split`, not slices: the gradient of each slice would be a row of zeros of its own
    queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value))
    attend = partial(F.scaled_dot_product_attention, scale=scaling, dropout_p=dropout, enable_gqa=True)
    parts = []
    for q, k, v, (length, context) in zip(queries, keys, values, segments, strict=True):
        if context is None:
            parts.append(attend(q, k, v, is_causal=True))
            continue
        mask = _mask(length, lengths[context], query.device)
        parts.append(attend(q, torch.cat((keys[context], k), 2), torch.cat((values[context], v), 2), attn_mask=mask))
    return torch.cat(parts, dim=2).transpose(1, 2)


@lru_cache(maxsize=MASKS)
def _mask(length: int, context: int, device: torch.device) -> torch.Tensor:
    """Return (length, context + length): which keys a response's tokens see."""
    return torch.ones(length, context + length, dtype=torch.bool, device=device).tril(context)


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: tuple[Segment, ...], scaling: float,
    dropout: float,
) -> torch.Tensor:  # fmt: skip
    if dropout:
        raise UserError("attention dropout is not offered by varlen attention: set training.dropout: 0")
    _check_kernel(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3])
    return _call_varlen(query, key, value, segments, scaling)


@lru_cache
def _check_kernel(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, width: int) -> None:
    """Raise UserError where this GPU's kernel attends otherwise than segment by segment: it would train silently wrong.

    How it aligns queries with more keys than there are queries is known by no other sign.
    """
    segments = (Segment(37, None), Segment(20, 0), Segment(70, 0), Segment(1, None), Segment(5, 3))
    tokens = sum(segment.length for segment in segments)
    chance = torch.Generator(device).manual_seed(0)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        query, key, value = (
            torch.randn(1, number, tokens, width, generator=chance, device=device, dtype=dtype)
            for number in (heads, key_heads, key_heads)
        )
        found = _call_varlen(query, key, value, segments, width**-0.5).float()
        exact = _by_segments(query.float(), key.float(), value.float(), segments, width**-0.5, 0.0)
    if (error := (found - exact).abs().max().item()) > KERNEL_ERROR:
        raise UserError(
            f"varlen attention of this GPU and torch {torch.__version__} is off by {error:.2g}: set training.engine: "
            "trl, or another torch"
        )


def _call_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: tuple[Segment, ...], scaling: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    places, starts_q, starts_k, longest_q, longest_k = _varlen_plan(segments, query.device)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, d)
    found = varlen_attn(
        q, k[places], v[places], starts_q, starts_k, longest_q, longest_k,
        scale=scaling, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return found[None]


@lru_cache(maxsize=2)  # all layers of a row ask for the same
def _varlen_plan(
    segments: tuple[Segment, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
    """Return the keys' places in the row, the starts of queries and keys (segments + 1), and their longest."""
    starts = [0, *accumulate(segment.length for segment in segments)]
    spans = [torch.arange(start, start + segment.length) for start, segment in zip(starts, segments, strict=False)]
    keys = [
        span if segment.context is None else torch.cat((spans[segment.context], span))
        for span, segment in zip(spans, segments, strict=True)
    ]
    key_starts = [0, *accumulate(map(len, keys))]
    as_starts = partial(torch.tensor, dtype=torch.int32, device=device)
    return (
        torch.cat(keys).to(device), as_starts(starts), as_starts(key_starts),
        max(segment.length for segment in segments), max(map(len, keys)),
    )  # fmt: skip
