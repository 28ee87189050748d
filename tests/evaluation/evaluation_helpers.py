"""A tiny random model with its tokenizer, files of JSON lines, and what the harness asks of a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
)

from trialign.errors import Again
from trialign.evaluation import harness
from trialign.settings import HarnessBenchmark

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


def save_model(folder: Path, *, context: int = 1024, phi: bool = False) -> Path:
    """Save a random Mistral (or Phi) of one layer, with a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = (PhiConfig if phi else MistralConfig)(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        initializer_range=0.3,  # far from uniform, so that likelihoods differ
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    (PhiForCausalLM if phi else MistralForCausalLM)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class ByHand:
    """Log-likelihoods of continuations, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    def __call__(self, context: str, continuation: str, start: Sequence[int] = ()) -> float:
        before = [*start, *self.tokenizer.encode(context, add_special_tokens=False)]
        after = self.tokenizer.encode(continuation, add_special_tokens=False)
        with torch.no_grad():
            logits = self.model(torch.tensor([before + after])).logits[0].double()
        each = torch.log_softmax(logits, -1)[len(before) - 1 : -1]
        return float(sum(row[token] for row, token in zip(each, after, strict=True)))


def load_task(name: str, benchmark: HarnessBenchmark, source: Path, scratch: Path) -> Any:
    """Load a benchmark's task as the evaluation step does."""
    tasks = harness._tasks(name, benchmark, source, scratch / "cache")
    manager = TaskManager(include_path=str(harness._write(tasks, scratch / "tasks")), include_defaults=False)
    (task,) = manager.load([name])["tasks"].values()
    return task


def requests(task: Any) -> list[list[tuple[str, str]]]:
    """Return for each document the (context, continuation) of each choice, as the harness asks a model for them."""
    task.set_fewshot_seed(harness.SEED)
    task.build_all_requests()
    asked: dict[int, list[tuple[str, str]]] = {}
    for instance in task.instances:
        asked.setdefault(instance.doc_id, []).append(instance.args)
    return [asked[number] for number in sorted(asked)]


def start_again(start: Callable[[], Any], most: int = 30) -> tuple[Any, int]:
    """Start until no other start is asked for. Returns what the last start gave, and how many there were."""
    for starts in range(1, most):
        try:
            return start(), starts
        except Again:
            pass
    raise AssertionError(f"asked for more than {most} starts")
