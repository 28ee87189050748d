"""Training on several nodes of a real SLURM (gloo, FSDP2) against one process, and what SLURM gives such a job.

The nodes are virtual, so the file system is shared by nature; host names and their network are this machine's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Workflow

sys.path.append(str(Path(__file__).parents[1] / "training"))
from trl_room import recipe

from tests.training.conftest import models, tokens  # noqa: F401
from trialign import steps
from trialign.errors import UserError
from trialign.recipes import TrainRecipe
from trialign.steps import Step
from trialign.training import train
from trialign.training.callbacks import newest_checkpoint

# 24 steps: long enough to be killed twice in the middle
TRAINED = recipe("dpo", epochs=6, learning_rate=1e-3)


class Study:
    """A results tree, and SLURM jobs that run the training step in it."""

    def __init__(self, folder: Path, cluster: Cluster, parent: Path, data: Path) -> None:
        self.folder, self.cluster, self.parent, self.data = folder, cluster, parent, data
        self.out = folder / "output"

    def submit(
        self, made: TrainRecipe, nodes: int, processes: int, *, starts: int = 1, checkpoints: bool = False
    ) -> str:
        """Submit a job that starts the step so many times, one after the other. Returns its id."""
        command = [
            f"{Path(sys.executable).parent}/trialign", "step", made.canonical(), f"parent={self.parent}",
            f"tokens={self.data}", "--root", self.folder, "--output", self.out, "--log", self.folder / "log",
            "--nodes", nodes, "--processes", processes,
        ]  # fmt: skip
        line = shlex.join(map(str, command))
        # -n: a job without GPUs has else one task, which is enough for one node only
        return self.cluster.run(
            "sbatch", "--parsable", f"-N{nodes}", f"-n{nodes}", "--mem=2000", "-t10", "-o", f"{self.folder}/job",
            f"--export=ALL,OMP_NUM_THREADS=1,TRIALIGN_CHECKPOINT_SECONDS={0 if checkpoints else 600}",
            "--wrap", "; ".join([line] * starts),
        ).strip()  # fmt: skip

    def finish(self, job: str, seconds: float = 120) -> str:
        """Wait for a job. Returns its state."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ((state,),) = [row[1:] for row in self.cluster.jobs("%i", "%T") if row[0] == job]
            if state not in ("PENDING", "RUNNING", "COMPLETING"):
                return state
            time.sleep(0.1)
        raise AssertionError(f"job {job} does not end:\n{self.said()}")

    def said(self) -> str:
        return "\n".join(path.read_text() for name in ("log", "job") if (path := self.folder / name).exists())

    @property
    def work(self) -> Path | None:
        return next((self.folder / ".work").glob("*"), None)

    def holder(self) -> int:
        """Return the pid of the step's process."""
        return json.loads((self.work / "lease.json").read_text())["pid"]

    def facts(self) -> dict[str, Any]:
        return json.loads((self.out / "run.json").read_text())["facts"]

    def losses(self) -> list[float]:
        entries = [json.loads(line) for line in (self.out / "log.jsonl").open()]
        return [entry["loss"] for entry in entries if "loss" in entry]

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.out / "model/model.safetensors")

    def workers(self) -> set[str]:
        """Return the job steps, as `job.step`, that have processes which train here."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{self.folder}/.work/".encode() in (folder / "cmdline").read_bytes():
                    told = dict(item.partition("=")[::2] for item in (folder / "environ").read_text().split("\0"))
                    if "RANK" in told or "PET_NODE_RANK" in told:
                        found.add(f"{told['SLURM_JOB_ID']}.{told['SLURM_STEP_ID']}")
        return found


@pytest.fixture(scope="module")
def study(plain: Cluster, models, tokens, tmp_path_factory) -> Callable[[], Study]:  # noqa: F811
    parent, folder = models["mistral"], tokens(16)
    return lambda: Study(tmp_path_factory.mktemp("study"), plain, parent, folder)


@pytest.fixture(scope="module")
def undisturbed(study) -> Study:
    """Two nodes with a process each."""
    made = study()
    assert made.finish(made.submit(TRAINED, 2, 1)) == "COMPLETED", made.said()
    return made


@pytest.fixture(scope="module")
def alone(study) -> Study:
    """One process."""
    made = study()
    steps.run(TRAINED, {"parent": (made.parent,), "tokens": (made.data,)}, made.folder, made.out)
    return made


def assert_alike(first: Study, second: Study) -> None:
    """Equal but for the order of floating-point sums (tests/training/test_distributed.py)."""
    assert second.losses() == pytest.approx(first.losses(), rel=2e-5, abs=1e-6)
    for name, weight in first.weights().items():
        torch.testing.assert_close(second.weights()[name], weight, rtol=1e-4, atol=2e-5)


def assert_published_once(made: Study) -> None:
    (stored,) = (made.folder / ".store").iterdir()
    assert not list((made.folder / ".work").iterdir()) and (stored / "run.json").is_file()
    assert made.said().count(f"made {made.out}") == 1


def test_two_nodes_train_as_one_process(alone: Study, undisturbed: Study) -> None:
    facts = undisturbed.facts()
    assert facts["split"] == {"processes": 2, "micro_batch": 2, "accumulation": 1} and facts["nodes"] == 2
    assert_alike(alone, undisturbed)
    assert_published_once(undisturbed)


def test_two_nodes_of_two_processes_train_as_one_process(alone: Study, study) -> None:
    made = study()
    assert made.finish(made.submit(TRAINED, 2, 2)) == "COMPLETED", made.said()
    assert made.facts()["split"] == {"processes": 4, "micro_batch": 1, "accumulation": 1}
    assert_alike(alone, made)
    assert_published_once(made)


def test_what_is_killed_on_two_nodes_leaves_no_one_behind_and_resumes(undisturbed: Study, study) -> None:
    """SIGKILL of the step's process, whose successor starts at once in the same job; scancel of that; another job."""
    made = study()
    job = made.submit(TRAINED, 2, 1, starts=2, checkpoints=True)
    first = reached(made, 3)
    os.kill(made.holder(), signal.SIGKILL)
    seen, end = made.workers(), time.monotonic() + 120
    while len(seen) < 2:
        assert time.monotonic() < end, made.said()
        now = made.workers()
        assert len(now) < 2, "the old processes live on beside the new ones"
        seen |= now
        time.sleep(0.05)
    second = reached(made, first + 3)
    made.cluster.run("scancel", job)
    assert made.finish(job) == "CANCELLED"
    assert made.workers() == set()
    assert made.finish(made.submit(TRAINED, 2, 1)) == "COMPLETED", made.said()
    facts = made.facts()
    assert second <= facts["resumed_at"] < facts["steps"] == undisturbed.facts()["steps"]
    for name, weight in undisturbed.weights().items():
        torch.testing.assert_close(made.weights()[name], weight, rtol=0, atol=0)
    assert_published_once(made)


def reached(made: Study, step: int) -> int:
    """Wait for a checkpoint of this step or a later one. Returns its step."""
    end = time.monotonic() + 120
    while True:
        newest = newest_checkpoint(made.work / "scratch") if made.work else None
        if newest and (number := int(newest.name.removeprefix("checkpoint-"))) >= step:
            return number
        assert time.monotonic() < end, made.said()
        time.sleep(0.005)


def test_a_mistake_on_the_nodes_is_the_users_one_line(study) -> None:
    made = study()
    assert made.finish(made.submit(recipe("tpo"), 2, 1)) == "FAILED"
    assert "failed: method tpo: TRL's loss depends on how a batch is split" in (made.folder / "job").read_text()
    assert made.workers() == set()


@pytest.mark.parametrize("job", [None, "1"])
def test_several_nodes_are_those_of_a_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job) -> None:
    """A login node inside of salloc is none of them."""
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with pytest.raises(UserError, match=r"^a training on 2 nodes .* runs on the nodes of a SLURM job: start it with"):
        train.train(Step(TRAINED, {}, tmp_path, tmp_path, nodes=2))


ASKING = """
rule all:
    input: "out/a", "out/b", "out/alone"

rule train:
    output: "out/{name}"
    threads: 3
    resources: gpu=4, nodes=2, mem_mb=lambda wildcards: 800 if wildcards.name == "alone" else 700
    shell:
        "scontrol --details show job $SLURM_JOB_ID > {output}; "
        "for name in $(env | grep -o '^SLURM_[A-Z_]*' | grep -v SLURM_JOB_ID); do unset $name; done; "
        "srun --overlap --nodes=2 --ntasks=2 --ntasks-per-node=1 "
        "sh -c 'echo task $SLURM_NODEID sees $CUDA_VISIBLE_DEVICES' >> {output}"
"""


def test_each_node_has_its_gpus_cpus_and_memory(plain: Cluster, workflow: Callable[[Cluster, str], Workflow]) -> None:
    """As a task of an array, which the plugin runs without srun, and alone, with it."""
    flow = workflow(plain, ASKING)
    assert flow.finish(flow.start("--retries", "0", "--trialign-slurm-array-jobs", "all")) == 0, flow.said()
    for name, memory in (("a", 700), ("b", 700), ("alone", 800)):
        told = (flow.folder / "out" / name).read_text()
        # by the id of an array's last task SLURM shows all of them, also those that have ended
        running = [job for job in told.split("\n\n") if "JobState=RUNNING" in job]
        assert running
        for job in running:
            assert "NumNodes=2 NumCPUs=6 NumTasks=2 CPUs/Task=3" in job
            # one line where the nodes' shares are alike
            shares = re.findall(r"Nodes=(\S+) CPU_IDs=(\S+) Mem=(\d+) GRES=gpu:fake:(\d)\(", job)
            assert len(shares) == 2 or (len(shares) == 1 and "[" in shares[0][0]), job
            for _, cpus, mem_mb, gpus in shares:
                assert (number(cpus), gpus) == (3, "2")
                assert int(mem_mb) == pytest.approx(memory, abs=5)
        assert len(re.findall(r"task [01] sees \d,\d\n", told)) == 2


def number(cpus: str) -> int:
    """Return how many there are in a list such as 0,5-6."""
    ends = [part.partition("-") for part in cpus.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)
