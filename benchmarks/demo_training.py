"""The demo's trainings by either engine: seconds of whole processes, and where the runs end.

    python -m benchmarks.demo_training                 after make demo, in whose results the parents and tokens lie

Each lineage is trained anew, by both engines in turns, by the command that its rule ran (the .sh beside its log), in a
folder of its own. Writes results/bench/demo_training.json: for each lineage the wall and CPU seconds of the process,
those of the trainer alone and those from the process's start to its first step (medians), the ratio of CPU seconds, and
the evaluation loss that each engine ends with. The making of the parent's log-probabilities, which DPO, IPO and KTO
share over their betas, is in the demo's own log, not counted here.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

REPOSITORY = Path(__file__).parents[1]
DEMO = Path("results/demo")
RESULT = REPOSITORY / "results/bench/demo_training.json"
TURNS = 2
LINEAGES = (
    "mistral+sft", "mistral+sft+dpo@beta=0.1", "mistral+sft+kto@beta=0.1", "mistral+orpo@beta=0.1",
    "mistral+tpo@alpha=0.9@beta=0.2", "phi2+tpo@alpha=1@beta=0.1",
)  # fmt: skip


def main() -> None:
    """Train all lineages by both engines, and write the record."""
    records = []
    for lineage in LINEAGES:
        runs = [{engine: trained(lineage, engine) for engine in ("trl", "packed")} for _ in range(TURNS)]
        record: dict[str, Any] = {"lineage": lineage}
        for engine in ("trl", "packed"):
            found = [run[engine] for run in runs]
            record[engine] = {name: round(median(each[name] for each in found), 4) for name in found[0]}
        record["ratio"] = round(record["trl"]["cpu_s"] / record["packed"]["cpu_s"], 2)
        records.append(record)
        print(json.dumps(record), flush=True)
    sums = {engine: sum(record[engine]["cpu_s"] for record in records) for engine in ("trl", "packed")}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(
        json.dumps({"ratio": round(sums["trl"] / sums["packed"], 2), "records": records}, indent=1) + "\n"
    )


def trained(lineage: str, engine: str, results: Path = DEMO) -> dict[str, float]:
    """Train a lineage of the demo by an engine in a process of its own. Returns seconds, and its evaluation loss."""
    with TemporaryDirectory() as folder:
        command = command_of(lineage, engine, results, Path(folder))
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        facts = json.loads((Path(folder) / "run/run.json").read_text())["facts"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "wall_s": wall, "cpu_s": cpu, "start_s": facts["first_step_after"], "train_s": facts["train_seconds"],
        "eval_loss": facts["final"]["loss"],
    }  # fmt: skip


def command_of(lineage: str, engine: str, results: Path, folder: Path) -> list[str]:
    """Return the command that trained a lineage, with another engine, root, output and log."""
    script = (REPOSITORY / results / f"logs/train/{lineage}/seed1.sh").read_text().splitlines()[-1]
    words = shlex.split(script.partition(" exec ")[2])
    recipe = json.loads(words[2])
    recipe["training"]["engine"] = engine
    words[2] = json.dumps(recipe)
    ours = {"--root": folder, "--output": folder / "run", "--log": folder / "log"}
    for name, path in ours.items():
        words[words.index(name) + 1] = str(path)
    return [word for word in words if engine == "packed" or not word.startswith("reference=")]


if __name__ == "__main__":
    main()
