"""Tiny random Mistral and Phi models, tokens folders, and steps for the trainers' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from trl_room import BOS, EOS, PAD, VOCAB, triples

from trialign.recipes import TrainRecipe
from trialign.steps import Step


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders: `mistral` (grouped queries) and `phi`, which ships dropout; each with a tokenizer."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, MistralConfig, PhiConfig, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    words = {"<s>": BOS, "</s>": EOS, "<pad>": PAD, **{f"w{i}": i for i in range(3, VOCAB)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template="{% for message in messages %}{{ message.content }}{% endfor %}",
    )
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "initializer_range": 0.2,
    }
    dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1}
    configs = {"mistral": MistralConfig(num_key_value_heads=2, **shape), "phi": PhiConfig(**dropout, **shape)}
    folders = {}
    for name, config in configs.items():
        torch.manual_seed(1)
        folders[name] = tmp_path_factory.mktemp(name)
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a tokens folder of `train` and `eval` triples."""

    def make(train: int = 18, evaluation: int = 5) -> Path:
        folder = tmp_path_factory.mktemp("tokens")
        pq.write_table(triples(train, 1), folder / "train.parquet")
        pq.write_table(triples(evaluation, 2), folder / "eval.parquet")
        return folder

    return make


@pytest.fixture
def step(tmp_path: Path) -> Callable[..., Step]:
    """Make a step of its own folders: `name` tells the folders of several apart."""

    def make(train_recipe: TrainRecipe, parent: Path, tokens_folder: Path, name: str = "one") -> Step:
        out, scratch = tmp_path / name / "out", tmp_path / name / "scratch"
        out.mkdir(parents=True)
        scratch.mkdir()
        return Step(train_recipe, {"parent": (parent,), "tokens": (tokens_folder,)}, out, scratch)

    return make
