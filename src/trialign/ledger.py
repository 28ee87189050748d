"""The ledger of a working directory: which SLURM job makes which output, and where its log is.

The executor writes an entry when it has submitted a job and removes it when the job has ended. What a killed controller
leaves is how the next one finds its jobs again, and what `trialign status` shows.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(".snakemake/trialign/jobs")


class Entry(NamedTuple):
    """A submitted job. job: SLURM's id; name: rule and wildcards; log: the step's; output: the first of its outputs."""

    job: str
    name: str
    log: str
    output: str


def write(entry: Entry) -> None:
    """Keep an entry, in place of an older one of the same output."""
    path = _path(entry.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(entry._asdict()))
    draft.replace(path)


def of(output: str) -> Entry | None:
    """Return the entry of an output."""
    return _read(_path(output))


def forget(output: str) -> None:
    """Remove the entry of an output."""
    _path(output).unlink(missing_ok=True)


def entries() -> list[Entry]:
    """Return all entries, by output."""
    found = (_read(path) for path in FOLDER.glob("*.json"))
    return sorted((entry for entry in found if entry), key=lambda entry: entry.output)


def _path(output: str) -> Path:
    return FOLDER / f"{hashlib.sha1(output.encode()).hexdigest()}.json"


def _read(path: Path) -> Entry | None:
    try:
        return Entry(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
