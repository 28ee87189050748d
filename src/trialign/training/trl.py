"""Train one stage with a stock TRL 1.16 trainer, fed our token ids, every field of its config set from the recipe.

The tokens file becomes a data set of branches; the stock trainer trains on it, with its own data preparation left out
and its checkpoints written whole; what comes out is a model folder, the log and the facts of the run.

A batch counts prompts, for every method. The last batch of an epoch may be smaller: it is trained like the others, its
loss averaged over its own prompts. All trainers see the prompts in the same order, drawn from the seed and the epoch.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import itertools
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
)
from transformers.utils import is_flash_attn_2_available, logging

from trialign import diverged, methods
from trialign.errors import Again, UserError
from trialign.methods import Method, TrlSpec
from trialign.recipes import TrainRecipe, View
from trialign.settings import Training
from trialign.steps import Step
from trialign.training import distributed
from trialign.training.callbacks import (
    CheckpointClock,
    Diverged,
    Progress,
    StopDiverged,
    newest_checkpoint,
    publish_checkpoint,
)

# The columns of the tokens file that are chosen and rejected in each view.
_PAIRS: Mapping[View, tuple[str, str]] = {
    "chosen-rejected": ("chosen", "rejected"),
    "reference-rejected": ("reference", "rejected"),
    "triple": ("chosen", "rejected"),
}
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")
_MICRO_BATCH = "micro_batch"  # in the scratch folder: what an earlier start fell back to
_TIMES = ("runtime", "samples_per_second", "steps_per_second", "epoch")


def train(step: Step[TrainRecipe]) -> dict[str, Any]:
    """Train in as many processes as the step may run on; see `train_here` for what comes out."""
    return distributed.launch(step) if step.processes * step.nodes > 1 else train_here(step)


def train_here(step: Step[TrainRecipe]) -> dict[str, Any]:
    """Train one stage. Inputs: `parent` (a model folder), `tokens` (a tokens folder).

    Writes `model/` (weights in `training.published_dtype`, the parent's tokenizer) and `log.jsonl` (the trainer's log)
    and returns facts.
    Resumes from the newest checkpoint in `step.scratch`. A run that diverges ends with `model/diverged.json` in place
    of weights. UserError if the method cannot read the view, if the parent diverged, or if the batch cannot be split
    over the processes as it would have to be. Again: out of the job's time, or out of GPU memory, which the next start
    meets with a smaller micro-batch of the same global batch.
    """
    recipe, parent = step.recipe, step.input("parent")
    if facts := diverged.read(parent):
        raise UserError(f"{parent} diverged at step {facts['step']} of its own training: nothing can be trained on it")
    logging.disable_progress_bar()
    method = methods.get(recipe.method)
    _check(recipe, method)
    rows = {split: read_rows(step.input("tokens") / f"{split}.parquet", recipe) for split in ("train", "eval")}
    rows["train"], left_out = _packed(rows["train"], recipe)
    split = split_batch(recipe, method, step.processes * step.nodes, len(rows["train"]), _smaller(step.scratch))
    trainer = build_trainer(recipe, parent, rows, step.scratch, split)
    tokens_per_epoch = _tokens(rows["train"])
    trainer.add_callback(Progress(tokens_per_epoch * recipe.training.batch / len(rows["train"])))

    # one answer for all: a node's view of a shared folder may be seconds old
    checkpoint = distributed.first_says(newest_checkpoint(step.scratch))
    started = time.monotonic()
    try:
        finite = _run(trainer, checkpoint, step.out / "model")
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(error, method, split, step.scratch) from error
    seconds = time.monotonic() - started
    final = _final(trainer) if finite else None
    if finite:
        _save(trainer, recipe, parent, step.out / "model")
    if distributed.is_first():
        _write_log(trainer, step.out / "log.jsonl")
    return {
        "trainer": _resolved(trainer.args),
        "split": split._asdict(),
        "nodes": step.nodes,
        "attention": trainer.model.config._attn_implementation,
        "rows": {name: len(each) for name, each in rows.items()},
        "left_out": left_out,
        "last_batch": len(rows["train"]) % recipe.training.batch or recipe.training.batch,
        "steps": trainer.state.global_step,
        "tokens": round(tokens_per_epoch * trainer.state.epoch),
        "resumed_at": int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else None,
        "train_seconds": round(seconds, 3),
        "final": final,
        "reference": "the parent, as a second model" if method.needs_reference else None,
    }


def read_rows(file: Path, recipe: TrainRecipe) -> datasets.Dataset:
    """Return the rows of a tokens file, one a prompt, in the columns that the recipe's trainer reads."""
    table = pq.read_table(file)
    if not len(table):
        raise UserError(f"{file} has no rows: nothing to train or to evaluate on; give its data more rows")
    if recipe.view == "conversation":
        columns = _conversations(table)
    else:
        branches = {name: table[name].to_pylist() for name in ("prompt", "reference", "chosen", "rejected")}
        columns = _LAYOUTS[_spec(recipe).trainer.rpartition(".")[2]](branches, recipe.view)
    return _Tokenised(datasets.table.InMemoryTable(pa.table(columns)))


class Split(NamedTuple):
    """How a global batch is computed: `accumulation` times `micro_batch` prompts on each of `processes` devices."""

    processes: int
    micro_batch: int
    accumulation: int


def split_batch(recipe: TrainRecipe, method: Method, processes: int, rows: int, at_most: int | None = None) -> Split:
    """Return the split of the recipe's global batch over `processes`, in micro-batches of `at_most` so many prompts.

    UserError where it does not divide, where TRL's loss of the method would depend on the split, and where a last batch
    of fewer prompts could not be split like the others (rows: how many prompts there are).
    """
    batch = recipe.training.batch
    micro = min(recipe.training.micro_batch or max(1, batch // processes), at_most or batch)
    if micro * processes == batch and processes == 1:
        return Split(1, batch, 1)
    if method.micro_batch_is_global:
        raise UserError(
            f"method {method.name}: TRL's loss depends on how a batch is split, so it must be whole on one device: set "
            "resources.train: {gpus: 1, nodes: 1} and leave training.micro_batch out"
        )
    if batch % (micro * processes):
        raise UserError(
            f"training.batch={batch} does not divide into micro-batches of {micro} on {processes} devices; give a "
            "training.micro_batch, resources.train.gpus and .nodes whose product divides it"
        )
    if rows % batch:
        raise UserError(
            f"{rows} rows leave a last batch of {rows % batch}, which cannot be split as batches of {batch} are; set "
            f"the data's train_rows so that batch divides it ({rows - rows % batch}), or train on one device in one "
            "micro-batch"
        )
    return Split(processes, micro, batch // (micro * processes))


def _smaller(scratch: Path) -> int | None:
    """Return the micro-batch that an earlier start fell back to."""
    fallen = scratch / _MICRO_BATCH
    return int(fallen.read_text()) if fallen.is_file() else None


def _out_of_memory(error: Exception, method: Method, split: Split, scratch: Path) -> Exception:
    """Return what to raise where a GPU was too small: half the micro-batch next time, where the loss stays the same."""
    what = f"out of GPU memory with {split.micro_batch} prompts at a time on {split.processes} device(s)"
    if method.micro_batch_is_global or split.micro_batch == 1:
        whole = method.micro_batch_is_global
        more = "larger GPUs" if whole else "more GPUs (resources.train.gpus, .nodes) or larger ones"
        return UserError(
            f"{what} ({str(error).splitlines()[0]}): take {more}, training.gradient_checkpointing: true, or a smaller "
            "max_length of the data"
            + (f"; TRL's loss of {method.name} needs its batch whole on one GPU, more do not help" if whole else "")
        )
    (scratch / _MICRO_BATCH).write_text(str(split.micro_batch // 2))
    return Again(f"{what}; goes on with {split.micro_batch // 2}")


def build_trainer(
    recipe: TrainRecipe, parent: Path, rows: Mapping[str, datasets.Dataset], scratch: Path, split: Split
) -> Trainer:
    """Return the recipe's stock trainer, ready to train the model in `parent` on `rows` ("train" and "eval").

    Its checkpoints go to `scratch`.
    """
    spec = _spec(recipe)
    stock, config = _import(spec.trainer), _import(spec.config)
    model, tokenizer = _load(parent, recipe.training.dropout)
    fields = _fields(recipe, config, max(map(_longest, rows.values())), split)
    arguments: dict[str, Any] = {}
    if methods.get(recipe.method).needs_reference:
        arguments["ref_model"] = copy.deepcopy(model)
    if stock.__name__ == "KTOTrainer":
        arguments["data_collator"] = _unpairing(tokenizer.pad_token_id, rows["train"])
    trainer = spec.adapt(_fed(stock, scratch))(
        model=model,
        args=config(**fields, **spec.fields, output_dir=str(scratch / "writing")),
        train_dataset=rows["train"],
        eval_dataset=rows["eval"],
        processing_class=tokenizer,
        callbacks=[StopDiverged(), CheckpointClock()],
        **arguments,
    )
    # KTOTrainer insists on "sequential" while it is built, for the mismatches that it would take from neighbours.
    trainer.args.train_sampling_strategy = "random"
    trainer.remove_callback(PrinterCallback)
    return trainer


def _spec(recipe: TrainRecipe) -> TrlSpec:
    method = methods.get(recipe.method)
    return method.trl(method.parse(recipe.params))


def _check(recipe: TrainRecipe, method: Method) -> None:
    if recipe.view not in method.views:
        raise UserError(f"method {method.name} cannot read view {recipe.view!r}; it reads {', '.join(method.views)}")
    if method.name == "kto" and recipe.training.batch < 2:
        raise UserError("method kto: training.batch=1: its KL term needs another prompt in the batch; use 2 or more")
    if recipe.training.packing and method.name != "sft":
        raise UserError(f"method {method.name}: training.packing is for sft alone; leave it out of this stage")
    if torch.cuda.device_count() > int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible to a training on {os.environ.get('LOCAL_WORLD_SIZE', '1')} "
            "(of a node): set resources.train.gpus to their number, or make fewer visible (CUDA_VISIBLE_DEVICES=0)"
        )


def _import(path: str) -> type:
    """Return the class at an import path; only the trainer that is used is imported, for each takes seconds."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _load(parent: Path, dropout: float) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the parent in fp32, every dropout of its config set to `dropout`, and its tokenizer with a pad token."""
    config = AutoConfig.from_pretrained(parent, trust_remote_code=False)
    for key, value in config.to_dict().items():
        if key.endswith(("dropout", "pdrop")) and isinstance(value, int | float):
            setattr(config, key, dropout)
    model = AutoModelForCausalLM.from_pretrained(
        parent,
        config=config,
        dtype=torch.float32,
        attn_implementation=_attention(),
        trust_remote_code=False,
        use_safetensors=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(parent, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _attention() -> str:
    """Return the attention to train with: flash attention where it is installed and there is a GPU for it."""
    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


def _sharded(training: Training) -> dict[str, Any]:
    """Return the fields that shard weights, gradients and optimiser over the processes (FSDP2, by accelerate)."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "FULL_STATE_DICT",
            "activation_checkpointing": training.gradient_checkpointing,
        },
        "activation_checkpointing": False,  # FSDP's own, which gathers the weights once less
        "ddp_backend": None if torch.cuda.is_available() else "gloo",
    }


def _fields(recipe: TrainRecipe, config: type, longest: int, split: Split) -> dict[str, Any]:
    """Return the config's fields that do not belong to the method's loss, those that `config` has."""
    training = recipe.training
    fields = {
        # Batches: prompts; on one device one micro-batch each, the last of an epoch as small as it comes.
        "per_device_train_batch_size": split.micro_batch,
        "per_device_eval_batch_size": split.micro_batch,
        "gradient_accumulation_steps": split.accumulation,
        "average_tokens_across_devices": True,
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        "dataloader_drop_last": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "train_sampling_strategy": "sequential",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "full_determinism": False,
        # Optimiser.
        "optim": "adamw_torch_fused",
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": _SCHEDULES[training.schedule],
        "lr_scheduler_kwargs": None,
        "warmup_steps": training.warmup,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "max_grad_norm": training.max_grad_norm,
        "neftune_noise_alpha": None,
        # Precision: the weights are fp32; bf16 is autocast.
        "bf16": training.precision == "bf16",
        "fp16": False,
        "tf32": None,
        "use_cpu": not torch.cuda.is_available(),
        "torch_compile": False,
        "use_liger_kernel": False,
        "activation_checkpointing": training.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "activation_offloading": False,
        "disable_dropout": training.dropout == 0,
        # Data: token ids as they are. No row is longer than max_length, so nothing is cut.
        "max_length": longest,
        "remove_unused_columns": False,
        "trust_remote_code": False,
        "model_init_kwargs": None,
        "dataset_num_proc": None,
        # Log every step; evaluate once, at the end; checkpoints come from the clock.
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
        "eval_strategy": "no",
        "prediction_loss_only": True,
        "save_strategy": "no",
        "save_only_model": False,
        "push_to_hub": False,
        **(_sharded(training) if split.processes > 1 else {}),
    }
    known = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in fields.items() if name in known}


def _fed(stock: type[Trainer], scratch: Path) -> type[Trainer]:
    """Return `stock` without data preparation, telemetry and model cards, and with whole checkpoints in `scratch`."""
    if distributed.is_first():
        shutil.rmtree(scratch / "writing", ignore_errors=True)

    class Fed(stock):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _send_telemetry(self) -> None: ...

        def create_model_card(self, *args: Any, **kwargs: Any) -> None: ...

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if distributed.is_first():
                publish_checkpoint(scratch / "writing" / f"checkpoint-{self.state.global_step}", scratch)
            self.accelerator.wait_for_everyone()

    return Fed


def _packed(rows: datasets.Dataset, recipe: TrainRecipe) -> tuple[datasets.Dataset, int]:
    """Return conversations in rows of `training.packing` tokens, by TRL, and how many of these rows are left out.

    Rows that do not fill a last batch, which could not be split over devices as the others are, are left out: they are
    the end of a shuffled order. How many there will be, no config can know. Where the recipe packs nothing, all rows
    stay as they are.
    """
    if recipe.training.packing is None:
        return rows, 0
    from trl.data_utils import pack_dataset

    shuffled = datasets.Dataset(rows.data).shuffle(seed=recipe.seed)  # else neighbours in the file stay neighbours
    packed = pack_dataset(shuffled, recipe.training.packing, "wrapped")
    left_out = len(packed) % recipe.training.batch if len(packed) > recipe.training.batch else 0
    return _Tokenised(packed.data.slice(0, len(packed) - left_out)), left_out


class _Tokenised(datasets.Dataset):
    """Rows of token ids. CPOTrainer and ORPOTrainer prepare data by `map`: nothing is left for them to do."""

    def map(self, *args: Any, **kwargs: Any) -> _Tokenised:
        return self


Branches = Mapping[str, list[list[int]]]


def _conversations(table: pa.Table) -> dict[str, Any]:
    """Return input_ids and labels, -100 where the loss mask is 0."""
    ids, mask = (table[name].combine_chunks() for name in ("input_ids", "loss_mask"))
    flat = pc.if_else(pc.equal(mask.flatten(), 1), ids.flatten(), pa.scalar(-100, pa.int32()))
    lengths = pc.list_value_length(ids).to_pylist()
    offsets = pa.array([0, *itertools.accumulate(lengths)], pa.int32())
    return {"input_ids": ids, "labels": pa.ListArray.from_arrays(offsets, flat)}


def _sft(branches: Branches, view: View) -> dict[str, Any]:
    pairs = list(zip(branches["prompt"], branches["reference"], strict=True))
    return {"input_ids": [p + r for p, r in pairs], "labels": [[-100] * len(p) + r for p, r in pairs]}


def _pair(branches: Branches, view: View) -> dict[str, Any]:
    chosen, rejected = _PAIRS[view]
    return {
        "prompt_ids": branches["prompt"],
        "chosen_ids": branches[chosen],
        "rejected_ids": branches[rejected],
    }


def _triple(branches: Branches, view: View) -> dict[str, Any]:
    return {**_pair(branches, view), "reference_ids": branches["reference"]}


def _whole_pair(branches: Branches, view: View) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for side, name in zip(("chosen", "rejected"), _PAIRS[view], strict=True):
        pairs = list(zip(branches["prompt"], branches[name], strict=True))
        columns[f"{side}_input_ids"] = [p + r for p, r in pairs]
        columns[f"{side}_attention_mask"] = [[1] * len(p + r) for p, r in pairs]
        columns[f"{side}_labels"] = [[-100] * len(p) + r for p, r in pairs]
    return columns


_LAYOUTS: Mapping[str, Callable[[Branches, View], dict[str, Any]]] = {
    "SFTTrainer": _sft,
    "DPOTrainer": _pair,
    "KTOTrainer": _pair,
    "TPOTrainer": _triple,
    "CPOTrainer": _whole_pair,
    "ORPOTrainer": _whole_pair,
}


def _unpairing(pad_token_id: int, rows: datasets.Dataset) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Return KTO's collator for pairs: the batch's chosen responses, then its rejected ones, each with a mismatch.

    The mismatch is the same side's response to the batch's previous prompt. TRL rotates rows instead, by which a
    response can meet its own prompt. A batch of one prompt borrows a prompt from the start of `rows`.
    """
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    if len(rows) < 2:
        raise UserError("method kto: one training row: its KL term needs responses to another prompt; give it more")
    collate = DataCollatorForUnpairedPreference(pad_token_id=pad_token_id)
    spare = [rows[0], rows[1]]

    def unpair(batch: list[dict[str, Any]]) -> dict[str, Any]:
        others = batch[-1:] + batch[:-1] if len(batch) > 1 else [spare[1] if batch[0] == spare[0] else spare[0]]
        return collate(
            [
                {
                    "prompt_ids": row["prompt_ids"],
                    "completion_ids": row[f"{side}_ids"],
                    "KL_completion_ids": other[f"{side}_ids"],
                    "label": side == "chosen",
                }
                for side in ("chosen", "rejected")
                for row, other in zip(batch, others, strict=True)
            ]
        )

    return unpair


def _lengths(rows: datasets.Dataset) -> list[list[int]]:
    """Return, row by row, the length in tokens of each sequence that the policy reads: prompt and one response."""
    table = rows.data.table
    count = {name: pc.list_value_length(table[name]).to_pylist() for name in table.column_names}
    if "prompt_ids" in count:
        prompts = count.pop("prompt_ids")
        return [[p + c for p, c in zip(prompts, lengths, strict=True)] for lengths in count.values()]
    return [lengths for name, lengths in count.items() if name.endswith("input_ids")]


def _tokens(rows: datasets.Dataset) -> int:
    return sum(sum(lengths) for lengths in _lengths(rows))


def _longest(rows: datasets.Dataset) -> int:
    return max(max(lengths) for lengths in _lengths(rows))


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
