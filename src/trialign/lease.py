"""Leases: one holder at a time for a folder of work. Whether a holder lives is asked of the kernel or of SLURM.

A process of this host is asked for by its pid and its start time; one of another host by the SLURM job it ran in. No
clock decides: a job that was suspended for a week still holds, one that was killed a second ago does not. A process
that outlived its SLURM job on this host is ended first: SLURM has ended it already, as far as it knows.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trialign import slurm
from trialign.errors import Again, UserError

LEASE = "lease.json"
POLL_SECONDS = 0.2
SLURM_POLL_SECONDS = 10.0
KILL_SECONDS = 60.0


@contextmanager
def held(work: Path, what: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Hold the folder `work`, made if it is not there; removed in the end, but kept when the holder fails or dies.

    what: of the work, JSON values that stand in the lease beside its holder, for whoever reads it (`trialign status`).
    Follows a dead holder; waits for a live one of this host, but never inside a SLURM job, which would idle: Again
    names the job to come after. UserError for a holder of which it cannot be told whether it lives.
    """
    lease = work / LEASE
    while not _create(lease, json.dumps({**(what or {}), **myself(), "since": time.time()})):
        time.sleep(_clear_dead(lease))
    try:
        yield work
    except BaseException:
        lease.unlink(missing_ok=True)
        raise
    shutil.rmtree(work, ignore_errors=True)  # those that waited may be in there: they look for the result first


def myself() -> dict[str, Any]:
    """Return what tells this process from all others: host, pid, the kernel's start time, and its SLURM job."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "birth": _birth(pid), "job": slurm.own_job()}


def is_held(work: Path) -> bool:
    """Say whether a folder has a holder that lives, or of which that cannot be told."""
    try:
        return lives(json.loads((work / LEASE).read_text())) is not False
    except FileNotFoundError:
        return False


def lives(holder: Mapping[str, Any], state: Callable[[str], str | None] = slurm.state) -> bool | None:
    """Say whether a holder, as `myself` described it, lives; None where neither kernel nor SLURM can tell.

    state: what is asked for the state of a SLURM job; see `slurm.state`.
    """
    here, job = holder["host"] == socket.gethostname(), holder.get("job")
    if here and _birth(holder["pid"]) == holder["birth"]:
        return True
    if job and job != slurm.own_job():
        with suppress(slurm.Silent):
            return state(job) in slurm.ALIVE  # on this host too: processes that it started may outlive it
        return False if here else None
    return False if here or job else None  # its own job: before that was requeued


def _create(lease: Path, text: str) -> bool:
    """Write the lease and give it its name in one step, so that none ever shows half; False if there is one already."""
    draft = lease.with_name(f"{LEASE}.{socket.gethostname()}.{os.getpid()}")
    try:
        lease.parent.mkdir(parents=True, exist_ok=True)  # fails where the folder vanishes while it looks at it
        draft.write_text(text)
        os.link(draft, lease)
    except (FileExistsError, FileNotFoundError):  # held; or its holder has just finished and removed the folder
        return False
    finally:
        draft.unlink(missing_ok=True)
    return True


def _clear_dead(lease: Path) -> float:
    """Remove the lease of a dead holder. Returns the seconds to wait for a live one. Again, UserError: see `held`.

    The lease is moved aside first: of several processes that found the same dead holder, one moves it, and a lease
    that turns out to be another's by then is put back.
    """
    try:
        text = lease.read_text()
    except FileNotFoundError:
        return 0.0
    holder = json.loads(text)
    if _may_be_waited_for(lease, holder):
        return SLURM_POLL_SECONDS if holder.get("job") else POLL_SECONDS
    aside = lease.with_name(f"{LEASE}.dead.{socket.gethostname()}.{os.getpid()}")
    with suppress(FileNotFoundError):
        lease.rename(aside)
        if aside.read_text() != text:
            aside.rename(lease)
        else:
            aside.unlink()
    return 0.0


def _may_be_waited_for(lease: Path, holder: Mapping[str, Any]) -> bool:
    """Return False for a dead holder. Again: a live one in another SLURM job; UserError: one that may live."""
    if _outlived_its_job(holder):
        _end(lease, holder)
    alive, job = lives(holder), holder.get("job")
    if alive is None:
        raise UserError(
            f"{lease}: held by process {holder['pid']} on host {holder['host']}{f' (SLURM job {job})' if job else ''}, "
            f"and whether it lives cannot be told from here; if it is gone, delete this file and start again"
        )
    own = slurm.own_job()
    if alive and own and job and job != own:
        raise Again(f"job {job} works on the same thing", after=job)
    return alive


def _outlived_its_job(holder: Mapping[str, Any]) -> bool:
    """Say whether a holder is a process of this host whose SLURM job has ended, or was requeued since."""
    job, age = holder.get("job"), _age(holder)
    if not job or age is None or holder["host"] != socket.gethostname():
        return False
    with suppress(slurm.Silent):
        if job != slurm.own_job():
            return slurm.state(job) not in slurm.ALIVE
        runs = slurm.seconds_run(job)
        return runs is not None and age > runs + SLURM_POLL_SECONDS
    return False


def _end(lease: Path, holder: Mapping[str, Any]) -> None:
    """Kill a process that should be dead, and wait until it is. UserError if it does not die."""
    told = f"process {holder['pid']} outlived its SLURM job {holder['job']}"
    print(f"{told}: killed, its work goes on here", file=sys.stderr, flush=True)
    end = time.monotonic() + KILL_SECONDS
    with suppress(ProcessLookupError, PermissionError):
        os.kill(holder["pid"], signal.SIGKILL)
    while _age(holder) is not None:
        if time.monotonic() > end:
            raise UserError(f"{lease}: {told} on {holder['host']} and cannot be killed: have it ended, and start again")
        time.sleep(POLL_SECONDS)


def _age(holder: Mapping[str, Any]) -> float | None:
    """Return for how many seconds a process of this host has run; None if it does not."""
    if _birth(holder["pid"]) != holder["birth"]:
        return None
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - int(holder["birth"]) / os.sysconf("SC_CLK_TCK")


def _birth(pid: int) -> str | None:
    """Return the kernel's start time of a process, None if there is none or it is dead: a reused pid has another."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
