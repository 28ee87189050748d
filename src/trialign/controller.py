"""Who runs Snakemake in a working directory: a killed one's locks are cleared, a living one's are explained.

Snakemake's locks name no holder, so that the locks of a killed one stop every later start. Each start writes down here
who it is and which lock files are its own; the next one clears exactly those whose holder is known to be dead.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trialign import lease

FOLDER = Path(".snakemake/trialign/controllers")


def register(locks: Iterable[str]) -> None:
    """Write down this process and its lock files, until it ends."""
    identity = lease.myself()
    record = FOLDER / f"{identity['host']}.{identity['pid']}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    record.write_text(json.dumps({**identity, "started": started, "locks": {path: _stamp(path) for path in locks}}))
    atexit.register(record.unlink, missing_ok=True)


def others_at_work() -> bool:
    """Say whether another Snakemake is at work in this folder, or may be."""
    return bool(at_work())


def at_work() -> list[tuple[str, bool | None]]:
    """Return each other Snakemake of this folder that is not known to be dead, in words, and whether it lives.

    None: that cannot be told. Nothing is cleared: for whoever only looks.
    """
    found = [(_who(told), lease.lives(told)) for _, told in _records()]
    return [(who, alive) for who, alive in found if alive is not False]


def clear_dead_locks() -> list[str]:
    """Remove the locks of starts that are dead. Returns lines for people: what was cleared, and who else is at work."""
    said = []
    for record, told in _records():
        who = _who(told)
        alive = lease.lives(told)
        if alive is False:
            cleared = [Path(path) for path, stamp in told["locks"].items() if _stamp(path) == stamp]
            for path in cleared:
                path.unlink(missing_ok=True)
            record.unlink(missing_ok=True)
            said.append(f"{who} was killed" + (": its lock of this folder is cleared" if cleared else ""))
        elif alive:
            said.append(
                f"{who} is at work in this folder; what it makes is locked until it ends: kill -INT {told['pid']}"
            )
        else:
            said.append(
                f"{who} may be at work in this folder: that cannot be told from this host. If it is gone, remove "
                f"{record} and run snakemake --unlock"
            )
    return said


def _who(told: Mapping[str, Any]) -> str:
    return f"Snakemake of {told['started']} (process {told['pid']} on {told['host']})"


def _records() -> Iterator[tuple[Path, dict[str, Any]]]:
    for record in sorted(FOLDER.glob("*.json")):
        try:
            told = json.loads(record.read_text())
        except (OSError, ValueError):  # it just ended, or was killed while it wrote
            continue
        if told["pid"] != os.getpid() or told["host"] != lease.myself()["host"]:
            yield record, told


def _stamp(path: str) -> list[int] | None:
    """Return what tells a lock file from another of the same name; None if there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return [found.st_ino, found.st_mtime_ns]
