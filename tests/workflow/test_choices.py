"""A stage that chooses, through the DAG: its candidates are trained, one is taken, and it alone is evaluated."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from tests.conftest import command

OVERLAY = """
stages:
  tpo_tuned: {candidates: [tpo@alpha=0.9@beta=0.2@learning_rate=1e-6, tpo@alpha=0.9@beta=0.2]}
artifacts:
  table1: null
  table2: null
  figure2: null
  tuned: {rows: [mistral+sft, mistral+tpo_tuned], columns: [arc]}
"""


def test_the_candidate_that_is_best_on_the_evaluation_rows_is_evaluated(finished_study: Path, tmp_path: Path) -> None:
    results = tmp_path / "study"
    shutil.copytree(finished_study / ".store", results / ".store")  # what is made already comes from there
    overlay = tmp_path / "tuned.yaml"
    overlay.write_text(OVERLAY)
    ours = ["--workflow-profile", "none", "--configfile", "config/demo.yaml", "config/test.yaml", str(overlay)]
    ours += ["--config", f"results_dir={results}"]
    done = command("snakemake", *ours, "--cores", "2", "--nolock", "--", f"{results}/tuned.csv")
    assert done.returncode == 0, done.stdout

    names = ["tpo@alpha=0.9@beta=0.2@learning_rate=1e-6", "tpo@alpha=0.9@beta=0.2"]
    finals = [json.loads((results / f"runs/mistral+{name}/seed1/run.json").read_text()) for name in names]
    reached = [record["facts"]["final"]["accuracies"] for record in finals]
    best = names[max(range(2), key=reached.__getitem__)]
    run = results / "runs/mistral+tpo_tuned/seed1"
    facts = json.loads((run / "run.json").read_text())["facts"]
    assert facts["chosen"] == best and list(facts["reached"].values()) == reached
    assert (run / "model/model.safetensors").samefile(results / f"runs/mistral+{best}/seed1/model/model.safetensors")
    with (results / "tuned.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["Chosen"] for row in rows] == ["-", best] and all(float(row["ARC"]) >= 0 for row in rows)
    evaluated = {folder.parents[1].name for folder in results.glob("runs/*/seed1/leaderboard")}
    assert evaluated == {"mistral+sft", "mistral+tpo_tuned"}

    again = command("snakemake", *ours, "--cores", "1", "--nolock", "-n", "--", f"{results}/tuned.csv")
    assert "Nothing to be done" in again.stdout, again.stdout
    pruned = command("trialign", "prune", "--configfile", "config/demo.yaml", "--configfile", "config/test.yaml",
                     "--configfile", str(overlay), "--config", f"results_dir={results}")  # fmt: skip
    assert pruned.returncode == 0, pruned.stdout
