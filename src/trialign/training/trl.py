"""Train one stage with a stock TRL 1.16 trainer, fed our token ids, every field of its config set from the recipe.

The tokens file becomes a data set of branches; the stock trainer trains on it, with its own data preparation left out
and its checkpoints written whole. It is what the packed engine is compared with.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PrinterCallback, Trainer

from trialign import methods
from trialign.errors import UserError
from trialign.methods import Method, TrlSpec
from trialign.recipes import TrainRecipe, View
from trialign.steps import Step
from trialign.training.callbacks import CheckpointClock, StopDiverged
from trialign.training.common import Made, fields_of, load_parent, with_whole_checkpoints
from trialign.training.examples import previous_prompts
from trialign.training.wrapping import wrapped

# The columns of the tokens file that are chosen and rejected in each view.
_PAIRS: Mapping[View, tuple[str, str]] = {
    "chosen-rejected": ("chosen", "rejected"),
    "reference-rejected": ("reference", "rejected"),
    "triple": ("chosen", "rejected"),
}


def make(step: Step[TrainRecipe], at_most: int | None) -> Made:
    """Return the step's trainer. at_most: prompts of a micro-batch; see `split_batch` for the errors."""
    recipe, method = step.recipe, methods.get(step.recipe.method)
    rows = {split: read_rows(step.input("tokens") / f"{split}.parquet", recipe) for split in ("train", "eval")}
    rows["train"], left_out = _packed(rows["train"], recipe)
    split = split_batch(recipe, method, step.processes * step.nodes, len(rows["train"]), at_most)
    return Made(
        trainer=build_trainer(recipe, step.input("parent"), rows, step.scratch, split),
        split=split._asdict(),
        at_a_time=(split.micro_batch, "prompts"),
        shrinks=not method.micro_batch_is_global,
        rows={name: len(each) for name, each in rows.items()},
        left_out=left_out,
        tokens=_tokens(rows["train"]),
        reference="the parent, as a second model" if method.needs_reference else None,
    )


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


def build_trainer(
    recipe: TrainRecipe, parent: Path, rows: Mapping[str, datasets.Dataset], scratch: Path, split: Split
) -> Trainer:
    """Return the recipe's stock trainer, ready to train the model in `parent` on `rows` ("train" and "eval").

    Its checkpoints go to `scratch`.
    """
    spec = _spec(recipe)
    stock, config = _import(spec.trainer), _import(spec.config)
    model, tokenizer = load_parent(parent, recipe.training.dropout)
    longest = max(map(_longest, rows.values()))  # no row is cut
    fields = fields_of(recipe, config, **split._asdict())
    arguments: dict[str, Any] = {}
    if methods.get(recipe.method).needs_reference:
        arguments["ref_model"] = copy.deepcopy(model)
    if stock.__name__ == "KTOTrainer":
        arguments["data_collator"] = _unpairing(tokenizer.pad_token_id)
    trainer = spec.adapt(_fed(with_whole_checkpoints(stock, scratch)))(
        model=model,
        args=config(**fields, **spec.fields, max_length=longest, output_dir=str(scratch / "writing")),
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


def _import(path: str) -> type:
    """Return the class at an import path; only the trainer that is used is imported, for each takes seconds."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _fed(stock: type[Trainer]) -> type[Trainer]:
    """Return `stock` without data preparation and telemetry."""

    class Fed(stock):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _send_telemetry(self) -> None: ...

    return Fed


def _packed(rows: datasets.Dataset, recipe: TrainRecipe) -> tuple[datasets.Dataset, int]:
    """Return conversations in rows of `training.packing` tokens, and how many of these rows are left out.

    Rows that do not fill a last batch, which could not be split over devices as the others are, are left out: they are
    the end of a shuffled order. How many there will be, no config can know. Where the recipe packs nothing, all rows
    stay as they are.
    """
    if recipe.training.packing is None:
        return rows, 0
    packed = wrapped(rows.data.table, recipe.training.packing, recipe.seed)
    left_out = len(packed) % recipe.training.batch if len(packed) > recipe.training.batch else 0
    return _Tokenised(datasets.table.InMemoryTable(packed.slice(0, len(packed) - left_out))), left_out


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


def _mismatched_pair(branches: Branches, view: View) -> dict[str, Any]:
    """Return pairs, each with the responses to the previous prompt that is another one (`previous_prompts`)."""
    pairs = _pair(branches, view)
    others = previous_prompts(branches["prompt"])
    mismatches = {
        f"mismatched_{side}_ids": [pairs[f"{side}_ids"][k] for k in others] for side in ("chosen", "rejected")
    }
    return pairs | mismatches


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
    "KTOTrainer": _mismatched_pair,
    "TPOTrainer": _triple,
    "CPOTrainer": _whole_pair,
    "ORPOTrainer": _whole_pair,
}


def _unpairing(pad_token_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Return KTO's collator for pairs: the batch's chosen responses, then its rejected ones, each with a mismatch.

    The mismatch is the same side's response to the data's previous prompt. TRL rotates rows instead, by which a
    response can meet its own prompt.
    """
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    collate = DataCollatorForUnpairedPreference(pad_token_id=pad_token_id)

    def unpair(batch: list[dict[str, Any]]) -> dict[str, Any]:
        return collate(
            [
                {
                    "prompt_ids": row["prompt_ids"],
                    "completion_ids": row[f"{side}_ids"],
                    "KL_completion_ids": row[f"mismatched_{side}_ids"],
                    "label": side == "chosen",
                }
                for side in ("chosen", "rejected")
                for row in batch
            ]
        )

    return unpair


def _lengths(rows: datasets.Dataset) -> list[list[int]]:
    """Return, row by row, the length in tokens of each sequence that the policy reads: prompt and one response."""
    table = rows.data.table
    count = {name: pc.list_value_length(table[name]).to_pylist() for name in table.column_names}
    count = {name: lengths for name, lengths in count.items() if not name.startswith("mismatched")}
    if "prompt_ids" in count:
        prompts = count.pop("prompt_ids")
        return [[p + c for p, c in zip(prompts, lengths, strict=True)] for lengths in count.values()]
    return [lengths for name, lengths in count.items() if name.endswith("input_ids")]


def _tokens(rows: datasets.Dataset) -> int:
    return sum(sum(lengths) for lengths in _lengths(rows))


def _longest(rows: datasets.Dataset) -> int:
    return max(max(lengths) for lengths in _lengths(rows))
