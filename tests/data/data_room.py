"""What the tests of the data room share: rows in UltraFeedback's schema, files, small tokenizers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trialign.templates import templates

CORPUS = [
    "The river Orne flows past the town of Caen.\n\nIt is 170 km long.",
    "Question: what is 12 + 7?\nAnswer: 19. Thanks for asking!",
    "  - one\n  - two\n\n\ndef f(x):\n    return x\n",
    "<|user|>\nHello there</s>\n<|assistant|>\nHello, how can I help you?</s>\n<|system|>\nBe kind.</s>\n",
] * 5


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Write JSON lines, and return the folder that holds them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.parent


def table(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def card(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "card.json").read_text())


def completion(text: Any, overall: Any, fine: Any = 3.0, model: str = "m") -> dict[str, Any]:
    return {"model": model, "response": text, "overall_score": overall, "fine-grained_score": fine}


def feedback(prompt: Any, *completions: dict[str, Any], source: str = "flan") -> dict[str, Any]:
    models = [one["model"] for one in completions]
    return {"source": source, "instruction": prompt, "models": models, "completions": list(completions)}


def _byte_level() -> Tokenizer:
    """As Phi-2 reads text: GPT-2's byte-level BPE, whole runs of blank space may be one token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*CORPUS, *["\n\n\n"] * 50], trainer)
    return made


def _sentence_piece() -> Tokenizer:
    """As Mistral-7B-v0.1 reads text: blanks become U+2581, one before each stretch of text, bytes as fallback."""
    special = ["<unk>", "<s>", "</s>"]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner.train_from_iterator(
        [line for text in CORPUS for line in text.split("\n") if line],
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False),
    )
    model = json.loads(learner.to_str())["model"]
    vocabulary = list(special) + [f"<0x{i:02X}>" for i in range(256)]
    vocabulary += [token for token in model["vocab"] if token not in vocabulary]
    made = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocabulary)},
            merges=[tuple(pair) for pair in model["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    made.normalizer = learner.normalizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


BACKENDS = {"byte-level": _byte_level, "sentence-piece": _sentence_piece}


def build_tokenizer(kind: str, template: str = "zephyr") -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=BACKENDS[kind](), bos_token="<s>", eos_token="</s>", unk_token=None)
    made.chat_template = templates()[template]
    return made
