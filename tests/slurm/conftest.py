"""A scratch cluster of each kind for the tests of this folder, and a workflow in miniature to run on it.

Without SLURM's programs they skip, unless TRIALIGN_REQUIRE_SLURM is set, as continuous integration sets it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm import cluster as scratch
from tests.slurm.cluster import Cluster

SNAKEMAKE = f"{Path(sys.executable).parent}/snakemake"


def _cluster(root: Path, *, accounting: bool) -> Iterator[Cluster]:
    if lacks := scratch.missing(accounting=accounting):
        reason = f"SLURM is not installed: {', '.join(lacks)}"
        if os.environ.get("TRIALIGN_REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    with scratch.running(root / "cluster", accounting=accounting) as running:
        yield running


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without accounting."""
    yield from _cluster(tmp_path_factory.mktemp("plain"), accounting=False)


@pytest.fixture(scope="session")
def accounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with accounting and munge."""
    yield from _cluster(tmp_path_factory.mktemp("accounted"), accounting=True)


class Workflow:
    """A folder with a Snakefile, and the controllers that run it."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.controllers: list[subprocess.Popen[str]] = []

    @property
    def env(self) -> dict[str, str]:
        """The environment of controllers."""
        return self.cluster.env | {"OMP_NUM_THREADS": "1"}

    def command(self, executor: str, partition: str) -> list[str]:
        """Return the command of a controller, before its options."""
        ours = ["--trialign-slurm-retry-seconds", "1"] if executor == "trialign-slurm" else []
        return [
            SNAKEMAKE, "--executor", executor, *ours, "--jobs", "50", "--keep-going",
            "--default-resources", "slurm_account=lab", f"slurm_partition={partition}", "mem_mb=300", "runtime=5",
            "--rerun-incomplete", "--latency-wait", "5", f"--{executor}-init-seconds-before-status-checks", "1",
            f"--{executor}-keep-successful-logs",
        ]  # fmt: skip

    def start(self, *options: str, executor: str = "trialign-slurm", partition: str = "gpu") -> subprocess.Popen[str]:
        """Start a controller in a session of its own; its output goes to controller<k>.log."""
        log = (self.folder / f"controller{len(self.controllers)}.log").open("w")
        controller = subprocess.Popen(
            [*self.command(executor, partition), *options],
            cwd=self.folder, env=self.env, stdout=log, stderr=log, text=True, start_new_session=True,
            preexec_fn=_listen_to_interrupts,  # noqa: PLW1509 no threads are at work here
        )  # fmt: skip
        self.controllers.append(controller)
        return controller

    def finish(self, controller: subprocess.Popen[str], seconds: float = 180) -> int:
        """Wait for a controller, kill it after `seconds`. Returns its exit status."""
        try:
            return controller.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(controller.pid, signal.SIGKILL)
            controller.wait()
            raise AssertionError(f"it waits forever:\n{self.said()}") from None

    def said(self, *which: int) -> str:
        """Return what the controllers printed, or the `which`-th of them."""
        logs = [(self.folder / f"controller{k}.log").read_text() for k in range(len(self.controllers))]
        return "\n".join([logs[k] for k in which] or logs)

    def wait_for(self, what: str, seen: Callable[[], bool], seconds: float = 90) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not seen():
            assert time.monotonic() < end, (
                f"{what} did not come about:\n{self.said()}\n{self.cluster.jobs('%i', '%T', '%r', '%k')}"
            )
            time.sleep(0.1)

    def jobs(self, states: str = "all") -> list[str]:
        """Return the SLURM ids of this workflow's jobs."""
        return [number for number, folder in self.cluster.jobs("%i", "%Z", states=states) if folder == str(self.folder)]

    def end(self) -> None:
        """Kill the controllers and cancel the jobs."""
        for controller in self.controllers:
            if controller.poll() is None:
                os.killpg(controller.pid, signal.SIGKILL)
                controller.wait()
        if left := self.jobs("pending,running,suspended"):
            self.cluster.run("scancel", *left, check=False)


def _listen_to_interrupts() -> None:
    """Undo what a shell does to its background jobs, and so to tests that run in one: it lets them ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Callable[[Cluster, str], Workflow]]:
    """Return a function that makes a workflow for a cluster."""
    made: list[Workflow] = []

    def make(cluster: Cluster, rules: str) -> Workflow:
        (tmp_path / "Snakefile").write_text(rules)
        made.append(Workflow(tmp_path, cluster))
        return made[-1]

    yield make
    for each in made:
        each.end()
