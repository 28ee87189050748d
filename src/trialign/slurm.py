"""What SLURM says of jobs and of the cluster, from its own commands: state, why one waits, how long one has left.

Nothing here submits or ends a job; only steps of this process's own job are ended. Reads `squeue` first, which answers
on every cluster; a job that it has forgotten (MinJobAge after its end) is asked of `sacct`, where there is accounting.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import subprocess
import time
from collections.abc import Iterable
from typing import NamedTuple

from trialign.errors import UserError

TIMEOUT = 60.0
LOCAL_RETRY_SECONDS = "TRIALIGN_LOCAL_RETRY_SECONDS"  # set for steps that run beside a controller, not in jobs
STEP_POLL_SECONDS = 0.5
# squeue(1) and sacct(1), "JOB STATE CODES". What holds processes, what will, and what SLURM ended for its own reasons.
ALIVE = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"})
WAITING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
LOST = frozenset({"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED"})
# squeue(1), "JOB REASON CODES": those that no waiting cures.
STUCK = ("JobHeld", "launch failed requeued held", "BadConstraints", "DependencyNeverSatisfied", "AccountNotAllowed",
         "PartitionNodeLimit", "PartitionTimeLimit", "PartitionDown", "PartitionInactive", "InvalidAccount",
         "InvalidQOS", "QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit")  # fmt: skip
_UNKNOWN_JOB = "Invalid job id"
_DURATION = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")


class Job(NamedTuple):
    """A job as squeue has it. id: `123`, or `123_4` for a task of an array. reason: why it waits, or ended so.

    folder: where it was submitted.
    """

    id: str
    state: str
    reason: str
    nodes: str
    name: str
    folder: str
    exit_code: str = ""


class Silent(UserError):
    """SLURM did not answer."""


def own_job() -> str | None:
    """Return the id of the job that this process runs in; None outside of one."""
    return os.environ.get("SLURM_JOB_ID")


def queued() -> dict[str, Job]:
    """Return this user's jobs, also those that ended lately, by id. Silent: SLURM does not answer."""
    told = ask("squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T|%r|%N|%j|%Z")
    return {job.id: job for job in (Job(*line.split("|")) for line in told.splitlines() if line.count("|") == 5)}


def states() -> dict[str, str]:
    """Return the states of this user's jobs by their numbers, as steps know them (`own_job`). Silent: no answer."""
    told = ask("squeue", "--me", "--array", "--states=all", "--noheader", "--format=%A|%T")
    return {number.strip(): state for number, _, state in (line.partition("|") for line in told.splitlines())}


def accounted(ids: Iterable[str]) -> dict[str, Job]:
    """Return jobs as the accounting knows them, none where there is no accounting."""
    wanted = ",".join(ids)
    try:
        told = ask(
            "sacct", "-X", "-n", "-P", "-j", wanted, "-o", "JobID,State,Reason,NodeList,JobName,WorkDir,ExitCode"
        )
    except Silent:
        return {}
    jobs = (Job(*line.split("|")) for line in told.splitlines() if line.count("|") == 6)
    return {job.id: job._replace(state=plain(job.state)) for job in jobs}


def has_accounting() -> bool:
    """Say whether this cluster keeps an account of its jobs that can be asked."""
    try:
        ask("sacct", "-X", "-n", "-j", "1", "-o", "JobID")
    except Silent:
        return False
    return True


def plain(state: str) -> str:
    """Return a state without what follows it: accounting says `CANCELLED by 0`, and `COMPLETED+` where it cuts."""
    return (state.split() or [""])[0].rstrip("+")


def exit_code(job: str) -> str:
    """Return `exit:signal` of a job that ended lately, as SLURM writes it; empty where it does not know."""
    try:
        told = ask("scontrol", "--oneliner", "show", "job", job)
    except Silent:
        return ""
    found = re.search(r"\bExitCode=(\d+:\d+)", told)
    return found[1] if found else ""


def state(job: str) -> str | None:
    """Return the state of any user's job; None for a job that SLURM does not know any more. Silent: no answer."""
    try:
        return _told_of(job, "%T", "--states=all")
    except Silent as error:
        if _UNKNOWN_JOB in str(error):
            return None
        raise


def seconds_left() -> float | None:
    """Return the seconds until this process's job ends by its time limit; None outside of one, or without a limit."""
    job = own_job()
    if job is None:
        return None
    try:
        return duration(_told_of(job, "%L") or "")
    except Silent:
        return None


def seconds_run(job: str) -> float | None:
    """Return for how many seconds a job has run since its last start; None if that is not known. Silent: no answer."""
    return duration(_told_of(job, "%M") or "")


def _told_of(job: str, column: str, *options: str) -> str | None:
    """Return a column of squeue for one job; None if it has no row.

    The last task of an array has the array's own number: asked for that, squeue lists all the tasks.
    """
    told = ask("squeue", "--array", "--noheader", "--job", job, f"--format=%A|{column}", *options)
    rows = (line.partition("|") for line in told.splitlines())
    return next((value.strip() for number, _, value in rows if number.strip() == job), None)


def duration(text: str) -> float | None:
    """Return `days-hours:minutes:seconds`, in seconds; None for UNLIMITED, INVALID and other words."""
    found = _DURATION.fullmatch(text.strip())
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def end_steps(name: str) -> None:
    """End the steps of this process's job that bear a name; returns when none of their processes is left.

    Silent: SLURM does not say whether there are any.
    """
    while left := _steps(name):
        with contextlib.suppress(Silent):  # of one that has just ended
            ask("scancel", *left)
        time.sleep(STEP_POLL_SECONDS)


def _steps(name: str) -> list[str]:
    told = ask("squeue", "--steps", "--noheader", "--job", own_job() or "", "--format=%i|%j")
    return [step for step, _, its_name in (line.partition("|") for line in told.splitlines()) if its_name == name]


def ask(*command: str) -> str:
    """Return what one of SLURM's commands prints. Silent: it is not there, fails, or takes more than a minute."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Silent(f"{command[0]}: {error}") from None
    if done.returncode:
        raise Silent(f"{command[0]}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
    return done.stdout


# --- the cluster ------------------------------------------------------------------------------------------------------


def settings() -> dict[str, str]:
    """Return the cluster's settings, as slurm.conf(5) names them. Silent: SLURM does not answer."""
    pairs = (line.partition("=") for line in ask("scontrol", "show", "config").splitlines())
    return {name.strip(): value.strip() for name, mark, value in pairs if mark}


def partitions() -> list[dict[str, str]]:
    """Return what `scontrol show partition` says of each. Silent: SLURM does not answer."""
    return [_fields(line) for line in ask("scontrol", "--oneliner", "show", "partition").splitlines()]


def nodes() -> list[dict[str, str]]:
    """Return what `scontrol show node` says of each. Silent: SLURM does not answer."""
    return [_fields(line) for line in ask("scontrol", "--oneliner", "show", "node").splitlines()]


def associations(cluster: str) -> list[dict[str, str]]:
    """Return which accounts this user may charge there, and their limits. Silent: the accounting does not answer."""
    columns = "Account,Partition,QOS,DefaultQOS,MaxSubmitJobs,MaxWall"
    return _table("associations", f"user={getpass.getuser()} cluster={cluster}", columns)


def qualities() -> list[dict[str, str]]:
    """Return the qualities of service and their limits. Silent: the accounting does not answer."""
    return _table("qos", "", "Name,MaxSubmitJobsPerUser,MaxWall")


def _table(what: str, which: str, columns: str) -> list[dict[str, str]]:
    told = ask("sacctmgr", "--noheader", "--parsable2", "show", what, *which.split(), f"format={columns}")
    return [dict(zip(columns.split(","), line.split("|"), strict=True)) for line in told.splitlines()]


def _fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\S+?)=(\S*)", line))
