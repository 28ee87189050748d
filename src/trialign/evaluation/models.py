"""Loading a model folder for evaluation, with transformers alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from trialign.errors import UserError


def load(folder: Path) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a model folder: the dtype it was saved in, on the GPU where there is one.

    UserError where the GPU is too small for the weights alone.
    """
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
    try:
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{folder}: its weights alone do not fit this GPU ({_told(error)}); take a larger one"
        ) from error


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model folder, as training read it: see data/tokens.py."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


@contextmanager
def fitting(key: str, batch_size: int) -> Iterator[None]:
    """Raise UserError where the GPU is too small for batches of `batch_size`, which the config's `key` sets.

    The batch is not halved here as a training's micro-batch is: results depend on it, so it is part of the recipe.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of GPU memory with {batch_size} at a time ({_told(error)}): "
            f"{'take' if batch_size == 1 else f'lower {key}, which is part of every result, or take'} a larger GPU"
        ) from error


def _told(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
