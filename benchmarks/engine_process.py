"""What `benchmarks.engine` runs in processes of their own: prepare a model and its data, or time one engine's steps."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.engine import PARAMS, SHAPE, STEPS, rows
from trialign import methods
from trialign.cost import forward_flops
from trialign.known import shape_from_config
from trialign.recipes import ReferenceRecipe, TrainRecipe
from trialign.settings import Training
from trialign.steps import Step
from trialign.training import packed, reference, trl
from trialign.training.examples import Examples

BUDGET = 1024  # tokens of a row


def recipe_of(method: str, case: dict[str, Any]) -> TrainRecipe:
    """Return the recipe of a training, in fp32."""
    view = "triple" if method == "tpo" else "chosen-rejected"
    training = Training(batch=case["batch"], precision="fp32", micro_batch_tokens=BUDGET)
    return TrainRecipe(method=method, params=PARAMS[method], view=view, training=training, seed=0)


def prepare(method: str, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a random model, a token file and, where the method needs them, log-probabilities. Returns counts."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, MistralConfig, PhiConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    given = {"vocab_size": case["vocabulary"], "num_hidden_layers": case["layers"], **SHAPE}
    config = MistralConfig(num_key_value_heads=2, sliding_window=None, **given) if case["model"] == "mistral" else None
    model = AutoModelForCausalLM.from_config(config or PhiConfig(**given))
    model.save_pretrained(folder / "model")
    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2}, unk_token="<pad>"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder / "model")
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
    started = time.process_time()
    if methods.get(method).needs_reference:
        (folder / "reference").mkdir()
        of = ReferenceRecipe(view=recipe.view, mismatched=method == "kto", precision="fp32")
        inputs = {"model": (folder / "model",), "tokens": (folder,)}
        reference.compute(Step(of, inputs, folder / "reference", folder / "reference"))
    return {
        "reference_s": round(time.process_time() - started, 2),
        "tokens": data.tokens(),
        "padding": 1 - sum(sequences) / (len(sequences) * max(sequences)),
        "flops": 3 * forward_flops(shape, sum(sequences) / len(sequences), data.tokens()),
    }


def steps(engine: str, method: str, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the seconds of a step and the peak memory above what the trainer takes before the first."""
    recipe = recipe_of(method, case)
    if engine == "trl":
        data = {split: trl.read_rows(folder / f"{split}.parquet", recipe) for split in ("train", "eval")}
        trainer: Any = trl.build_trainer(recipe, folder / "model", data, folder, trl.Split(1, case["batch"], 1))
        batch = trainer.data_collator([data["train"][k] for k in range(case["batch"])])
    else:
        data = {split: Examples(folder / f"{split}.parquet", recipe.view) for split in ("train", "eval")}
        stored = methods.get(method).needs_reference
        known = {split: reference.load(folder / "reference", split) if stored else {} for split in data}
        trainer = packed.build_trainer(recipe, folder / "model", data, known, folder, BUDGET)
        batch = [data["train"][k] for k in range(case["batch"])]
    trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    seconds = []
    for _ in range(1 + STEPS):
        started = time.process_time()
        loss = trainer.training_step(trainer.model, batch)
        seconds.append(time.process_time() - started)
        trainer.model.zero_grad()
    return {"seconds": min(seconds[1:]), "peak_mb": _memory("VmHWM") - before, "loss": loss.item()}


def _memory(name: str) -> float:
    """Return a figure of /proc/self/status in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    what, its_method, its_case, its_folder = sys.argv[1:]
    torch.set_num_threads(1)
    run = prepare if what == "prepare" else lambda *given: steps(what, *given)
    print(json.dumps(run(its_method, json.loads(its_case), Path(its_folder))))
