"""What `benchmarks.engine` runs in processes of their own: prepare a model and its data, or time one engine's steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.engine import CASES, PARAMS, Case, clocked, rows
from trialign import methods
from trialign.cost import forward_flops
from trialign.known import shape_from_config
from trialign.recipes import ReferenceRecipe, TrainRecipe
from trialign.settings import Training
from trialign.steps import Step
from trialign.training import packed, reference, trl
from trialign.training.examples import Examples

STEPS = 2  # timed in each process, after one that is not


def recipe_of(method: str, case: Case) -> TrainRecipe:
    """Return the recipe of a training."""
    view = "triple" if method == "tpo" else "chosen-rejected"
    training = Training(batch=case.batch, precision=case.precision, micro_batch_tokens=case.budget)
    return TrainRecipe(method=method, params=PARAMS[method], view=view, training=training, seed=0)


def prepare(method: str, case: Case, folder: Path) -> dict[str, Any]:
    """Write a random model, a token file and, where the method needs them, log-probabilities. Returns counts."""
    _write_model(case, folder / "model")
    ids = pa.list_(pa.int32())
    columns = [("prompt_id", pa.string()), *((name, ids) for name in ("prompt", "reference", "chosen", "rejected"))]
    table = pa.Table.from_pylist(list(rows(case)), pa.schema(columns))
    for split in ("train", "eval"):
        pq.write_table(table, folder / f"{split}.parquet")
    recipe = recipe_of(method, case)
    data = Examples(folder / "train.parquet", recipe.view)
    examples = [data[place] for place in range(len(data))]
    sequences = [len(each.prompt) + len(response) for each in examples for response in each.responses]
    shape = shape_from_config(json.loads((folder / "model/config.json").read_text()))
    seconds = 0.0
    if methods.get(method).needs_reference:
        (folder / "reference").mkdir()
        of = ReferenceRecipe(view=recipe.view, mismatched=method == "kto", precision=case.precision)
        inputs = {"model": (folder / "model",), "tokens": (folder,)}
        step = Step(of, inputs, folder / "reference", folder / "reference")
        seconds = clocked(lambda: reference.compute(step), case.device)
    return {
        "reference_s": round(seconds, 2),
        "tokens": data.tokens(),
        "padding": 1 - sum(sequences) / (len(sequences) * max(sequences)),
        "flops": 3 * forward_flops(shape, sum(sequences) / len(sequences), data.tokens()),
    }


def _write_model(case: Case, folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, MistralConfig, PhiConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    given = {
        "vocab_size": case.vocabulary, "num_hidden_layers": case.layers, "hidden_size": case.hidden,
        "intermediate_size": case.intermediate, "num_attention_heads": case.heads, "max_position_embeddings": 4096,
    }  # fmt: skip
    grouped = {"num_key_value_heads": case.key_heads, "sliding_window": None}
    config = MistralConfig(**grouped, **given) if case.model == "mistral" else PhiConfig(**given)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2}, unk_token="<pad>"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)


def steps(engine: str, method: str, case: Case, folder: Path) -> dict[str, Any]:
    """Return the seconds of a step and the peak memory above what the trainer takes before the first."""
    torch.set_flush_denormal(True)  # as `train` does for both
    trainer, batch = (_stock if engine == "trl" else _ours)(recipe_of(method, case), folder)
    trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
    before = _memory(case.device, peak=False)
    _begin_peak(case.device)
    seconds, losses = [], []
    for _ in range(1 + STEPS):
        seconds.append(clocked(lambda: losses.append(trainer.training_step(trainer.model, batch)), case.device))
        trainer.model.zero_grad()
    peak = _memory(case.device, peak=True) - before
    return {"seconds": min(seconds[1:]), "peak_mb": peak, "loss": losses[-1].item()}


def _stock(recipe: TrainRecipe, folder: Path) -> tuple[Any, Any]:
    data = {split: trl.read_rows(folder / f"{split}.parquet", recipe) for split in ("train", "eval")}
    size = recipe.training.batch
    trainer = trl.build_trainer(recipe, folder / "model", data, folder, trl.Split(1, size, 1))
    batch = trainer.data_collator([data["train"][place] for place in range(size)])
    return trainer, trainer._prepare_inputs(batch)


def _ours(recipe: TrainRecipe, folder: Path) -> tuple[Any, Any]:
    data = {split: Examples(folder / f"{split}.parquet", recipe.view) for split in ("train", "eval")}
    stored = methods.get(recipe.method).needs_reference
    known = {split: reference.load(folder / "reference", split) if stored else {} for split in data}
    trainer = packed.build_trainer(recipe, folder / "model", data, known, folder, recipe.training.micro_batch_tokens)
    return trainer, [data["train"][place] for place in range(recipe.training.batch)]


def _begin_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _memory(device: str, *, peak: bool) -> float:
    """Return the memory that is allocated on a GPU, or resident on a CPU, or its peak, in MB."""
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    name = "VmHWM" if peak else "VmRSS"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    what, its_method, its_case, its_folder = sys.argv[1:]
    torch.set_num_threads(1)
    run = prepare if what == "prepare" else lambda *given: steps(what, *given)
    print(json.dumps(run(its_method, CASES[its_case], Path(its_folder))))
