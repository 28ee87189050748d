"""Preflight: whether this machine can do what is about to start. A lack stops it within seconds, with the ways forward.

Called as Snakemake starts, never under -n. Only jobs that ask for GPUs, for the hub or for a judge are looked at. Under
a cluster executor GPUs are the compute nodes': trainings are held against the memory that `hardware` declares, for they
would wait in a queue only to run out of it; downloads, judging and the results tree stay this machine's.
`TRIALIGN_PREFLIGHT=off` goes past it: what it finds out may be wrong (GPUs that nvidia-smi does not list, a quota).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from trialign import cost, known, lock, study
from trialign.config import Experiment
from trialign.errors import UserError
from trialign.settings import Source, WebFiles

SWITCH = "TRIALIGN_PREFLIGHT"
HUB = "https://huggingface.co"
TIMEOUT = 5.0


@dataclass(frozen=True)
class Task:
    """A job that is about to run: its rule, wildcards and resources."""

    rule: str
    wildcards: Mapping[str, str]
    resources: Mapping[str, int]


def check(experiment: Experiment, tasks: Sequence[Task], *, local: bool) -> None:
    """Raise UserError, a line for each lack and the ways forward, where this machine cannot run `tasks`.

    local: jobs run on this machine, not on a cluster's nodes.
    """
    if os.environ.get(SWITCH) == "off":
        return
    wanting = [task for task in tasks if task.resources.get("gpu", 0)]
    downloads = [task.wildcards["source"] for task in tasks if task.rule == "fetch"]
    keys = list(_keys(experiment, tasks))
    if not wanting and not downloads and not keys:
        return
    lacks = [
        *(_nodes(tasks) if local else ()),
        *(_gpus(experiment, wanting) if local and wanting else ()),
        *(() if local else known.memory_problems(experiment, _trained(wanting))),
        *(network(experiment, downloads) if downloads else ()),
        *keys,
        *(f"lock: {refusal}" for refusal in _refused(study.check_lock, experiment, downloads)),
        *_disk(Path(experiment.results_dir), tasks),
    ]
    if lacks:
        head = "this machine cannot do that:" if local else "this cannot be done as it is declared:"
        raise UserError("\n".join([head, *(f"  - {lack}" for lack in lacks), *_ways(local)]))


def check_workflow(experiment: Experiment, workflow: Any) -> None:
    """Check what a Snakemake is about to run; what it starts as another Snakemake was checked by the first."""
    if workflow.is_main_process:
        tasks = [Task(job.rule.name, job.wildcards_dict, job.resources) for job in workflow.dag.needrun_jobs()]
        check(experiment, tasks, local=workflow.local_exec)


def check_lock(experiment: Experiment, workflow: Any) -> None:
    """Refuse sources that are not locked, of those that a Snakemake's jobs read, fetched before or not."""
    fetched = [job.wildcards_dict["source"] for job in workflow.dag.jobs if job.rule.name == "fetch"]
    study.check_lock(experiment, fetched)


def check_tracking(experiment: Experiment, workflow: Any) -> None:
    """Refuse to train with a tracker that is not installed."""
    if workflow.is_main_process and any(job.rule.name == "train" for job in workflow.dag.needrun_jobs()):
        for name in experiment.tracking:
            if importlib.util.find_spec(name) is None:
                raise UserError(
                    f"config: tracking: {name} is not installed: pip install 'trialign[{name}]', or leave it out"
                )


def _nodes(tasks: Sequence[Task]) -> Iterable[str]:
    several = [task.resources["nodes"] for task in tasks if task.resources.get("nodes", 1) > 1]
    if several:
        yield (
            f"nodes: {len(several)} trainings ask for {max(several)} each, which SLURM alone gives them "
            "(or resources.train.nodes: 1)"
        )


def _gpus(experiment: Experiment, tasks: Sequence[Task]) -> Iterable[str]:
    number = max(task.resources["gpu"] for task in tasks)
    there = gpu_memories()
    if len(there) < number:
        kind = experiment.hardware.gpu or "any"
        yield f"GPUs: {len(tasks)} jobs ask for up to {number} each ({kind}), and {len(there)} are here"
        return
    memory = sorted(there)[-number]
    yield from known.memory_problems(experiment, _trained(tasks), memory)
    scored = [known.estimate(experiment, task.rule, task.wildcards).gpu_mb for task in tasks if task.rule != "train"]
    if scored and not cost.fits(max(scored), memory):
        yield f"GPU memory: evaluation takes {max(scored) / 1000:.0f} GB, a GPU here has {memory:.0f}"


def _keys(experiment: Experiment, tasks: Sequence[Task]) -> Iterable[str]:
    """Yield a line for each judge whose key is none: found out before models are trained for it."""
    from trialign.evaluation.endpoint import api_key  # with its retries, which a start without judges does not need

    for name in sorted({task.wildcards["judge"] for task in tasks if task.rule == "judge"}):
        judge = experiment.judges[name]
        if judge.kind == "openai":
            yield from _refused(api_key, name, judge.endpoint)


def _trained(tasks: Iterable[Task]) -> list[str]:
    return sorted({task.wildcards["lineage"] for task in tasks if task.rule == "train"})


def gpu_memories() -> list[float]:
    """Return the memory in GiB of each GPU that nvidia-smi lists and CUDA_VISIBLE_DEVICES leaves visible."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=2 * TIMEOUT, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    memories = [float(line) / 1024 for line in told.split()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return memories if visible is None else memories[: len([name for name in visible.split(",") if name.strip()])]


def network(experiment: Experiment, sources: Sequence[str]) -> Iterable[str]:
    """Yield a line for each host, or folder in the hub's place, that `sources` come from and that does not answer."""
    asked: dict[str, list[str]] = {}
    for source in sources:
        asked.setdefault(_place(experiment, experiment.sources[source]), []).append(source)
    for place, names in asked.items():
        if not lock.is_url(place):
            yield from _refused(lock.check_folder, Path(place))
        elif reason := silence(place):
            what = f"{len(names)} download(s) ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            yield f"network: {what} to do, and {place} does not answer ({reason})"


def _place(experiment: Experiment, source: Source) -> str:
    """Return where a source comes from: the address of a host, or the folder that stands for the hub."""
    return urljoin(source.base, "/") if isinstance(source, WebFiles) else endpoint(experiment)


def endpoint(experiment: Experiment) -> str:
    """Return what the hub is for this experiment: an address, or the folder in its place."""
    return str(experiment.mirror or lock.folder_of(None) or os.environ.get("HF_ENDPOINT", HUB))


def silence(address: str) -> str:
    """Return why nothing answers at an address; empty where something does."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT)
    except urllib.error.HTTPError:
        return ""  # it answers
    except (OSError, ValueError, HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return ""


def _refused(check: Callable[..., object], *arguments: Any) -> Iterable[str]:
    try:
        check(*arguments)
    except UserError as error:
        yield str(error)


def _disk(root: Path, tasks: Sequence[Task]) -> Iterable[str]:
    """What stays, and what one job holds besides, is the least that the disk must take."""
    stays = sum(task.resources.get("disk_mb", 0) for task in tasks)
    needed = stays + max((task.resources.get("scratch_mb", 0) for task in tasks), default=0)
    place = next(folder for folder in [root, *root.absolute().parents] if folder.exists())
    free = shutil.disk_usage(place).free / cost.MB
    if free < needed:
        yield (
            f"disk: at least {needed / 1000:,.0f} GB are needed ({stays / 1000:,.0f} stay), "
            f"{place} has {free / 1000:,.0f} free"
        )


def _ways(local: bool) -> list[str]:
    ways = ["the demo, on any CPU and offline: snakemake --profile profiles/demo all"]
    if Path("config/small.yaml").is_file():
        ways.append("a small model, on one GPU or a CPU: snakemake --configfile config/small.yaml -- all")
    if local:
        ways.append("a SLURM cluster: the same command with --profile slurm")
    else:
        ways.append("GPUs with more memory than is declared: say so under `hardware` (gpu, memory_gb)")
    ways.append("one table alone, or what it all takes: trialign plan results/table2.csv")
    return ["ways forward:", *(f"  - {way}" for way in ways), f"({SWITCH}=off goes past this check)"]
