"""How a study stands: what is done of its targets, what is at work and how far, what waits, what failed, what it took.

`trialign status` looks and touches nothing. What is done comes from Snakemake's own dry run (`plan`), what is at work
from the leases and what their holders tell of themselves (`lease`, `progress`), what is submitted from the ledger and
SLURM, what failed or is to be started again from the marks beside the steps' logs.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trialign import controller, lease, ledger, paths, plan, progress, slurm
from trialign.errors import UserError
from trialign.plan import Dag, Job
from trialign.steps import RUN_JSON

State = Literal["running", "unknown", "waiting", "failed", "again", "interrupted"]


@dataclass(frozen=True)
class Row:
    """A job of which there is something to say.

    state: running; unknown: whether its process lives cannot be told from here; waiting: in SLURM's queue; failed;
    again: it asked to be started again; interrupted: its process was killed, the next start goes on from there.
    what: rule and wildcards. asked: whether it is of the targets asked for. host, pid: of its process; job: SLURM's
    number; slurm: its state there, and why it waits. since: when it began, or failed, in seconds since 1970. progress:
    see `progress.Progress.tell`, with `told`, when that was. said: why it failed or is to be started again.
    """

    what: str
    state: State
    asked: bool
    log: str
    wildcards: Mapping[str, str] = field(default_factory=dict)
    host: str | None = None
    pid: int | None = None
    job: str | None = None
    slurm: str = ""
    since: float | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""

    @property
    def script(self) -> Path:
        """The script that repeats it alone; it is there once the job was started."""
        return Path(self.log).with_suffix(".sh")


def look(dag: Dag, targets: Sequence[str]) -> dict[str, Any]:
    """Return how the study stands now, as JSON values: hours, USD, times in seconds since 1970. dag: of `targets`."""
    root = Path(dag.experiment.results_dir)
    notes: list[str] = []
    found = rows(dag, notes)
    states = {Path(row.log): row.state for row in found if row.asked}
    shown = [_described(row) for row in found if row.asked or row.state in ("running", "unknown", "waiting")]
    idle = sum(not row.asked for row in found) - sum(not row["asked"] for row in shown)
    if idle:
        notes.append(
            f"{idle} interrupted step(s) of the tree that these targets do not need: trialign prune --work removes them"
        )
    rate = dag.experiment.hardware.hourly_rate
    spent, remaining = _spent(dag.done, root), _remaining(dag.needed)
    return {
        "experiment": dag.experiment.name,
        "targets": list(targets),
        "results": str(root),
        "at": time.time(),
        "snakemake": [{"who": who, "lives": alive} for who, alive in controller.at_work()],
        "jobs": {"done": len(dag.done), "all": len(dag.done) + len(dag.needed)},
        "by_stage": _by_stage(dag, states),
        "rows": shown,
        "gpus": any(job.resources.get("gpu", 0) for job in dag.jobs),
        "spent": {**spent, "usd": round(spent["gpu_hours"] * rate, 2)},
        "remaining": {
            **remaining,
            "usd": round(remaining["gpu_hours"] * rate, 2),
            "wall_hours": round(plan.schedule(dag.needed, dag.at_a_time).seconds / 3600, 4),
            "jobs_at_a_time": dag.at_a_time,
        },
        "notes": notes,
    }


def _described(row: Row) -> dict[str, Any]:
    """Return a row as JSON values; of what ended badly with the last lines of its log and the command to repeat it."""
    values = asdict(row)
    if row.state in ("failed", "interrupted"):
        repeat = f"sh {row.script}" if row.script.is_file() else ""
        values |= {"lines": progress.last_lines(Path(row.log)), "repeat": repeat}
    return values


# --- jobs -------------------------------------------------------------------------------------------------------------


class _Signs(NamedTuple):
    """What there is of a job: its lease and its folder, its entry in the ledger, SLURM's word on that, a mark."""

    holder: Mapping[str, Any] | None = None
    work: Path | None = None
    alive: bool | None = None
    entry: ledger.Entry | None = None
    job: slurm.Job | None = None
    failed: Mapping[str, Any] | None = None
    again: Mapping[str, Any] | None = None

    @property
    def state(self) -> State:
        """See `Row`; a job that SLURM has ended and that left no word counts as interrupted."""
        if self.holder and self.alive is not False:
            return "running" if self.alive else "unknown"
        if self.entry and self.job is None:
            return "unknown"
        if self.job and self.job.state in slurm.WAITING:
            return "waiting"
        if self.job and self.job.state in slurm.ALIVE:
            return "running"
        return "failed" if self.failed else "again" if self.again else "interrupted"


def rows(dag: Dag, notes: list[str]) -> list[Row]:
    """Return what is to be said of jobs, by name; `notes` gets what could not be found out."""
    root = Path(dag.experiment.results_dir)
    jobs = {Path(job.log[0]): job for job in dag.jobs if job.log}
    signs: dict[Path, _Signs] = {}
    for log, sign in _signs(root, notes):
        signs[log] = signs.get(log, _Signs())._replace(**sign)
    found = [_row(log, sign, jobs.get(log)) for log, sign in signs.items()]
    return sorted((row for row in found if row), key=lambda row: row.what)


def _row(log: Path, sign: _Signs, job: Job | None) -> Row | None:
    """Return the row of a job; None for one that has nothing to say: done since, or a mark of one not asked for."""
    state, holder = sign.state, sign.holder or {}
    if state not in ("running", "unknown", "waiting") and not (job.needed if job else sign.holder):
        return None
    mark = sign.failed or sign.again or {}
    told = progress.read(sign.work) if sign.work else {}
    return Row(
        what=job.name if job else sign.entry.name if sign.entry else f"{holder.get('step')} {holder.get('place')}",
        state=state,
        asked=job is not None,
        log=str(log),
        wildcards=job.wildcards if job else {},
        host=holder.get("host"),
        pid=holder.get("pid"),
        job=sign.entry.job if sign.entry else holder.get("job"),
        slurm=_slurm(sign.job),
        since=holder.get("since", mark.get("at")),
        progress=told,
        said=mark.get("error") or mark.get("reason") or "",
    )


def _slurm(job: slurm.Job | None) -> str:
    if job is None:
        return ""
    return f"{job.state}: {job.reason}" if job.state in slurm.WAITING else job.state


def _signs(root: Path, notes: list[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield log -> signs of a job, of all jobs that have any."""
    asked = _Asked()
    for file in sorted((root / paths.WORK).glob(f"*/{lease.LEASE}")):
        if holder := _json(file):
            sign = {"holder": holder, "work": file.parent, "alive": lease.lives(holder, asked)}
            yield Path(holder.get("log") or file), sign
    entries = ledger.entries()
    known = _submitted(entries, notes)
    for entry in entries:
        yield Path(entry.log), {"entry": entry, "job": known and known.get(entry.job, _gone(entry))}
    for folder, _, files in os.walk(root / "logs"):
        for name in files:
            file = Path(folder, name)
            kind = {paths.FAILED: "failed", paths.AGAIN: "again"}.get(file.suffix)
            if kind and (mark := _json(file)):
                yield file.with_suffix(".log"), {kind: mark}


class _Asked:
    """The state of a SLURM job, from one question for all of them; as `slurm.state`."""

    def __init__(self) -> None:
        self._states: Mapping[str, str] | None = None
        self._silent: slurm.Silent | None = None

    def __call__(self, job: str) -> str | None:
        if self._silent:  # each further question could take its minute
            raise self._silent
        try:
            self._states = slurm.states() if self._states is None else self._states
            return self._states.get(job) or slurm.state(job)
        except slurm.Silent as error:
            self._silent = error
            raise


def _submitted(entries: Sequence[ledger.Entry], notes: list[str]) -> dict[str, slurm.Job] | None:
    """Return what SLURM says of submitted jobs; None where it says nothing."""
    if not entries:
        return {}
    try:
        known = slurm.queued()
    except slurm.Silent as error:
        notes.append(f"SLURM does not answer ({error}): of {len(entries)} submitted jobs it is not known what they do")
        return None
    return known | slurm.accounted([entry.job for entry in entries if entry.job not in known])


def _gone(entry: ledger.Entry) -> slurm.Job:
    return slurm.Job(entry.job, "GONE", "", "", entry.name, "")


def _by_stage(dag: Dag, states: Mapping[Path, State]) -> list[dict[str, Any]]:
    """Return for each kind of work how many jobs there are, are done, and are in which state, in the DAG's order."""
    groups: dict[str, Counter[str]] = {}
    for job in dag.ordered:
        if job.output:
            state = states.get(Path(job.log[0])) if job.log else None
            group = groups.setdefault(job.stage, Counter())
            group.update(["all", "to do" if job.needed else "done", *([state] if state else [])])
    names = ("done", "all", "running", "waiting", "interrupted", "failed")
    return [{"stage": stage, **{name: group[name] for name in names}} for stage, group in groups.items()]


# --- what it took -----------------------------------------------------------------------------------------------------


def _spent(jobs: Iterable[Job], root: Path) -> dict[str, float]:
    """Return the hours of finished jobs, as their records have them; two results of one step count once.

    A GPU-hour is an hour that a job had a GPU, as recorded, or as it asks for where that was not recorded.
    """
    gpu, cpu, seen = 0.0, 0.0, set[str]()
    for job in jobs:
        record = _json(_record(job, root))
        if record and record["fingerprint"] not in seen:
            seen.add(record["fingerprint"])
            gpu += record["seconds"] * record.get("gpus", job.resources.get("gpu", 0))
            cpu += record["seconds"] * int(record["threads"] or job.threads)
    return {"gpu_hours": round(gpu / 3600, 4), "cpu_hours": round(cpu / 3600, 4)}


def _record(job: Job, root: Path) -> Path:
    """Return where the record of a job's step is."""
    if Path(job.output[0]).parent == root:  # artifacts share the root: their records lie together
        return root / paths.PROVENANCE / f"{next(iter(job.wildcards.values()), job.rule)}.json"
    return next((Path(file) for file in job.output if file.endswith(RUN_JSON)), Path(job.output[0]) / RUN_JSON)


def _remaining(jobs: Iterable[Job]) -> dict[str, float]:
    """Return the hours of jobs to come, by their estimates; those at work count whole."""
    gpu = sum(job.gpu_minutes for job in jobs) / 60
    return {"gpu_hours": round(gpu, 4), "cpu_hours": round(sum(job.seconds * job.threads for job in jobs) / 3600, 4)}


def _json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None where there is none, or not a whole one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


# --- live -------------------------------------------------------------------------------------------------------------

SETTLE_SECONDS = 3.0  # after a step has published its result Snakemake has to take note of it
REST = 3.0  # after a dry run, so many times as long as it took: beside a running Snakemake it takes of its cores


def watch(plan_again: Callable[[], Dag], targets: Sequence[str], seconds: float = 2.0) -> Iterator[dict[str, Any]]:
    """Yield how the study stands, again and again, until nothing is left to do.

    plan_again: the dry run, which is repeated only when something has finished.
    """
    dag, took = _timed(plan_again)
    at_work, due, planned = _at_work(dag), None, time.monotonic()
    while True:
        yield look(dag, targets)
        if not dag.needed:
            return
        time.sleep(seconds)
        before, at_work = at_work, _at_work(dag)
        now = time.monotonic()
        due = due or (now + SETTLE_SECONDS if before - at_work else None)
        if due and now >= (max(due, planned + REST * took) if at_work else due):
            try:
                dag, took = _timed(plan_again)
            except UserError:  # of a file that changed at that very moment; the next time it is whole
                due = now + SETTLE_SECONDS
                continue
            due, planned = None, time.monotonic()


def _timed(plan_again: Callable[[], Dag]) -> tuple[Dag, float]:
    began = time.monotonic()
    return plan_again(), time.monotonic() - began


def _at_work(dag: Dag) -> set[str]:
    """Return what ends when something finishes: leases, submitted jobs, Snakemakes."""
    leases = (Path(dag.experiment.results_dir) / paths.WORK).glob(f"*/{lease.LEASE}")
    return {*map(str, leases), *(entry.job for entry in ledger.entries()), *(who for who, _ in controller.at_work())}
