"""Chaos on a real cluster: what goes wrong in days of a shared one, in minutes, seeded, to one study.

Each event hits what runs at that moment; the injector waits until one can happen, so that each that is asked for does.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.slurm.cluster import Cluster
from tests.slurm.study import Study, artifacts

REQUEUED_SECONDS = 8  # SLURM gives a requeued job two minutes, in which its earlier start ends; at once, it ends both
FAILURES_OF_ONE = 2  # how many of the events that cost an attempt may hit one output; the profile has 3 retries
STEP_COMMAND = b"bin/trialign\0step"


class Victim(NamedTuple):
    """A running job. job: its number, of a task of an array its own. pid: of its step. output: what it makes."""

    job: str
    node: str
    partition: str
    pid: int
    output: str


class Chaos:
    """Does events to a study. seed: of which job, when; disk: where the results lie, small enough to be filled.

    options: of the controller. pause: the longest between two events, in seconds.
    """

    def __init__(self, study: Study, seed: int, disk: Path, options: tuple[str, ...], pause: float) -> None:
        self.study, self.seed, self.disk, self.options = study, seed, disk, options
        self.random, self.pause = random.Random(seed), pause
        self.hit: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.requeued: dict[str, float] = {}  # job -> when it was first seen to wait for another start
        self.log: list[str] = []

    def run(self, events: dict[str, int], seconds: float) -> int:
        """Start the study, do all events in an order of the seed's, and see it through. Returns its exit status."""
        end = time.monotonic() + seconds
        order = [name for name, number in events.items() for _ in range(number)]
        self.random.shuffle(order)
        self.controller = self._start()
        while order:
            assert time.monotonic() < end, f"not all happened, {order} is left:\n{self.told()}"
            assert self.controller.poll() is None, f"it ended with {order} to come:\n{self.told()}"
            name = next((name for name in dict.fromkeys(order) if getattr(self, name)()), None)
            if name:
                order.remove(name)
                self.done[name] += 1
                self._wait(self.random.uniform(0.2, self.pause))
            self._hurry()
            time.sleep(0.2)
        while self.controller.poll() is None and time.monotonic() < end:
            self._hurry()
            time.sleep(0.5)
        return self.study.finish(self.controller, 1)

    def told(self) -> str:
        """Return what was done, and what the controllers said."""
        return "\n".join([f"seed {self.seed}", *self.log, self.study.said()])

    # --- events: each returns whether it could happen -----------------------------------------------------------------

    def scancel(self) -> bool:
        """Somebody cancels a job."""
        return self._fail("scancel", lambda victim: self.study.cluster.run("scancel", victim.job))

    def out_of_memory(self) -> bool:
        """The kernel kills a step for lack of memory."""
        return self._fail("out_of_memory", lambda victim: os.kill(victim.pid, signal.SIGKILL))

    def time_limit(self) -> bool:
        """A step hangs until SLURM ends its job: SLURM counts minutes."""

        def hang(victim: Victim) -> None:
            self.study.cluster.run("scontrol", "update", f"jobid={victim.job}", "timelimit=1")
            os.kill(victim.pid, signal.SIGSTOP)

        return self._fail("time_limit", hang)

    def preempt_requeue(self) -> bool:
        """An urgent job takes the node of one that SLURM requeues."""
        return self._preempt("gpu")

    def preempt_cancel(self) -> bool:
        """An urgent job takes the node of one that SLURM cancels."""
        return self._preempt("scavenge")

    def node_down(self) -> bool:
        """A node loses its power, and comes back."""
        victim = self._victim(lambda victim: True)
        if victim:
            self._say("node_down", victim)
            self.study.cluster.stop_node(victim.node)
            self.study.cluster.start_node(victim.node)
        return victim is not None

    def kill_controller(self) -> bool:
        """The login node kills the controller; the user starts it again."""
        if not self._victim(lambda victim: True):
            return False
        self._say("kill_controller", None)
        os.kill(self.controller.pid, signal.SIGKILL)
        self.controller.wait()
        self.controller = self._start()
        self.study.wait_for("a second start", lambda: "Job stats" in self.study.said(-1), 120)
        return True

    def second_controller(self) -> bool:
        """The user starts it twice: the second one says who is at work, and ends."""
        if not self._victim(lambda victim: True):
            return False
        self._say("second_controller", None)
        assert self.study.finish(self._start(), 120) != 0
        assert "is at work in this folder" in self.study.said(-1), self.study.said(-1)
        return self.controller.poll() is None

    def full_disk(self) -> bool:
        """The disk of the results fills up, and somebody makes room."""
        if not self._victim(lambda victim: True):
            return False
        self._say("full_disk", None)
        ballast = self.disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass
        time.sleep(8)
        ballast.unlink()
        return True

    # --- how ----------------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._hurry()
            time.sleep(0.2)

    def _fail(self, name: str, do: Callable[[Victim], object]) -> bool:
        victim = self._victim(lambda victim: self.hit[victim.output] < FAILURES_OF_ONE)
        if victim is None:
            return False
        self._say(name, victim)
        try:
            do(victim)
        except (ProcessLookupError, AssertionError):  # it ended in the meantime: another one will do
            self.log.append("  it had ended")
            return False
        self.hit[victim.output] += 1
        return True

    def _preempt(self, partition: str) -> bool:
        victim = self._victim(lambda victim: victim.partition == partition)
        if victim:
            self._say(f"preempt in {partition}", victim)
            self.study.cluster.run(
                "sbatch", "-p", "high", "-w", victim.node, "--exclusive", "-t1", "-o", "/dev/null", "--wrap", "sleep 2"
            )
            self.study.wait_for("preemption", lambda: victim.job not in {each.job for each in self._victims()}, 120)
        return victim is not None

    def _victim(self, fits: Callable[[Victim], bool]) -> Victim | None:
        there = [victim for victim in self._victims() if fits(victim)]
        return self.random.choice(there) if there else None

    def _victims(self) -> Iterator[Victim]:
        """Yield the study's running jobs whose step has begun."""
        steps = dict(_steps(self.study.results))
        rows = self.study.cluster.jobs("%A", "%N", "%P", "%Z", states="running")
        for job, node, partition, folder in sorted(rows):
            if folder == str(self.study.folder) and job in steps:
                yield Victim(job, node, partition, *steps[job])

    def _hurry(self) -> None:
        """Let requeued jobs start soon: SLURM keeps them for two minutes. Those that we put off are left alone."""
        cluster = self.study.cluster
        for job, reason, folder in cluster.jobs("%A", "%r", "%Z", states="pending"):
            mine = reason == "BeginTime" and folder == str(self.study.folder)
            if not mine or " Restarts=0 " in cluster.run("scontrol", "show", "job", job, check=False):
                continue
            if time.monotonic() - self.requeued.setdefault(job, time.monotonic()) > REQUEUED_SECONDS:
                del self.requeued[job]
                cluster.run("scontrol", "update", f"jobid={job}", "starttime=now", check=False)

    def _say(self, name: str, victim: Victim | None) -> None:
        self.log.append(f"{time.strftime('%H:%M:%S')} {name} {victim or ''}")

    def _start(self) -> subprocess.Popen[str]:
        """Start a controller; trainings go to the partition whose jobs are cancelled for urgent ones."""
        return self.study.start(*self.options, "--set-resources", "train:slurm_partition=scavenge", "--", "all")


def _steps(results: Path) -> Iterator[tuple[str, tuple[int, str]]]:
    """Yield SLURM's job -> pid and output of the steps that run for a results tree."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            told = dict(item.split(b"=", 1) for item in (folder / "environ").read_bytes().split(b"\0") if b"=" in item)
        except OSError:
            continue
        words = command.decode(errors="replace").split("\0")
        if STEP_COMMAND in command and str(results) in words and (job := told.get(b"SLURM_JOB_ID")):
            yield job.decode(), (int(folder.name), words[words.index("--output") + 1])


def survive(
    cluster: Cluster, folder: Path, quiet: dict[str, bytes], events: dict[str, int], *, seed: int,
    configs: tuple[str, ...], seconds: float, options: tuple[str, ...] = (), pause: float = 2,
) -> Chaos:  # fmt: skip
    """Assert that a study to which `events` happen ends with the `quiet` artifacts, and no two steps in one place."""
    spied = folder / "spied"
    spied.mkdir()
    with small_disk(folder / "disk", 400) as disk:
        results = disk / "results"
        spy = {
            "PYTHONPATH": str(Path(__file__).parent / "spy"),
            "TRIALIGN_SPY": str(spied),
            "TRIALIGN_SPY_ROOT": str(results),
            "TRIALIGN_CHECKPOINT_SECONDS": "0",
        }
        study = Study(folder / "study", cluster, results, configs, more=spy)
        chaos = Chaos(study, seed, disk, options, pause)
        try:
            assert chaos.run(events, seconds) == 0, chaos.told()
        finally:
            study.end()
        found = artifacts(results)
        assert found == quiet and len(quiet) > 8, (sorted(quiet), sorted(found))
        assert not list((results / ".work").iterdir()), "a finished study has no work left lying about"
    assert chaos.done == events and "failed in the end" not in study.said()
    assert len(list(spied.iterdir())) > 20 and not overlaps(spied), overlaps(spied)
    assert not [row for row in cluster.jobs("%Z", states="pending,running") if str(study.folder) in row]
    return chaos


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a disk of its own size, of memory, at `folder`; only root may."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def overlaps(records: Path) -> list[str]:
    """Return the results that two steps wrote at a time, by the spy's records."""
    spans: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for record in sorted(records.iterdir()):
        times: dict[str, list[float]] = defaultdict(list)
        for line in record.read_text().splitlines():
            moment, _, result = line.partition(" ")
            times[result].append(float(moment))
        for result, moments in times.items():
            spans[result].append((min(moments), max(moments), record.name))
    return [
        f"{result}: {one} and {other}"
        for result, found in spans.items()
        for one, other in zip(sorted(found), sorted(found)[1:], strict=False)
        if other[0] < one[1]
    ]
