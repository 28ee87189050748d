"""How long 160 judgments take behind an endpoint of 200 ms, and again from what is stored.

    make bench        or: python -m benchmarks.judging --runs 3

80 invented two-turn questions, 16 requests at a time, whole processes: from their start until results are published.
Writes the seconds to results/bench/judging.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, "tests/evaluation")
from endpoint_room import serving
from judge_room import run, write_questions

QUESTIONS, LATENCY, CONCURRENCY = 80, 0.2, 16


def judge(runs: int) -> dict[str, list[float]]:
    """Return the seconds of judging, and of judging again with the published results removed."""
    seconds: dict[str, list[float]] = {"asked": [], "stored": []}
    for _ in range(runs):
        with TemporaryDirectory() as name, serving(Path(name) / "server", latency=LATENCY) as server:
            folder = Path(name)
            write_questions(folder, QUESTIONS)
            for kind, each in seconds.items():
                began = time.perf_counter()
                status, said = run(folder, server.url, kind, concurrency=CONCURRENCY)
                each.append(round(time.perf_counter() - began, 2))
                assert status == 0, said
                shutil.rmtree(folder / "root/.store")
            assert len(server.lines("answered")) == 2 * QUESTIONS
    return seconds


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    seconds = judge(parser.parse_args().runs)
    found = {kind: {"median_s": statistics.median(each), "all_s": each} for kind, each in seconds.items()}
    out = Path("results/bench/judging.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"judgments": 2 * QUESTIONS, **found}, indent=1) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
