"""Train a tokenizer: byte-level BPE on pre-training texts, with the marks of the chat template."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MARKS = ("<|user|>", "<|assistant|>", "<|system|>")
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", *MARKS)


def train(corpus: Path, vocab_size: int, chat_template: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on `corpus`/train.jsonl (rows with `text`), the same for the same corpus.

    `<s>`, `</s>` (end), `<pad>`, `<unk>` (characters beyond printable ASCII that the corpus lacks) and the marks of the
    chat template are single tokens; nothing is added when encoding.
    """
    with (corpus / "train.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    special = "|".join(map(re.escape, SPECIAL))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    printable = tokenizer.pre_tokenizer.pre_tokenize_str(string.printable)
    alphabet = sorted({char for piece, _ in printable for char in piece})
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in re.split(special, text)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(MARKS),
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
