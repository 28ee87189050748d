"""The demo's tokenizer: lossless, deterministic, with the chat marks as single tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trialign.data import bpe
from trialign.demo import facts, texts

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    documents, _ = texts.make(facts.make(2), 2, 400)
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return folder


@pytest.fixture(scope="module")
def trained(corpus: Path) -> PreTrainedTokenizerFast:
    return bpe.train(corpus, 700, TEMPLATE)


def test_round_trip(trained: PreTrainedTokenizerFast, corpus: Path, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    documents = [json.loads(line)["text"] for line in (corpus / "train.jsonl").read_text().splitlines()]
    for text in [*documents, 'Printable, unseen: #{}[]~ \t "quoted"\n\n  spaces  ', "Z" * 50]:
        ids = loaded(text)["input_ids"]
        assert ids == trained(text)["input_ids"]
        assert loaded.decode(ids) == text
        assert trained.unk_token_id not in ids


def test_marks_are_single_tokens(trained: PreTrainedTokenizerFast) -> None:
    assert len(trained) == 700
    for mark in ("<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"):
        assert len(trained(mark)["input_ids"]) == 1
    assert len({trained.bos_token_id, trained.eos_token_id, trained.pad_token_id, trained.unk_token_id}) == 4
    text = trained.apply_chat_template([{"role": "user", "content": "Hello."}], tokenize=False)
    assert text == "<|user|>\nHello.</s>\n"
    ids = trained(text)["input_ids"]
    assert ids[0] == trained.convert_tokens_to_ids("<|user|>") and trained.eos_token_id in ids


def test_nothing_is_added_when_encoding(trained: PreTrainedTokenizerFast) -> None:
    assert trained("The goat")["input_ids"] == trained("The goat", add_special_tokens=False)["input_ids"]


def test_the_same_corpus_gives_the_same_tokenizer(trained: PreTrainedTokenizerFast, corpus: Path) -> None:
    again = bpe.train(corpus, 700, TEMPLATE)
    assert again.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()
