"""Loaded by every Python process of a chaos run (PYTHONPATH): a step writes down when it wrote into which result.

An independent record of who wrote what: Python's own audit events, appended at once, so that a killed process leaves
its record too. TRIALIGN_SPY: the folder of the records; TRIALIGN_SPY_ROOT: the results tree.
"""

import os
import sys
import time
import uuid

_FOLDER, _ROOT = os.environ.get("TRIALIGN_SPY"), os.environ.get("TRIALIGN_SPY_ROOT")
# event -> positions of the paths that it writes
_EVENTS = {"os.rename": (0, 1), "os.link": (1,), "os.mkdir": (0,), "os.remove": (0,), "shutil.rmtree": (0,)}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_WORK, _RUN = (
    2,
    4,
)  # how many parts of a path name one step's result: .work/<fingerprint>, runs/<lineage>/seed<k>/<what>


def _result(path: str) -> str | None:
    """Return which result a path belongs to; None for what is no result, and for the files that make a lease."""
    parts = os.path.relpath(path, _ROOT).split("/")
    if parts[0] == ".work" and len(parts) > _WORK and not parts[_WORK].startswith("lease.json"):
        return "/".join(parts[:_WORK])
    if parts[0] == "runs" and len(parts) >= _RUN:
        return "/".join(parts[:_RUN])
    return None


def _start() -> None:
    record = os.open(
        f"{_FOLDER}/{os.getpid()}.{uuid.uuid4().hex}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    )

    def note(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            paths = (path,) if flags & _WRITES else ()
        elif event in _EVENTS:
            paths = tuple(arguments[position] for position in _EVENTS[event])
        else:
            return
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike) and (result := _result(os.fsdecode(path))):
                os.write(record, f"{time.time():.6f} {result}\n".encode())

    sys.addaudithook(note)


if _FOLDER and _ROOT and any(word.endswith("/bin/trialign") for word in sys.orig_argv):
    _start()
