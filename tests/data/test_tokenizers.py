"""Tokenizer folders and imported models, made of small real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_room import BACKENDS, build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from trialign.data import tokenizers
from trialign.errors import UserError
from trialign.recipes import ImportRecipe, TokenizerRecipe
from trialign.templates import templates


def recipe(template: str = "zephyr") -> TokenizerRecipe:
    return TokenizerRecipe(vocab_size=None, chat_template=template)


def repository(folder: Path, shards: str = "5GB", kind: str = "byte-level") -> Path:
    """A model repository as the hub has it: config, weights, a tokenizer without our template and without padding."""
    made = build_tokenizer(kind)
    made.chat_template = None
    config = MistralConfig(
        vocab_size=len(made) + 3,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    MistralForCausalLM(config).save_pretrained(folder, max_shard_size=shards)
    made.save_pretrained(folder)
    (folder / "README.md").write_text("# a model")
    return folder


@pytest.fixture(params=sorted(BACKENDS))
def fetched(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return repository(tmp_path / "repository", kind=request.param)


def test_a_taken_tokenizer_keeps_its_ids_and_gets_our_template(run: Any, fetched: Path) -> None:
    out, facts = run(tokenizers.tokenizer, recipe(), model=fetched)
    text = "Hello, naïve 文字\n\n  x</s>\n<|user|>"
    expected = AutoTokenizer.from_pretrained(fetched)(text)["input_ids"]
    for reader in (AutoTokenizer, PreTrainedTokenizerFast):
        made = reader.from_pretrained(out)
        assert made(text)["input_ids"] == expected
        assert made.chat_template == templates()["zephyr"]
        assert made.pad_token_id == made.eos_token_id
    assert facts["special"] == {"bos": made.bos_token_id, "eos": made.eos_token_id, "pad": made.eos_token_id}


def test_an_unknown_template_names_the_nearest(run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'zefyr' is not known \(did you mean 'zephyr'\?\)"):
        run(tokenizers.tokenizer, recipe("zefyr"), model=tmp_path)


def test_a_folder_without_tokenizer_is_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer can be read"):
        run(tokenizers.tokenizer, recipe(), model=tmp_path)


@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_an_imported_model_is_the_fetched_one(run: Any, tmp_path: Path, shards: str) -> None:
    fetched = repository(tmp_path / "repository", shards)
    tokenizer, _ = run(tokenizers.tokenizer, recipe(), model=fetched)
    out, facts = run(tokenizers.import_model, ImportRecipe(), model=fetched, tokenizer=tokenizer)
    assert len(facts["weights"]) == (1 if shards == "5GB" else len(list(fetched.glob("*.safetensors"))) + 1)
    assert "README.md" in facts["left_out"]
    before = AutoModelForCausalLM.from_pretrained(fetched).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out / "model").state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert AutoTokenizer.from_pretrained(out / "model").chat_template == templates()["zephyr"]
    weights = next(fetched.glob("*.safetensors"))
    assert weights.stat().st_ino == (out / "model" / weights.name).stat().st_ino  # linked, not copied


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_not_imported(run: Any, tmp_path: Path) -> None:
    fetched = repository(tmp_path / "repository", "20KB")
    tokenizer, _ = run(tokenizers.tokenizer, recipe(), model=fetched)

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            run(tokenizers.import_model, ImportRecipe(), model=fetched, tokenizer=tokenizer)

    size = json.loads((fetched / "config.json").read_text())["vocab_size"]
    edit(fetched / "config.json", vocab_size=5)
    refused("tokens and the model 5; they do not belong together")
    edit(fetched / "config.json", vocab_size=size, auto_map={"AutoModel": "code.Model"})
    refused(r"asks for remote code \(auto_map\)")
    config = json.loads((fetched / "config.json").read_text())
    (fetched / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "auto_map"}))
    shard = sorted(fetched.glob("*.safetensors"))[0]
    shard.rename(fetched / "pytorch_model.bin")
    refused(f"weight files are missing: {shard.name}")
    (fetched / "model.safetensors.index.json").unlink()
    refused(r"only pickles \(pytorch_model.bin\)")
    (fetched / "config.json").unlink()
    refused("there is no config.json")
