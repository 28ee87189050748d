"""The plan: what Snakemake's own dry run of any targets adds up to. There is no second DAG.

`dry_run` runs `snakemake -n` with the logger plugin `trialign-plan`, which hands over the jobs of its DAG:
dependencies, reasons and resources. The resources of each job are its estimate (`known.rule_resources`), so the plan is
the sum of what `snakemake -n` prints. Jobs that several artifacts share are counted once; for each artifact the plan
says what it needs and what nothing else needs.

Wall time is a simulation: a fixed number of jobs at a time, of those that can start the one with the longest path
behind it first (list scheduling; Graham 1969: at most twice the optimum). Nothing here imports torch.
"""

from __future__ import annotations

import heapq
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from trialign import config, known
from trialign.config import Experiment
from trialign.errors import UserError
from trialign.evaluation.responses import Tokens
from trialign.lineage import Lineage

PLUGIN = "trialign-plan"
ARTIFACT_RULES = ("table", "facts", "figure", "claims")
MODEL_RULES = ("pretrain", "import_model", "train", "choose")
REASONS_SHOWN = 20


@dataclass(frozen=True)
class Job:
    """A job of Snakemake's DAG.

    needed: it has to run, for `reason`; there: its outputs exist. after: the jobs that it needs, by id. local: it runs
    where Snakemake does, also on a cluster. account, partition, qos: as the profile says, empty where it does not.
    """

    id: int
    rule: str
    wildcards: Mapping[str, str]
    output: tuple[str, ...]
    log: tuple[str, ...]
    there: bool
    needed: bool
    reason: str
    after: tuple[int, ...]
    threads: int
    resources: Mapping[str, int]
    local: bool = False
    account: str = ""
    partition: str = ""
    qos: str = ""

    @property
    def name(self) -> str:
        """The rule and its wildcards."""
        return " ".join([self.rule, *self.wildcards.values()])

    @property
    def stage(self) -> str:
        """The kind of work, such as `train tpo`, `evaluate leaderboard`, `judge`."""
        if self.rule == "train":
            last = Lineage.parse(self.wildcards["lineage"]).last
            return f"train {last.name if last else ''}"
        return f"evaluate {self.wildcards['suite']}" if self.rule == "evaluate" else self.rule

    @property
    def seconds(self) -> int:
        """Expected seconds."""
        return self.resources.get("seconds", 0)

    @property
    def gpu_minutes(self) -> int:
        """Expected GPU-minutes."""
        return self.resources.get("gpu_minutes", 0)


@dataclass(frozen=True)
class Dag:
    """Snakemake's DAG for some targets: all jobs, and how many run at a time, which `basis` explains."""

    experiment: Experiment
    jobs: tuple[Job, ...]
    at_a_time: int
    basis: str

    @cached_property
    def by_id(self) -> Mapping[int, Job]:
        """The jobs by id."""
        return {job.id: job for job in self.jobs}

    @cached_property
    def ordered(self) -> tuple[Job, ...]:
        """All jobs, each after those that it needs."""
        order = TopologicalSorter({job.id: job.after for job in self.jobs}).static_order()
        return tuple(self.by_id[number] for number in order)

    @cached_property
    def needed(self) -> tuple[Job, ...]:
        """The jobs that have to run, `all` apart, each after those that it needs."""
        return tuple(job for job in self.ordered if job.needed and job.output)

    @cached_property
    def done(self) -> tuple[Job, ...]:
        """The jobs that need not run."""
        return tuple(job for job in self.jobs if not job.needed and job.output)


def dry_run(
    targets: Sequence[str],
    configfiles: Iterable[str] = (),
    profile: str | None = None,
    settings: Iterable[str] = (),
    jobs: int | None = None,
) -> Dag:
    """Return Snakemake's DAG of `targets`, in the working directory. UserError, one line, with what Snakemake refused.

    configfiles, profile, settings: Snakemake's --configfile, --profile, --config. jobs: how many run at a time; None:
    as the profile says, or what this machine's cores allow.
    """
    configfiles = list(configfiles)
    if "" in targets:
        raise UserError("'' is no target: name files such as results/table2.csv, or leave it out for all of them")
    if absent := [file for file in configfiles if not Path(file).is_file()]:
        raise UserError(f"{absent[0]}: there is no such config file")
    command = [sys.executable, "-m", "snakemake", "-n", "--debug-dag", "--quiet", "rules", "progress"]
    command += ["--logger", PLUGIN]
    for option, values in (("--configfile", configfiles), ("--config", list(settings))):
        command += [option, *values] if values else []
    command += ["--profile", profile] if profile else []
    ended = subprocess.run([*command, "--", *targets], capture_output=True, text=True, check=False)
    try:
        told = json.loads(ended.stdout)
    except ValueError:
        told = {"errors": []}
    if ended.returncode or "jobs" not in told:
        raise UserError(_refusal(told["errors"], ended.stderr))
    found = tuple(map(_job, told["jobs"]))
    number, basis = _at_a_time(jobs, told, found)
    return Dag(config.load(told["config"]), found, number, basis)


def _job(told: Mapping[str, Any]) -> Job:
    """Return a job as the plugin told it, less the disk that Snakemake's default resources ask for in our place."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    if "disk_mb" not in known.resource_names(told["rule"]):
        values["resources"] = {name: value for name, value in told["resources"].items() if name != "disk_mb"}
    return Job(**values)


def _refusal(errors: Sequence[str], stderr: str) -> str:
    """Return in one line why a dry run failed: what our Snakefile said, or Snakemake's first error."""
    ours = [line.removeprefix("trialign: ") for line in stderr.splitlines() if line.startswith("trialign: ")]
    texts = ours or list(errors) or stderr.strip().splitlines()[-1:] or ["snakemake ended without a word"]
    if missing := re.match(r"MissingRuleException:\s+No rule to produce (\S+)", texts[0].strip()):
        return f"nothing makes '{missing[1]}': targets are all, or files such as results/table2.csv"
    lines = texts[0].strip().splitlines() or [""]
    text = " ".join(texts[0].split()) if not lines[0].startswith("Traceback") else lines[-1]
    return text if len(text) <= 500 else f"{text[:500]} ..."


def _at_a_time(jobs: int | None, told: Mapping[str, Any], found: Iterable[Job]) -> tuple[int, str]:
    if jobs is not None:
        return jobs, "--jobs"
    if told["nodes"] and told["nodes"] < sys.maxsize:
        return told["nodes"], "the profile's `jobs`"
    threads = max((job.threads for job in found if job.needed), default=1)
    return max(1, (told["cores"] or 1) // threads), "this machine's cores; give --jobs or --profile for another"


# --- time and disk ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """A simulated run. seconds: its length; critical: its length with any number of jobs at a time.

    rest_mb: what it adds to the disk; peak_mb: what it adds at most while it runs.
    """

    seconds: float
    critical: float
    rest_mb: int
    peak_mb: int


def schedule(jobs: Sequence[Job], at_a_time: int) -> Schedule:
    """Simulate `jobs` (dependencies first), `at_a_time` of them at a time, longest path behind first."""
    inside = {job.id: job for job in jobs}
    after = {job.id: [number for number in job.after if number in inside] for job in jobs}
    followers: dict[int, list[int]] = {job.id: [] for job in jobs}
    for number, before in after.items():
        for other in before:
            followers[other].append(number)
    path: dict[int, float] = {}
    for job in reversed(jobs):
        path[job.id] = job.seconds + max((path[other] for other in followers[job.id]), default=0)
    waiting = {number: len(before) for number, before in after.items()}
    ready = [(-path[number], number) for number, count in waiting.items() if not count]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now, disk, peak = 0.0, 0, 0
    while ready or running:
        while ready and len(running) < at_a_time:
            number = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + inside[number].seconds, number))
            disk += sum(inside[number].resources.get(name, 0) for name in ("disk_mb", "scratch_mb"))
        peak = max(peak, disk)
        now, number = heapq.heappop(running)
        disk -= inside[number].resources.get("scratch_mb", 0)
        for other in followers[number]:
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(ready, (-path[other], other))
    return Schedule(now, max(path.values(), default=0.0), disk, peak)


# --- the sums ---------------------------------------------------------------------------------------------------------


def summary(dag: Dag, targets: Sequence[str], rate: float | None = None) -> dict[str, Any]:
    """Return the plan as JSON values: hours, GPU-hours, GB (10^9 bytes), USD. rate: USD for a GPU-hour."""
    experiment = dag.experiment
    simulated = schedule(dag.needed, dag.at_a_time)
    gpu_hours = _gpu_hours(dag.needed)
    rate = experiment.hardware.hourly_rate if rate is None else rate
    tokens = {name: sum(job.resources.get(f"judge_tokens_{name}", 0) for job in dag.needed) for name in ("in", "out")}
    redone = [job for job in dag.needed if job.there]
    return {
        "experiment": experiment.name,
        "targets": list(targets),
        "hardware": experiment.hardware.gpu or "CPU",
        "jobs": len(dag.needed),
        "runs": _models(dag.needed),
        "gpu_hours": gpu_hours,
        "wall_hours": _hours(simulated.seconds),
        "critical_path_hours": _hours(simulated.critical),
        "jobs_at_a_time": dag.at_a_time,
        "jobs_at_a_time_basis": dag.basis,
        "gpu_hour_usd": rate,
        "gpu_usd": round(gpu_hours * rate, 2),
        "disk_rest_gb": round(simulated.rest_mb / 1000, 1),
        "disk_peak_gb": round(simulated.peak_mb / 1000, 1),
        "judge_tokens_in": tokens["in"],
        "judge_tokens_out": tokens["out"],
        "judge_usd": round(sum(_judge_usd(experiment, job) for job in dag.needed), 2),
        "by_stage": _by_stage(dag.needed),
        "by_artifact": _by_artifact(dag),
        "done": {"jobs": len(dag.done), "runs": _models(dag.done), "gpu_hours": _gpu_hours(dag.done)},
        "redone": [{"job": job.name, "reason": job.reason, "gpu_hours": _gpu_hours([job])} for job in redone],
        "past_error": known.past_error(experiment),
        "notes": notes(dag),
    }


def _gpu_hours(jobs: Iterable[Job]) -> float:
    return round(sum(job.gpu_minutes for job in jobs) / 60, 2)


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 2)


def _models(jobs: Iterable[Job]) -> int:
    return sum(job.rule in MODEL_RULES for job in jobs)


def _judge_usd(experiment: Experiment, job: Job) -> float:
    if job.rule != "judge":
        return 0.0
    endpoint = experiment.judges[job.wildcards["judge"]].endpoint
    tokens = Tokens(*(job.resources.get(f"judge_tokens_{name}", 0) for name in ("in", "out")))
    return tokens.cost(endpoint.price_in, endpoint.price_out)


def _by_stage(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.stage, []).append(job)
    return [
        {
            "stage": stage,
            "jobs": len(group),
            "hours": _hours(sum(job.seconds for job in group)),
            "gpu_hours": _gpu_hours(group),
            "disk_gb": round(sum(job.resources.get("disk_mb", 0) for job in group) / 1000, 1),
        }
        for stage, group in groups.items()
    ]


def _by_artifact(dag: Dag) -> list[dict[str, Any]]:
    """Return for each artifact what it needs in all, and what no other artifact needs. results.csv is none of them."""
    needs: dict[int, int] = {}  # id -> the ids of it and of all before it, as bits
    for job in dag.ordered:
        bits = 1 << job.id
        for before in job.after:
            bits |= needs[before]
        needs[job.id] = bits
    artifacts = [job for job in dag.jobs if job.rule in ARTIFACT_RULES]
    rows = []
    for job in artifacts:
        others = 0
        for other in artifacts:
            others |= needs[other.id] if other is not job else 0
        mine = [item for item in dag.needed if needs[job.id] >> item.id & 1]
        rows.append(
            {
                "artifact": next(iter(job.wildcards.values())),
                "jobs": len(mine),
                "runs": _models(mine),
                "gpu_hours": _gpu_hours(mine),
                "only_its_gpu_hours": _gpu_hours(item for item in mine if not others >> item.id & 1),
            }
        )
    return sorted(rows, key=lambda row: row["artifact"])


def notes(dag: Dag) -> list[str]:
    """Return what a reader must know: models without a shape, shapes that were wrong, training that does not fit."""
    experiment = dag.experiment
    trained = {job.wildcards["lineage"] for job in dag.needed if job.rule == "train"}
    bases = {Lineage.parse(job.wildcards["lineage"]).base for job in dag.needed if "lineage" in job.wildcards}
    unknown = [base for base in sorted(bases) if known.shape_of(experiment, base, seen=True) is None]
    return [
        *(f"models.{base} has no `shape`: each job on it is planned as an hour" for base in unknown),
        *known.shape_problems(experiment),
        *known.memory_problems(experiment, sorted(trained)),
    ]


# --- for people -------------------------------------------------------------------------------------------------------


def show(plan: Mapping[str, Any]) -> None:
    """Print a plan."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from trialign import terminal

    console = terminal.console()

    def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for number, column in enumerate(columns):
            made.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            made.add_row(*(escape(f"{cell:,.1f}" if isinstance(cell, float) else str(cell)) for cell in row))
        if made.row_count:
            console.print(made)

    done, at_a_time = plan["done"], plan["jobs_at_a_time"]
    table(f"Plan of {plan['experiment']}: {' '.join(plan['targets'])}", ["", ""], [
        ("jobs, of these models", f"{plan['jobs']}, {plan['runs']}"),
        ("done already: jobs, models, GPU-hours", f"{done['jobs']}, {done['runs']}, {done['gpu_hours']:,.1f}"),
        (f"GPU-hours ({plan['hardware']})", plan["gpu_hours"]),
        ("wall hours" + (f" at {at_a_time} jobs at a time" if at_a_time > 1 else ", job by job"), plan["wall_hours"]),
        ("wall hours at any number (critical path)", plan["critical_path_hours"]),
        (f"GPUs in USD at {plan['gpu_hour_usd']:g} an hour", plan["gpu_usd"]),
        ("disk at rest, GB", plan["disk_rest_gb"]),
        ("disk at peak, GB", plan["disk_peak_gb"]),
        ("judge: tokens in, out", f"{plan['judge_tokens_in']:,}, {plan['judge_tokens_out']:,}"),
        ("judge in USD", plan["judge_usd"]),
    ])  # fmt: skip
    table(
        "By stage",
        ["stage", "jobs", "hours", "GPU-hours", "disk, GB"],
        [list(row.values()) for row in plan["by_stage"]],
    )
    table(
        "By artifact (what several need is counted in each)",
        ["artifact", "jobs", "models", "GPU-hours", "only its own"],
        [list(row.values()) for row in plan["by_artifact"]],
    )
    redone = plan["redone"]
    table("Made again", ["job", "GPU-hours", "why"], [
        (row["job"], row["gpu_hours"], row["reason"][:120]) for row in redone[:REASONS_SHOWN]
    ])  # fmt: skip
    if len(redone) > REASONS_SHOWN:
        console.print(f"... and {len(redone) - REASONS_SHOWN} more (--json has all)")
    table("Estimated before and measured", ["work", "runs", "estimated, s", "measured, s", "ratio"], [
        list(row.values()) for row in plan["past_error"]
    ])  # fmt: skip
    console.print(f"Jobs at a time: {plan['jobs_at_a_time_basis']}.")
    for note in plan["notes"]:
        console.print(f"Note: {note}", markup=False, soft_wrap=True)
