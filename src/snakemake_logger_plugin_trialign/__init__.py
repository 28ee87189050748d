"""Snakemake's status for people: what runs, how many of how many, time left. `--logger trialign`.

snakemake-logger-plugin-rich with three things of ours: how many jobs of how many and the time left in its live
display, a line for each finished job where the output is no terminal (continuous integration, a log file), and of a
failed job the last lines of its log and the command that repeats it alone, however it ended (a killed process says
nothing itself). A run that gives up ends with the jobs that failed for good.
"""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta
from logging import LogRecord
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, ProgressColumn, Task
from rich.table import Column
from rich.text import Text
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_logger_plugin_rich import LogHandler as RichHandler

from trialign.progress import last_lines

TOTAL = "Total Progress"  # the rich plugin's name for its first bar


class LogHandler(RichHandler):
    """The rich plugin's handler, with counts and the time left."""

    def __post_init__(self) -> None:
        """Add the columns to the live display."""
        super().__post_init__()
        self.clock = Clock()
        self.failures: dict[int, int] = {}  # job -> how often it failed since it last succeeded
        self.plain = Console(stderr=True)
        self.progress.columns = (*self.progress.columns[:-2], MofNCompleteColumn(), TimeLeft(self.clock))

    def emit(self, record: LogRecord) -> None:
        """Pass a record on, and keep the times of jobs."""
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            self.clock.plan({rule: count for rule, count in record.stats.items() if rule != "total"})
        elif event == LogEvent.JOB_INFO:
            self.clock.start(record.jobid, record.rule_name)
        elif event == LogEvent.JOB_ERROR:
            self.failures[record.jobid] = self.failures.get(record.jobid, 0) + 1
            self._failed(record.jobid, getattr(record, "rule_msg", None))
            return
        super().emit(record)
        if event == LogEvent.JOB_FINISHED:
            self.failures.pop(record.job_id, None)
            self.clock.finish(record.job_id)
            if not self.plain.is_terminal:
                self._line(record.job_id)

    def close(self) -> None:
        """Say what failed for good: in a run of days it is far above."""
        lines = [f"  {self._described(job)}{self._logged(job)}" for job in self.failures]
        if lines:
            text = "\n".join(["failed in the end (what depends on them was not run):", *lines])
            self.plain.print(text, highlight=False, soft_wrap=True, markup=False)
        self.failures = {}
        super().close()

    def _logged(self, job: int) -> str:
        """Return how often a job failed, and its logs."""
        times = self.failures[job]
        logs = ", ".join(map(str, self.event_handler.jobs_info.get(job, {}).get("log") or ()))
        return (f", {times} times" if times > 1 else "") + (f": {logs}" if logs else "")

    def _failed(self, job: int, why: str | None) -> None:
        """Show a failed job; why: what the executor says, such as SLURM's state."""
        texts = [f"✗ failed: {self._described(job)}" + (f": {why.strip()}" if why else "")]
        for log in map(Path, self.event_handler.jobs_info.get(job, {}).get("log") or ()):
            if log.is_file():
                texts += [f"  last lines of {log}:", *(f"    {line}" for line in last_lines(log) or ["(empty)"])]
            if (script := log.with_suffix(".sh")).is_file():
                texts.append(f"  repeat it alone: sh {script}")
        self.event_handler.console.print("\n".join(texts), highlight=False, soft_wrap=True, markup=False)

    def _described(self, job: int) -> str:
        info = self.event_handler.jobs_info.get(job, {})
        return " ".join([str(info.get("rule")), *map(str, (info.get("wildcards") or {}).values())])

    def _line(self, job: int) -> None:
        done, total = self.clock.done(), self.clock.total()
        text = f"[{done}/{total}] {self._described(job)}, {self.clock.text()}"
        self.plain.print(text, highlight=False, soft_wrap=True, markup=False)


class TimeLeft(ProgressColumn):
    """The time left, beside the total."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(table_column=Column(no_wrap=True, min_width=13))
        self.clock = clock

    def render(self, task: Task) -> Text:
        """Return ` 0:03:40 left` for the total, nothing for single rules and before the first job has finished."""
        left = self.clock.left() if task.description.startswith(TOTAL) else None
        return Text("" if left is None else f" {_clock(left)} left", style="cyan")


class Clock:
    """Estimates the time left: the rules' mean durations so far times the jobs they have left, over the jobs at a time.

    A rule of which nothing has finished counts with the mean of all.
    """

    def __init__(self) -> None:
        self.planned: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.running: dict[int, tuple[str, float]] = {}
        self.began: float | None = None

    def plan(self, counts: dict[str, int]) -> None:
        """Take the number of jobs of each rule."""
        self.planned = Counter(counts)

    def start(self, job: int, rule: str) -> None:
        """A job starts."""
        now = time.monotonic()
        self.began = self.began or now
        self.running[job] = (rule, now)

    def finish(self, job: int) -> None:
        """A job is done."""
        rule, started = self.running.pop(job, (None, 0.0))
        if rule is not None:
            self.finished[rule] += 1
            self.seconds[rule] += time.monotonic() - started

    def done(self) -> int:
        """Return the number of finished jobs."""
        return self.finished.total()

    def total(self) -> int:
        """Return the number of planned jobs."""
        return self.planned.total()

    def left(self) -> float | None:
        """Return the estimated seconds left; None before the first job has finished."""
        if not self.done() or self.began is None:
            return None
        mean = self.seconds.total() / self.done()
        work = sum(
            (planned - self.finished[rule])
            * (self.seconds[rule] / self.finished[rule] if self.finished[rule] else mean)
            for rule, planned in self.planned.items()
        )
        at_a_time = max(1.0, self.seconds.total() / (time.monotonic() - self.began))
        return work / at_a_time

    def text(self) -> str:
        """Return `0:01:02, about 0:03:40 left`."""
        elapsed = time.monotonic() - self.began if self.began is not None else 0.0
        left = self.left()
        return _clock(elapsed) + (f", about {_clock(left)} left" if left is not None else "")


def _clock(seconds: Any) -> str:
    return str(timedelta(seconds=round(seconds)))
