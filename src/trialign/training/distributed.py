"""One training in several processes of this machine, one for each GPU, by torchrun; on a machine without GPUs by gloo.

The step's own process holds the lease and waits; the processes train, and the first of them writes the result. They end
with it: a training that lives on beside its successor would write into its checkpoints.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from trialign import recipes
from trialign.errors import Again, UserError
from trialign.steps import Step

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_FACTS, _MISTAKE, _AGAIN = "facts.json", "mistake.txt", "again.txt"


def launch(step: Step[recipes.TrainRecipe]) -> dict[str, Any]:
    """Run the step's training in `step.processes` processes. Returns its facts; UserError, Again: as one raised it."""
    for name in (_FACTS, _MISTAKE, _AGAIN):
        (step.scratch / name).unlink(missing_ok=True)
    order = step.scratch / "order.json"
    inputs = {name: [str(path) for path in group] for name, group in step.inputs.items()}
    told = {"recipe": step.recipe.canonical(), "inputs": inputs, "out": str(step.out), "scratch": str(step.scratch)}
    order.write_text(json.dumps(told))
    running = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={step.processes}",
            "-m", __name__, str(order),
        ],
        preexec_fn=_end_with_parent,  # noqa: PLW1509 there are no threads yet
    )  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: running.terminate())  # the lease is held until they have ended
    status = running.wait()
    if (step.scratch / _MISTAKE).is_file():
        raise UserError((step.scratch / _MISTAKE).read_text())
    if (step.scratch / _AGAIN).is_file():
        raise Again((step.scratch / _AGAIN).read_text())
    if status or not (step.scratch / _FACTS).is_file():
        raise RuntimeError(f"one of {step.processes} training processes ended with status {status}: see above")
    return json.loads((step.scratch / _FACTS).read_text())


def is_first() -> bool:
    """Whether this process is the one that writes: the only one, or the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


def _end_with_parent() -> None:
    """Let the kernel end this process when its parent dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _main(order: Path) -> None:
    """What each process runs."""
    from trialign.training.trl import train_here

    told = json.loads(order.read_text())
    inputs = {name: tuple(map(Path, group)) for name, group in told["inputs"].items()}
    out, scratch = Path(told["out"]), Path(told["scratch"])
    try:
        facts = train_here(Step(recipes.parse(told["recipe"]), inputs, out, scratch, int(os.environ["WORLD_SIZE"])))
    except (UserError, Again) as error:  # any of them may run out of memory; of time, all do
        (scratch / (_MISTAKE if isinstance(error, UserError) else _AGAIN)).write_text(str(error))
        sys.exit(1)
    if is_first():
        (scratch / _FACTS).write_text(json.dumps(facts))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
