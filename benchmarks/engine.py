"""A training step of the packed engine beside the stock TRL trainer's: time and peak memory, ratios with spread.

    python -m benchmarks.engine                        TPO in all cases of a CPU, the other methods in one of them
    python -m benchmarks.engine --device cuda          those of a GPU (make bench-gpu)
    python -m benchmarks.engine --case mistral-32k --method tpo --method dpo

Both train the same random model on the same token file, one global batch at a time, each in a process of its own, in
turns. On a CPU what is compared is CPU time (one thread, fp32) and the peak of resident memory above that before the
first step; on a GPU time (bf16) and the peak of allocated memory above that. DPO and KTO read stored log-probabilities
of the parent in the packed engine and hold it as a second model in TRL's: the file's own making, once for all betas, is
a figure of its own (`reference_s`).

Writes results/bench/engine.json (engine-cuda.json), a record for each case and method: time_ratio and memory_ratio
(stock over packed, medians over the turns), their lowest and highest, absolute figures, tokens a second, the share of
the stock batch that is padding, the seconds that the FLOPs of the packed tokens take at this machine's measured rate of
matrix products (`floor_s`), and on a GPU the share of its published peak that is reached (`mfu`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "results/bench"
TURNS = 3
SPECIAL = 3  # ids that no text has
PARAMS: dict[str, dict[str, Any]] = {
    "tpo": {"alpha": 0.9, "beta": 0.2}, "cpo": {"beta": 0.1}, "orpo": {"beta": 0.3}, "dpo": {"beta": 0.1},
    "kto": {"beta": 0.1},
}  # fmt: skip
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bf16 FLOP/s of the SXM boards, NVIDIA's data sheets


@dataclass(frozen=True)
class Case:
    """What is trained: a model's shape, and the mean tokens of prompts and responses (half to one and a half of it).

    budget: tokens of a packed row.
    """

    model: str
    layers: int
    vocabulary: int
    prompt: int
    response: int
    batch: int
    device: str = "cpu"
    hidden: int = 256
    intermediate: int = 768
    heads: int = 8
    key_heads: int = 2
    budget: int = 1024

    @property
    def precision(self) -> str:
        """The precision of the products."""
        return "bf16" if self.device == "cuda" else "fp32"


_SEVEN_B = {"device": "cuda", "hidden": 4096, "intermediate": 14336, "heads": 32, "key_heads": 8, "budget": 16_384}
CASES = {
    "mistral-32k": Case("mistral", layers=4, vocabulary=32_000, prompt=60, response=60, batch=16),
    "mistral-4k": Case("mistral", layers=6, vocabulary=4096, prompt=60, response=60, batch=16),
    "phi-4k": Case("phi", layers=6, vocabulary=4096, prompt=60, response=60, batch=16),
    "mistral-4k-long-prompts": Case("mistral", layers=4, vocabulary=4096, prompt=600, response=150, batch=4),
    "mistral-7b-2-layers": Case("mistral", layers=2, vocabulary=32_000, prompt=200, response=300, batch=16, **_SEVEN_B),
    "mistral-7b-2-layers-long-prompts": Case(
        "mistral", layers=2, vocabulary=32_000, prompt=1200, response=300, batch=8, **_SEVEN_B
    ),
}
WHOLE = {"cpu": "mistral-4k", "cuda": "mistral-7b-2-layers"}  # device -> the case in which all methods are measured


def main() -> None:
    """Measure the cases and methods that are asked for, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    parser.add_argument("--case", action="append", choices=CASES, help="a case; may be given again")
    parser.add_argument("--method", action="append", choices=PARAMS, help="a method; may be given again")
    parser.add_argument("--turns", type=int, default=TURNS, help="processes of each engine")
    asked = parser.parse_args()
    rate = matmul_rate(asked.device)
    records = []
    for name, method in pairs(asked.device, asked.case, asked.method):
        records.append(compare(name, method, asked.turns, rate))
        print(json.dumps(records[-1]), flush=True)
    told = {"device": device_name(asked.device), "matmul_gflops": round(rate / 1e9, 1), "records": records}
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = RESULTS / ("engine.json" if asked.device == "cpu" else f"engine-{asked.device}.json")
    result.write_text(json.dumps(told, indent=1) + "\n")


def pairs(device: str, cases: list[str] | None, methods: list[str] | None) -> list[tuple[str, str]]:
    """Return the cases and methods to measure: what is asked for, else TPO in all cases and all methods in one."""
    there = [name for name, case in CASES.items() if case.device == device]
    if cases or methods:
        return [(name, method) for name in cases or there for method in methods or PARAMS]
    whole = WHOLE[device]
    return [(name, method) for name in there for method in PARAMS if method == "tpo" or name == whole]


def compare(name: str, method: str, turns: int, rate: float) -> dict[str, Any]:
    """Return the record of one case and method."""
    with TemporaryDirectory() as folder:
        made = _measured("prepare", name, method, folder)
        pairs = [[_measured(engine, name, method, folder) for engine in ("trl", "packed")] for _ in range(turns)]
    times = [stock["seconds"] / packed["seconds"] for stock, packed in pairs]
    memories = [stock["peak_mb"] / packed["peak_mb"] for stock, packed in pairs]
    stock, packed = (
        {name: round(median(pair[side][name] for pair in pairs), 3) for name in ("seconds", "peak_mb")}
        for side in (0, 1)
    )
    return {
        "case": name, "method": method, **asdict(CASES[name]),
        "time_ratio": round(median(times), 2), "time_spread": [round(min(times), 2), round(max(times), 2)],
        "memory_ratio": round(median(memories), 2), "memory_spread": [round(min(memories), 2), round(max(memories), 2)],
        "stock": stock, "packed": packed, "reference_s": made["reference_s"],
        "tokens_per_s": round(made["tokens"] / packed["seconds"]), "padding": round(made["padding"], 3),
        "floor_s": round(made["flops"] / rate, 3), "mfu": _mfu(CASES[name].device, made["flops"] / packed["seconds"]),
        "losses": [round(pairs[0][side]["loss"], 5) for side in (0, 1)],
    }  # fmt: skip


def device_name(device: str) -> str:
    """Return what the figures are of."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, one thread"


def _mfu(device: str, rate: float) -> float | None:
    """Return the share of a GPU's published peak; None where that is not known here."""
    peak = next((peak for name, peak in PEAKS.items() if name in device_name(device)), None)
    return round(rate / peak, 3) if peak else None


def matmul_rate(device: str) -> float:
    """Return the FLOPs a second of matrix products here: fp32 on one thread of a CPU, bf16 on a GPU."""
    import torch

    torch.set_num_threads(1)
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(clocked(lambda: one @ other, device) for _ in range(10))


def clocked(run: Any, device: str) -> float:
    """Return the seconds of a call: of this process's CPU, or until a GPU is done."""
    import torch

    clock = time.process_time if device == "cpu" else time.perf_counter
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    finish()
    started = clock()
    run()
    finish()
    return clock() - started


def _measured(what: str, name: str, method: str, folder: str) -> dict[str, Any]:
    """Return what a process of its own found."""
    command = [sys.executable, "-m", "benchmarks.engine_process", what, method, name, folder]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(f"{what} {name} {method} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rows(case: Case) -> Iterator[dict[str, Any]]:
    """Yield a batch of triples of random ids."""
    chance = random.Random(0)

    def ids(mean: int) -> list[int]:
        number = chance.randint(mean // 2, 3 * mean // 2)
        return [chance.randrange(SPECIAL, case.vocabulary) for _ in range(number)]

    for number in range(case.batch):
        responses = {name: ids(case.response) for name in ("reference", "chosen", "rejected")}
        yield {"prompt_id": str(number), "prompt": ids(case.prompt), **responses}


if __name__ == "__main__":
    main()
