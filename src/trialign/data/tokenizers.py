"""Tokenizers and imported models: a base model's tokenizer with our chat template, a fetched model as a run's model.

A tokenizer folder holds what `save_pretrained` writes, read back by AutoTokenizer and PreTrainedTokenizerFast alike.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trialign.errors import UserError, nearest
from trialign.templates import templates

if TYPE_CHECKING:
    from trialign.recipes import ImportRecipe, TokenizerRecipe
    from trialign.steps import Step

_INDEX = "model.safetensors.index.json"
_PROBE = "<|user|>\nOne line.\n\n  Two: naïve 文字 x=3.14</s>\n<|assistant|>\nYes."


def tokenizer(step: Step[TokenizerRecipe]) -> dict[str, Any]:
    """Fill `step.out` with a tokenizer folder that has the recipe's chat template.

    Input `model`: a fetched model, whose tokenizer is taken; or `corpus`: pre-training text, on which one is trained.
    A tokenizer without a padding token pads with EOS. Facts: class, size, special ids.
    UserError: unknown template, no fast tokenizer, a tokenizer that reads back differently.
    """
    known = templates()
    name = step.recipe.chat_template
    if name not in known:
        raise UserError(
            f"chat_template '{name}' is not known{nearest(name, known)}; allowed: {', '.join(sorted(known))}."
        )
    if "corpus" in step.inputs:
        from trialign.data.bpe import train

        made = train(step.input("corpus"), step.recipe.vocab_size, known[name])
        made.save_pretrained(step.out)
    else:
        made = _taken(step.input("model"), known[name], step.out)
    special = {kind: getattr(made, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    return {"class": type(made).__name__, "size": len(made), "special": special, "chat_template": name}


def _taken(model: Path, template: str, out: Path) -> Any:
    """Save the tokenizer of a fetched model with our template, and hold its two readers to the same ids."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        made = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"{model.name}: no tokenizer can be read from it: {str(error).splitlines()[0]}") from error
    if not made.is_fast or made.eos_token is None:
        raise UserError(f"{model.name}: a fast tokenizer (tokenizer.json) with an EOS token is wanted.")
    made.chat_template = template
    if made.pad_token is None:
        made.pad_token = made.eos_token
    made.save_pretrained(out)
    auto, fast = AutoTokenizer.from_pretrained(out), PreTrainedTokenizerFast.from_pretrained(out)
    wanted = made(_PROBE)["input_ids"]
    if auto(_PROBE)["input_ids"] != wanted or fast(_PROBE)["input_ids"] != wanted:
        raise UserError(f"{model.name}: its tokenizer reads back differently after saving; it cannot be used.")
    return made


def import_model(step: Step[ImportRecipe]) -> dict[str, Any]:
    """Make `step.out`/model of a fetched repository: config, weights (hard links where possible), our tokenizer.

    Inputs: `model` (the repository), `tokenizer` (a tokenizer folder). Facts: files, bytes, and what was left out.
    UserError: no safetensors (pickles are never read), a missing shard, remote code (`auto_map`), a tokenizer that is
    larger than the embedding.
    """
    source, tokens = step.input("model"), step.input("tokenizer")
    config = _config(source)
    weights = _weights(source)
    _check_size(source, config, tokens)
    target = step.out / "model"
    target.mkdir()
    names = [
        "config.json",
        *(["generation_config.json"] if (source / "generation_config.json").is_file() else []),
        *weights,
    ]
    for name in names:
        _link(source / name, target / name)
    for path in sorted(tokens.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)
    left = sorted(path.name for path in source.iterdir() if path.is_file() and not (target / path.name).exists())
    return {"weights": weights, "bytes": sum((source / name).stat().st_size for name in weights), "left_out": left}


def _config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    if not path.is_file():
        raise UserError(
            f"{source.name}: there is no config.json; is it a model repository, and does `include` name it?"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    if "auto_map" in config:
        raise UserError(
            f"{source.name}: config.json asks for remote code (auto_map), which is never run; take a revision of the "
            "model that transformers supports by itself."
        )
    return config


def _weights(source: Path) -> list[str]:
    """Return the names of the weight files: the shards of the index and the index, or model.safetensors."""
    if (source / _INDEX).is_file():
        index = json.loads((source / _INDEX).read_text(encoding="utf-8"))
        shards = sorted(set(index["weight_map"].values()))
        missing = [name for name in shards if not (source / name).is_file()]
        if missing:
            raise UserError(f"{source.name}: weight files are missing: {', '.join(missing)}; fetch it again.")
        return [*shards, _INDEX]
    if (source / "model.safetensors").is_file():
        return ["model.safetensors"]
    pickles = sorted(path.name for path in source.glob("*.bin"))
    found = f"only pickles ({', '.join(pickles)}), which are never read" if pickles else "no weights"
    raise UserError(f"{source.name}: it has {found}; a revision with safetensors is wanted.")


def _check_size(source: Path, config: dict[str, Any], tokens: Path) -> None:
    """Refuse a tokenizer with ids that the embedding does not have."""
    from tokenizers import Tokenizer

    size, rows = Tokenizer.from_file(str(tokens / "tokenizer.json")).get_vocab_size(), config["vocab_size"]
    if size > rows:
        raise UserError(
            f"{source.name}: its tokenizer has {size} tokens and the model {rows}; they do not belong together."
        )


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it where the file system does not allow links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
