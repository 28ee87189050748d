"""The step that chooses one of several runs of a method, each with other settings, by the data's evaluation rows.

Methods that compare responses are chosen by their accuracy: how often the preferred response of a held-out pair leads
by the method's own margin, which no temperature or weight of a loss shapes. SFT is chosen by its held-out loss. Neither
looks at a benchmark. Of equals the first is taken.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from trialign import diverged
from trialign.errors import UserError
from trialign.recipes import ChooseRecipe
from trialign.steps import RUN_JSON, SNAKEMAKE_TIMESTAMP, Step, link_file

# measure -> its names in what the engines record, and whether more is better
MEASURES = {"accuracy": (("accuracies", "rewards/accuracies"), True), "loss": (("loss",), False)}
MODEL, LOG = "model", "log.jsonl"


def choose(step: Step[ChooseRecipe]) -> dict[str, Any]:
    """Publish the best candidate's `model/` and `log.jsonl` as this run's. Inputs: `candidate`, run folders in order.

    Returns facts: `chosen`, the `measure` and what each candidate reached (None: it diverged), and the chosen run's own
    facts. Where all diverged, so has this one. UserError for a candidate whose record lacks the measure.
    """
    recipe, folders = step.recipe, step.inputs["candidate"]
    measure = "loss" if recipe.method == "sft" else "accuracy"
    reached = dict(zip(recipe.candidates, (_reached(folder, measure) for folder in folders), strict=True))
    found = {name: value for name, value in reached.items() if value is not None}
    best = max if MEASURES[measure][1] else min
    chosen = best(found, key=found.__getitem__) if found else recipe.candidates[0]
    folder = folders[recipe.candidates.index(chosen)]
    own_time = shutil.ignore_patterns(SNAKEMAKE_TIMESTAMP)  # as one file, a new time of one run would be both's
    shutil.copytree(folder / MODEL, step.out / MODEL, copy_function=link_file, ignore=own_time)
    link_file(str(folder / LOG), str(step.out / LOG))
    return _record(folder)["facts"] | {"chosen": chosen, "measure": measure, "reached": reached}


def _reached(folder: Path, measure: str) -> float | None:
    if diverged.read(folder / MODEL):
        return None
    final = _record(folder)["facts"]["final"]
    for name in MEASURES[measure][0]:
        if name in final:
            return final[name]
    raise UserError(f"{folder / RUN_JSON}: facts.final has no {measure} of the evaluation rows: train this run again")


def _record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RUN_JSON).read_text())
