"""What this working directory's SLURM jobs do: what is queued and why it waits, what runs and where its log is.

`trialign jobs` prints it beside a running Snakemake, or after one that was killed: the ledger knows what was submitted,
SLURM what became of it.
"""

from __future__ import annotations

from typing import NamedTuple

from trialign import ledger, slurm


class Row(NamedTuple):
    """A job. what: rule and wildcards; job: SLURM's id; why: the reason that a waiting one waits, else the node."""

    what: str
    job: str
    state: str
    why: str
    log: str


def rows() -> list[Row]:
    """Return the jobs of the working directory's ledger, those that run first. Silent: SLURM does not answer."""
    entries = ledger.entries()
    known = slurm.queued() if entries else {}
    known |= slurm.accounted([entry.job for entry in entries if entry.job not in known])
    found = [_row(entry, known.get(entry.job)) for entry in entries]
    return sorted(found, key=lambda row: (row.state in slurm.WAITING, row.what))


def text(found: list[Row]) -> str:
    """Return rows as aligned lines, and a sum."""
    if not found:
        return "no SLURM jobs of this folder are under way"
    heads = Row("what", "job", "state", "node, or why it waits", "log")
    widths = [max(len(row[column]) for row in [heads, *found]) for column in range(len(heads) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row.log])
        for row in [heads, *found]
    ]
    running, waiting = (sum(row.state in states for row in found) for states in (slurm.ALIVE, slurm.WAITING))
    return "\n".join([*lines, f"{running} running, {waiting} waiting, {len(found) - running - waiting} ended"])


def _row(entry: ledger.Entry, job: slurm.Job | None) -> Row:
    if job is None:
        return Row(entry.name, entry.job, "GONE", "SLURM does not know it any more", entry.log)
    return Row(entry.name, entry.job, job.state, job.reason if job.state in slurm.WAITING else job.nodes, entry.log)
