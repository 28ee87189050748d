"""The parent's log-probabilities of a data set's responses, once for all methods and parameters that compare with it.

A file of the DAG instead of a second model in memory: of each row the log-probability of each response, summed over its
tokens, by the packed engine at the precision that training has. With `mismatched`, for KTO, also of the responses to
the file's previous prompt (`Examples.mismatched`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from trialign import diverged
from trialign.errors import UserError
from trialign.recipes import ReferenceRecipe
from trialign.steps import Step
from trialign.training import attention, logps
from trialign.training.common import load_parent
from trialign.training.examples import Examples
from trialign.training.rows import Example, make_row, plan

ROW_TOKENS = 8192
MISMATCHED = "mismatched:"  # before a branch's name
EXAMPLES = 256  # are planned into rows at a time

# Branch -> the log-probability of each row's response, by the row's place in the tokens file.
Reference = Mapping[str, NDArray[np.float64]]


def compute(step: Step[ReferenceRecipe]) -> dict[str, Any]:
    """Write `train.parquet` and `eval.parquet`: one row a prompt, a float64 column for each branch.

    Inputs: `model` (a model folder), `tokens` (a tokens folder). Returns rows and tokens. UserError if the model
    diverged, or if it is one that the packed engine does not know.
    """
    recipe = step.recipe
    if facts := diverged.read(step.input("model")):
        raise UserError(f"{step.input('model')} diverged at step {facts['step']}: nothing can be compared with it")
    model, _ = load_parent(step.input("model"), dropout=0.0)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    data = {split: Examples(step.input("tokens") / f"{split}.parquet", recipe.view) for split in ("train", "eval")}
    attention.prepare(model, max(each.longest(mismatched=recipe.mismatched) for each in data.values()))
    order = logps.attach(model)
    read = 0
    for split, examples in data.items():
        columns = _sums(model, order, examples, [examples[index] for index in range(len(examples))], recipe.precision)
        if recipe.mismatched:
            others = [examples.mismatched(examples[index]) for index in range(len(examples))]
            found = _sums(model, order, examples, others, recipe.precision)
            columns |= {f"{MISMATCHED}{branch}": values for branch, values in found.items()}
        pq.write_table(pa.table(columns), step.out / f"{split}.parquet")
        read += examples.tokens()
    return {"rows": {split: len(each) for split, each in data.items()}, "tokens": read, "branches": sorted(columns)}


def load(folder: Path, split: str) -> Reference:
    """Return what `compute` wrote of a split."""
    table = pq.read_table(folder / f"{split}.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def _sums(
    model: PreTrainedModel, order: logps.Run, data: Examples, examples: Sequence[Example], precision: str
) -> dict[str, NDArray[np.float64]]:
    """Return branch -> log-probabilities, in the order of the examples."""
    found = np.zeros((len(examples), len(data.branches)))
    device = next(model.parameters()).device
    for members in _rows(examples):
        given = logps.Order(make_row([examples[place] for place in members]).to(device), None)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            order(model, given)
        parts = given.logps.double().cpu().split(given.row.lengths.flatten().tolist())
        found[members] = np.array([part.sum().item() for part in parts]).reshape(len(members), -1)
    return dict(zip(data.branches, found.T.copy(), strict=True))


def _rows(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Yield the places of the examples of one row after another."""
    for start in range(0, len(examples), EXAMPLES):
        some = examples[start : start + EXAMPLES]
        (rows,) = plan([example.tokens for example in some], ROW_TOKENS)
        yield from ([start + index for index in row] for row in rows if row)
