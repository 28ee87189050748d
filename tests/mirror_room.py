"""A mirror of what the paper's config downloads: the hub's own layouts, schemas and file names, tiny and invented.

Rows come from the generated world, which has the real schemas; models are random Mistral and Phi checkpoints of a few
thousand parameters, with a tokenizer of their own, in shards as published ones are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import MistralConfig, MistralForCausalLM, PhiConfig, PhiForCausalLM

from trialign.data import bpe
from trialign.demo import world
from trialign.recipes import WorldRecipe
from trialign.settings import WorldSettings
from trialign.steps import Step

BIGBENCH = {
    "causal": ("causal_judgement", "How would a typical person answer each of the following questions?\n\n"),
    "sports": ("sports_understanding", "Determine whether the following statements are plausible or implausible:"),
    "formal": ("formal_fallacies_syllogisms_negation", ""),
}
SIZES = {
    "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def build(root: Path) -> None:
    """Write the mirror: `root`/models and datasets, and `root`/bigbench and `root`/mt_bench beside them."""
    made = root / "world"
    made.mkdir(parents=True)
    settings = WorldSettings(
        seed=7, documents=500, conversations=260, test_conversations=40, feedback=420, items=40, questions=3
    )
    world.build(Step(WorldRecipe(settings=settings), {}, made, root))
    _models(root / "models", made / "pretrain")
    _training_data(root / "datasets", made)
    _benchmarks(root / "datasets", made / "benchmarks")
    _bigbench(root / "bigbench", made / "benchmarks")
    shutil.copytree(made / "mt_bench", root / "mt_bench")


def _models(root: Path, corpus: Path) -> None:
    torch.manual_seed(0)
    tokenizer = bpe.train(corpus, SIZES["vocab_size"], "")
    tokenizer.chat_template = None  # as base models ship
    published = {
        "mistralai/Mistral-7B-v0.1": MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
        "alignment-handbook/zephyr-7b-sft-full": MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
        "microsoft/phi-2": PhiForCausalLM(PhiConfig(**SIZES, resid_pdrop=0.1)),
    }
    for name, model in published.items():
        model.to(torch.bfloat16 if "phi" not in name else torch.float16)
        model.save_pretrained(root / name, max_shard_size="60KB")
        tokenizer.save_pretrained(root / name)
        (root / name / "README.md").write_text(f"# {name}\n")
        (root / name / "merges.txt").write_text("#version: 0.2\n")
    assert (root / "mistralai/Mistral-7B-v0.1/model.safetensors.index.json").is_file()


def _training_data(root: Path, made: Path) -> None:
    chats = root / "HuggingFaceH4/ultrachat_200k/data"
    for split, shards in (("train_sft", 3), ("test_sft", 1), ("train_gen", 1)):
        rows = _rows(made / "ultrachat" / f"{split.replace('gen', 'sft')}.jsonl")
        for k in range(shards):
            _parquet(rows[k::shards], chats / f"{split}-{k:05d}-of-{shards:05d}-{'a3ecf92756993583'}.parquet")
    feedback = root / "openbmb/UltraFeedback"
    feedback.mkdir(parents=True)
    rows = _rows(made / "ultrafeedback/train.jsonl")
    for k, origin in enumerate(("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")):
        with (feedback / f"{origin}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row | {"source": origin}, ensure_ascii=False) + "\n" for row in rows[k::6])


def _benchmarks(root: Path, made: Path) -> None:
    folders = {
        "arc": "allenai/ai2_arc/ARC-Challenge",
        "truthfulqa": "truthfulqa/truthful_qa/multiple_choice",
        "winogrande": "allenai/winogrande/winogrande_xl",
        "hellaswag": "Rowan/hellaswag/data",
        "openbookqa": "allenai/openbookqa/main",
        **{f"mmlu/{subject.name}": f"cais/mmlu/{subject.name}" for subject in (made / "mmlu").iterdir()},
    }
    for name, folder in folders.items():
        for file in sorted((made / name).glob("*.jsonl")):
            _parquet(_rows(file), root / folder / f"{file.stem}-00000-of-00001.parquet")


def _bigbench(root: Path, made: Path) -> None:
    """Write BIG-bench's task files: a task with its examples, of which one is there twice."""
    root.mkdir()
    for name, (task, prefix) in BIGBENCH.items():
        examples = [
            {
                "input": row["inputs"].removesuffix("\nAnswer:"),
                "target_scores": dict(zip(row["multiple_choice_targets"], row["multiple_choice_scores"], strict=True)),
            }
            for row in _rows(made / name / "default.jsonl")
        ]
        described = {
            "name": task, "task_prefix": prefix, "append_choices_to_input": False, "metrics": ["multiple_choice_grade"],
            "preferred_score": "multiple_choice_grade", "examples": [*examples, examples[0]],
        }  # fmt: skip
        (root / f"{task}.json").write_text(json.dumps(described))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _parquet(rows: Iterable[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
