"""What a compute node sees: run there by `trialign doctor`, inside a job, it prints one JSON object.

    python -m trialign.doctor_probe RESULTS ADDRESS GPUS

RESULTS: the results tree. ADDRESS: where downloads come from; empty: a folder stands for the hub. GPUs are looked for
where GPUS, as many as the job asked for, is not 0: with nvidia-smi, and with torch, which trains on them.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import trialign
from trialign import cost, preflight


class Seen(TypedDict):
    """What the node told. time: seconds since 1970 there; results_mb, tmp_mb: free.

    silence: why the hub is not reached, empty where it is. gpu_gib: memory of the GPUs that nvidia-smi lists;
    torch_gpus: the names of those that torch sees.
    """

    time: float
    version: str
    package: str
    results_mb: int
    tmp: str
    tmp_mb: int
    silence: str
    gpu_gib: list[float]
    torch_gpus: list[str]


def look(results: str, address: str, gpus: int) -> Seen:
    """Look around."""
    tmp = tempfile.gettempdir()
    return Seen(
        time=time.time(),
        version=version("trialign"),
        package=str(Path(trialign.__file__).parent),
        results_mb=int(shutil.disk_usage(results).free / cost.MB),
        tmp=tmp,
        tmp_mb=int(shutil.disk_usage(tmp).free / cost.MB),
        silence=preflight.silence(address) if address else "",
        gpu_gib=preflight.gpu_memories() if gpus else [],
        torch_gpus=_torch_gpus() if gpus else [],
    )


def _torch_gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
