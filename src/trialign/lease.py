"""Leases: one holder at a time for a folder of work. Whether a holder lives is asked of the kernel or of SLURM.

A process of this host is asked for by its pid and its start time; one of another host by the SLURM job it ran in. No
clock decides: a job that was suspended for a week still holds, one that was killed a second ago does not.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trialign import slurm
from trialign.errors import Again, UserError

LEASE = "lease.json"
POLL_SECONDS = 0.2
SLURM_POLL_SECONDS = 10.0


@contextmanager
def held(work: Path) -> Iterator[Path]:
    """Hold the folder `work`, made if it is not there; removed in the end, but kept when the holder fails or dies.

    Follows a dead holder; waits for a live one of this host, but never inside a SLURM job, which would idle: Again
    names the job to come after. UserError for a holder of which it cannot be told whether it lives.
    """
    lease = work / LEASE
    mine = json.dumps(myself())
    while not _create(lease, mine):
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


def lives(holder: Mapping[str, Any]) -> bool | None:
    """Say whether a holder, as `myself` described it, lives; None where neither kernel nor SLURM can tell."""
    here, job = holder["host"] == socket.gethostname(), holder.get("job")
    if here and _birth(holder["pid"]) == holder["birth"]:
        return True
    if job and job != slurm.own_job():
        with suppress(slurm.Silent):
            return slurm.state(job) in slurm.ALIVE  # on this host too: processes that it started may outlive it
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


def _birth(pid: int) -> str | None:
    """Return the kernel's start time of a process, None if there is none: a reused pid has another."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None
