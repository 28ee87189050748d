"""The end of the SLURM job that a step runs in: work stops before its time limit, and goes on in another start."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

from trialign import slurm
from trialign.errors import Again

T = TypeVar("T")


class Deadline:
    """When this process's job ends by its time limit, as known now; never outside of a job or without a limit.

    A slack is kept free before it: a minute, or a tenth of the time that is left where that is less.
    """

    def __init__(self) -> None:
        """Ask SLURM, and say on stderr what it told."""
        left = slurm.seconds_left()
        self._end = math.inf if left is None else time.monotonic() + left - min(60.0, left / 10)
        self._slowest = 0.0
        if left is not None:
            print(f"the job ends in {timedelta(seconds=round(left))} at the latest", file=sys.stderr, flush=True)

    def is_within(self, seconds: float) -> bool:
        """Say whether work that takes so long would end too late."""
        return time.monotonic() + seconds >= self._end

    def each(self, work: Sequence[T], name: str) -> Iterator[T]:
        """Yield the units of `work`, called `name`, as long as one twice as slow as the slowest so far ends in time.

        Each must be kept when the next one is asked for. The first of a process is always begun: a start that does
        nothing would be asked for again for ever. Again: the time is up.
        """
        for done, unit in enumerate(work):
            began = time.monotonic()
            if self._slowest and self.is_within(2 * self._slowest):
                raise Again(f"out of time with {len(work) - done} {name} to go")
            yield unit
            self._slowest = max(self._slowest, time.monotonic() - began)
