"""Train one stage: the parent's model, the tokens, and what a run leaves behind, whichever engine trains.

A batch counts prompts, for every method. The last batch of an epoch may be smaller: it is trained like the others, its
loss averaged over its own prompts. All runs see the prompts in the same order, drawn from the seed and the epoch.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.utils import logging

from trialign import diverged, methods
from trialign.errors import Again, UserError
from trialign.methods import Method
from trialign.recipes import TrainRecipe
from trialign.steps import Step
from trialign.training import distributed, tracking
from trialign.training.callbacks import Diverged, ProgressLines, newest_checkpoint
from trialign.training.common import Made
from trialign.training.examples import Examples

_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")
_SMALLER = "smaller"  # in the scratch folder: what an earlier start fell back to
_TIMES = ("runtime", "samples_per_second", "steps_per_second", "epoch")


def train(step: Step[TrainRecipe]) -> dict[str, Any]:
    """Train in as many processes as the step may run on; see `train_here` for what comes out."""
    return distributed.launch(step) if step.processes * step.nodes > 1 else train_here(step)


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Flush denormals to zero: gradients of saturated sigmoids are such, and a CPU takes 5 times as long with them."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_without_denormals()
def train_here(step: Step[TrainRecipe]) -> dict[str, Any]:
    """Train one stage. Inputs: `parent` (a model folder), `tokens` (a tokens folder).

    Writes `model/` (weights in `training.published_dtype`, the parent's tokenizer) and `log.jsonl` (the trainer's log)
    and returns facts.
    Resumes from the newest checkpoint in `step.scratch`. A run that diverges ends with `model/diverged.json` in place
    of weights. UserError if the method cannot read the view, if the parent diverged, or if the batch cannot be split
    over the processes as it would have to be. Again: out of the job's time, or out of GPU memory, which the next start
    meets with a smaller micro-batch of the same global batch.
    """
    step = replace(step, recipe=_with_steps(step.recipe, step.input("tokens") / "train.parquet"))
    recipe, parent = step.recipe, step.input("parent")
    if facts := diverged.read(parent):
        raise UserError(f"{parent} diverged at step {facts['step']} of its own training: nothing can be trained on it")
    logging.disable_progress_bar()
    method = methods.get(recipe.method)
    _check(recipe, method)
    engine = importlib.import_module(f"trialign.training.{recipe.training.engine}")
    made: Made = engine.make(step, _smaller(step.scratch))
    trainer, number = made.trainer, made.rows["train"]
    lines = ProgressLines(made.tokens * recipe.training.batch / number, step.progress)
    trainer.add_callback(lines)
    tracking.attach(trainer, step)

    # one answer for all: a node's view of a shared folder may be seconds old
    checkpoint = distributed.first_says(newest_checkpoint(step.scratch))
    started = time.monotonic()
    try:
        finite = _run(trainer, checkpoint, step.out / "model")
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(error, method, made, step.scratch) from error
    seconds = time.monotonic() - started
    final = _final(trainer) if finite else None
    if finite:
        _save(trainer, recipe, parent, step.out / "model")
    if distributed.is_first():
        _write_log(trainer, step.out / "log.jsonl")
    return {
        "trainer": _resolved(trainer.args),
        "split": made.split,
        "nodes": step.nodes,
        "attention": trainer.model.config._attn_implementation,
        "rows": made.rows,
        "left_out": made.left_out,
        "last_batch": number % recipe.training.batch or recipe.training.batch,
        "steps": trainer.state.global_step,
        "tokens": round(made.tokens * trainer.state.epoch),
        "resumed_at": int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else None,
        "first_step_after": lines.first_step_after,
        "train_seconds": round(seconds, 3),
        "final": final,
        "reference": made.reference,
    }


def _with_steps(recipe: TrainRecipe, tokens: Path) -> TrainRecipe:
    """Return the recipe with the number of steps that `tokens_of` stands for, if it says so; at most `max_steps`.

    As many as passes over the stage's own view take to read the tokens of `epochs` passes over the other one.
    """
    training = recipe.training
    if training.tokens_of is None:
        return recipe
    own, other = (Examples(tokens, view) for view in (recipe.view, training.tokens_of))
    steps = round(math.ceil(len(own) / training.batch) * training.epochs * other.tokens() / own.tokens())
    steps = min(steps, training.max_steps or steps)
    return recipe.model_copy(update={"training": training.model_copy(update={"max_steps": steps})})


def _smaller(scratch: Path) -> int | None:
    """Return what an earlier start fell back to: prompts or tokens at a time."""
    fallen = scratch / _SMALLER
    return int(fallen.read_text()) if fallen.is_file() else None


def _out_of_memory(error: Exception, method: Method, made: Made, scratch: Path) -> Exception:
    """Return what to raise where a GPU was too small: half as much at a time, where the loss stays the same."""
    size, unit = made.at_a_time
    what = f"out of GPU memory with {size} {unit} at a time on {made.split['processes']} device(s)"
    if not made.shrinks or size == 1:
        more = "more GPUs (resources.train.gpus, .nodes) or larger ones" if made.shrinks else "larger GPUs"
        whole = f"; TRL's loss of {method.name} needs its batch whole on one GPU, more do not help"
        return UserError(
            f"{what} ({str(error).splitlines()[0]}): take {more}, training.gradient_checkpointing: true, or a smaller "
            "max_length of the data" + ("" if made.shrinks else whole)
        )
    (scratch / _SMALLER).write_text(str(size // 2))
    return Again(f"{what}; goes on with {size // 2}")


def _check(recipe: TrainRecipe, method: Method) -> None:
    if recipe.view not in method.views:
        raise UserError(f"method {method.name} cannot read view {recipe.view!r}; it reads {', '.join(method.views)}")
    if recipe.training.packing and method.name != "sft":
        raise UserError(f"method {method.name}: training.packing is for sft alone; leave it out of this stage")
    if torch.cuda.device_count() > int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible to a training on {os.environ.get('LOCAL_WORLD_SIZE', '1')} "
            "(of a node): set resources.train.gpus to their number, or make fewer visible (CUDA_VISIBLE_DEVICES=0)"
        )


def _run(trainer: Trainer, checkpoint: Path | None, model: Path) -> bool:
    """Train from `checkpoint`, or from the start. Returns False for a run that diverged, and marks `model` as such."""
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Diverged as error:
        print(f"diverged: {error}; the run is published without weights and scored nowhere", file=sys.stderr)
        if distributed.is_first():
            diverged.write(model, error.facts)
        return False
    return True


def _final(trainer: Trainer) -> dict[str, float]:
    """Return the loss of the last step and what the trainer measures on the evaluation rows."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    measured = {key.removeprefix("eval_"): value for key, value in trainer.evaluate().items()}
    return {"train_loss": losses[-1], **{key: measured[key] for key in sorted(measured) if key not in _TIMES}}


def _save(trainer: Trainer, recipe: TrainRecipe, parent: Path, model: Path) -> None:
    """Write the whole model at the published dtype, by the first process, from what all of them hold."""
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if not distributed.is_first():
        return
    plain = trainer.accelerator.unwrap_model(trainer.model)
    plain.config.use_cache = True  # the trainer turned it off, and generation is slow without
    dtype = torch.bfloat16 if recipe.training.published_dtype == "bf16" else torch.float32
    cast = {weight.data_ptr(): weight.to(dtype) for weight in weights.values()}  # what is tied stays tied
    plain.save_pretrained(model, state_dict={name: cast[weight.data_ptr()] for name, weight in weights.items()})
    plain.config.dtype = dtype  # save_pretrained took that of the weights that were trained
    plain.config.save_pretrained(model)
    for pattern in _TOKENIZER_FILES:
        for file in parent.glob(pattern):
            shutil.copyfile(file, model / file.name)


def _write_log(trainer: Trainer, path: Path) -> None:
    """Write the trainer's log as JSON lines; values that are not finite become strings, for JSON has none."""
    with path.open("w", encoding="utf-8") as file:
        for entry in trainer.state.log_history:
            values = {key: value if math.isfinite(value) else str(value) for key, value in entry.items()}
            file.write(json.dumps(values, allow_nan=False) + "\n")


def _resolved(args: Any) -> dict[str, Any]:
    """Return every field of the resolved config as JSON values, without paths and tokens of the machine."""
    left_out = ("output_dir", "hub_token")
    return {key: value for key, value in json.loads(args.to_json_string()).items() if key not in left_out}
