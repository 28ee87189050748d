"""Loading a model folder for evaluation, with transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def load(folder: Path) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a model folder: the dtype it was saved in, on the GPU where there is one."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)  # as training read it: see data/tokens.py
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer
