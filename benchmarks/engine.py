"""A training step of the packed engine beside the stock TRL trainer's: seconds and peak memory, ratios with spread.

    python -m benchmarks.engine                        all cases
    python -m benchmarks.engine --case mistral-32k --method tpo --method dpo

Both train the same random model on the same token file, one global batch at a time, each in a process of its own, in
turns; what is compared is CPU time (one thread) and the peak of resident memory above that before the first step. DPO
and KTO read stored log-probabilities of the parent in the packed engine and hold it as a second model in TRL's: the
file's own making, once for all betas, is a figure of its own. Writes results/bench/engine.json, a record for each case
and method: time_ratio and memory_ratio (stock over packed, medians over the turns), their lowest and highest, absolute
figures, tokens a second, the share of the stock batch that is padding, and the seconds that the FLOPs of the packed
tokens take at this machine's measured rate of matrix products (`floor_s`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "results/bench/engine.json"
TURNS = 3
STEPS = 2  # timed in each process, after one that is not
SPECIAL = 3  # ids that no text has
PARAMS: dict[str, dict[str, Any]] = {
    "tpo": {"alpha": 0.9, "beta": 0.2}, "cpo": {"beta": 0.1}, "orpo": {"beta": 0.3}, "dpo": {"beta": 0.1},
    "kto": {"beta": 0.1},
}  # fmt: skip
SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "max_position_embeddings": 2048}
# name -> architecture, layers, vocabulary, mean tokens of prompts and responses (uniform from half to one and a half)
CASES: dict[str, dict[str, Any]] = {
    "mistral-32k": {"model": "mistral", "layers": 4, "vocabulary": 32_000, "prompt": 60, "response": 60, "batch": 16},
    "mistral-4k": {"model": "mistral", "layers": 6, "vocabulary": 4096, "prompt": 60, "response": 60, "batch": 16},
    "phi-4k": {"model": "phi", "layers": 6, "vocabulary": 4096, "prompt": 60, "response": 60, "batch": 16},
    "mistral-4k-long-prompts": {
        "model": "mistral", "layers": 4, "vocabulary": 4096, "prompt": 600, "response": 150, "batch": 4,
    },
}  # fmt: skip


def main() -> None:
    """Measure the cases and methods that are asked for, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="a case; all where none is given")
    parser.add_argument("--method", action="append", choices=PARAMS, help="a method; all where none is given")
    parser.add_argument("--turns", type=int, default=TURNS, help="processes of each engine")
    asked = parser.parse_args()
    rate = matmul_rate()
    records = []
    for case in asked.case or CASES:
        for method in asked.method or PARAMS:
            records.append(compare(case, method, asked.turns, rate))
            print(json.dumps(records[-1]), flush=True)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"matmul_gflops": round(rate / 1e9, 1), "records": records}, indent=1) + "\n")


def compare(case: str, method: str, turns: int, rate: float) -> dict[str, Any]:
    """Return the record of one case and method."""
    with TemporaryDirectory() as folder:
        made = _measured("prepare", case, method, folder)
        pairs = [[_measured(engine, case, method, folder) for engine in ("trl", "packed")] for _ in range(turns)]
    times = [stock["seconds"] / packed["seconds"] for stock, packed in pairs]
    memories = [stock["peak_mb"] / packed["peak_mb"] for stock, packed in pairs]
    stock, packed = (
        {name: round(median(pair[side][name] for pair in pairs), 3) for name in ("seconds", "peak_mb")}
        for side in (0, 1)
    )
    return {
        "case": case, "method": method, **CASES[case],
        "time_ratio": round(median(times), 2), "time_spread": [round(min(times), 2), round(max(times), 2)],
        "memory_ratio": round(median(memories), 2), "memory_spread": [round(min(memories), 2), round(max(memories), 2)],
        "stock": stock, "packed": packed, "reference_s": made["reference_s"],
        "tokens_per_s": round(made["tokens"] / packed["seconds"]), "padding": round(made["padding"], 3),
        "floor_s": round(made["flops"] / rate, 3), "losses": [round(pairs[0][side]["loss"], 5) for side in (0, 1)],
    }  # fmt: skip


def matmul_rate() -> float:
    """Return the FLOPs a second of fp32 matrix products on one thread here."""
    import torch

    torch.set_num_threads(1)
    one, other = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = min(_timed(lambda: one @ other) for _ in range(10))
    return 2 * 1024**3 / best


def _timed(run: Any) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def _measured(what: str, case: str, method: str, folder: str) -> dict[str, Any]:
    """Return what a process of its own found."""
    command = [sys.executable, "-m", "benchmarks.engine_process", what, method, json.dumps(CASES[case]), folder]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(f"{what} {case} {method} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rows(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a batch of triples of random ids."""
    chance = random.Random(0)

    def ids(mean: int) -> list[int]:
        number = chance.randint(mean // 2, 3 * mean // 2)
        return [chance.randrange(SPECIAL, case["vocabulary"]) for _ in range(number)]

    for number in range(case["batch"]):
        responses = {name: ids(case["response"]) for name in ("reference", "chosen", "rejected")}
        yield {"prompt_id": str(number), "prompt": ids(case["prompt"]), **responses}


if __name__ == "__main__":
    main()
