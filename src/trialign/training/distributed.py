"""One training in several processes, one for each GPU, by torchrun; on machines without GPUs by gloo.

The step's own process holds the lease and waits; the processes train, and the first of them, which is on the step's own
node, writes the result. They end with it: a training that lives on beside its successor would write into its
checkpoints. On several nodes each has a torchrun, which srun starts inside the step's SLURM job; the results tree is
one that all of them share.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from trialign import recipes, slurm
from trialign.errors import Again, UserError
from trialign.processes import end_with_parent, free_port
from trialign.steps import Step

T = TypeVar("T")
_FACTS, _MISTAKE, _AGAIN = "facts.json", "mistake.txt", "again.txt"
_OF_THE_JOB = ("SLURM_JOB_ID", "SLURM_CONF")


def launch(step: Step[recipes.TrainRecipe]) -> dict[str, Any]:
    """Run the step's training in `step.processes` processes on each of `step.nodes` nodes.

    Returns its facts. UserError, Again: as one of them raised it; UserError: several nodes outside of a SLURM job.
    """
    for name in (_FACTS, _MISTAKE, _AGAIN):
        (step.scratch / name).unlink(missing_ok=True)
    order = step.scratch / "order.json"
    inputs = {name: [str(path) for path in group] for name, group in step.inputs.items()}
    told = {
        "recipe": step.recipe.canonical(), "inputs": inputs, "out": str(step.out), "scratch": str(step.scratch),
        "processes": step.processes, "nodes": step.nodes, "shared": str(step.shared or ""), "place": step.place,
    }  # fmt: skip
    order.write_text(json.dumps(told))
    status = _on_nodes(step, order) if step.nodes > 1 else _here(step, order)
    if (step.scratch / _MISTAKE).is_file():
        raise UserError((step.scratch / _MISTAKE).read_text())
    if (step.scratch / _AGAIN).is_file():
        raise Again((step.scratch / _AGAIN).read_text())
    if status or not (step.scratch / _FACTS).is_file():
        number = step.processes * step.nodes
        raise RuntimeError(f"one of {number} training processes ended with status {status}: see above")
    return json.loads((step.scratch / _FACTS).read_text())


def is_first() -> bool:
    """Whether this process is the one that writes: the only one, or the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


def first_says(answer: T) -> T:
    """Return the first process's answer to what each of them may see otherwise."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return answer
    told = [answer]
    dist.broadcast_object_list(told)
    return told[0]


def _here(step: Step[recipes.TrainRecipe], order: Path) -> int:
    """Run all processes on this machine. Returns torchrun's exit status."""
    return _wait([*_torchrun(step), "--standalone", "-m", __name__, str(order)], os.environ)


def _on_nodes(step: Step[recipes.TrainRecipe], order: Path) -> int:
    """Run the processes on the nodes of this job, by a job step that shares them with our own. Returns its status.

    The step bears a name of this work's: what an earlier start left of it in the same job is ended before, and what a
    killed srun leaves is ended before the lease is given back.
    """
    if not slurm.own_job() or "SLURMD_NODENAME" not in os.environ:
        raise UserError(
            f"a training on {step.nodes} nodes (resources.train.nodes) runs on the nodes of a SLURM job: start it with "
            "snakemake --profile slurm, repeat it alone with sbatch --nodes and --gpus-per-node, or set one node"
        )
    name = f"trialign-{step.scratch.parent.name}"
    slurm.end_steps(name)
    # The first node is ours. c10d would sort the nodes by name, and the one that writes could be another, whose files a
    # network file system may show here seconds later.
    meeting = [f"--nnodes={step.nodes}", f"--master-addr={socket.gethostname()}", f"--master-port={free_port()}"]
    status = _wait(
        [
            "srun", f"--job-name={name}", f"--nodes={step.nodes}", f"--ntasks={step.nodes}", "--ntasks-per-node=1",
            "--overlap", "--cpu-bind=none", "--mpi=none", "--kill-on-bad-exit=1", "--input=none",
            "sh", "-c", 'PET_NODE_RANK="$SLURM_NODEID" exec "$@"', "sh",
            *_torchrun(step), *meeting, "-m", __name__, str(order),
        ],
        _plain(os.environ),
    )  # fmt: skip
    if status:
        slurm.end_steps(name)
    return status


def _torchrun(step: Step[recipes.TrainRecipe]) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={step.processes}"]


def _wait(command: list[str], environment: Mapping[str, str]) -> int:
    """Run a command that ends with this process. Returns its exit status."""
    running = subprocess.Popen(
        command,
        env=environment,
        preexec_fn=end_with_parent,  # noqa: PLW1509 there are no threads yet
    )
    signal.signal(signal.SIGTERM, lambda *_: running.terminate())  # the lease is held until they have ended
    return running.wait()


def _plain(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what SLURM tells this step: srun would take it for options of the next one."""
    ours = ("SLURM_", "SRUN_")
    return {name: value for name, value in environment.items() if name in _OF_THE_JOB or not name.startswith(ours)}


def _main(order: Path) -> None:
    """What each process runs."""
    from trialign.training.train import train_here

    told = json.loads(order.read_text())
    inputs = {name: tuple(map(Path, group)) for name, group in told["inputs"].items()}
    out, scratch = Path(told["out"]), Path(told["scratch"])
    shared = Path(told["shared"]) if told["shared"] else None
    means = (told["processes"], told["nodes"], shared, told["place"])
    step = Step(recipes.parse(told["recipe"]), inputs, out, scratch, *means)
    try:
        facts = train_here(step)
    except (UserError, Again) as error:  # any of them may run out of memory; of time, all do
        _tell(scratch / (_MISTAKE if isinstance(error, UserError) else _AGAIN), str(error))
        sys.exit(1)
    if is_first():
        _tell(scratch / _FACTS, json.dumps(facts))


def _tell(file: Path, text: str) -> None:
    """Write a file whole: several processes may, and the first that ends has the others killed."""
    draft = file.with_name(f"{file.name}.{os.environ['RANK']}")
    draft.write_text(text)
    draft.rename(file)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
