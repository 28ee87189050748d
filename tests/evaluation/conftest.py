"""A tiny random model and its tokenizer, built here, and steps in folders of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from trialign.recipes import Recipe
from trialign.steps import Step

SPECIAL = ["<s>", "</s>", "<pad>"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}U: {{ m.content }}\n"
    "{% else %}A: {{ m.content }}</s>\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def save_model(folder: Path, *, context: int = 1024, seed: int = 0) -> Path:
    """Save a random Mistral of one layer, with a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        sliding_window=None,
        initializer_range=0.3,  # far from uniform, so that likelihoods differ
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with room for 1024 tokens."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make_step(tmp_path: Path) -> Callable[..., Step[Any]]:
    """Return a function that makes a step with new `out` and `scratch` folders."""
    count = 0

    def make(recipe: Recipe, inputs: Mapping[str, Path], scratch: Path | None = None) -> Step[Any]:
        nonlocal count
        count += 1
        out, scratch = tmp_path / f"out{count}", scratch or tmp_path / f"scratch{count}"
        out.mkdir()
        scratch.mkdir(exist_ok=True)
        return Step(recipe, {name: (path,) for name, path in inputs.items()}, out, scratch)

    return make
