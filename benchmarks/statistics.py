"""How long all paired differences of a large table take. Run: python -m benchmarks.statistics

MMLU's items (57 subsets, 14,042 items), 60 rows, 1,770 pairs: with one seed (bootstrap) and with three. Bar: 30 s.
"""

from __future__ import annotations

import resource
import time

import numpy as np

from trialign.reporting.statistics import Stratum, differences

ITEMS, SUBSETS, ROWS, BAR = 14_042, 57, 60, 30


def main() -> None:
    """Print a line for each number of seeds."""
    random = np.random.default_rng(0)
    sizes = random.multinomial(ITEMS, np.full(SUBSETS, 1 / SUBSETS))
    for seeds in (1, 3):
        strata = [
            Stratum(f"mmlu/{i}", (random.random((n, ROWS, seeds)) < 0.6).astype(float), np.ones(n), 100 / SUBSETS)
            for i, n in enumerate(sizes)
        ]
        started = time.monotonic()
        pairs = len(differences(strata))
        took = time.monotonic() - started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{pairs} pairs, {seeds} seed(s): {took:.1f} s (bar: {BAR} s), {memory:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
