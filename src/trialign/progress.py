"""How far a step is: a small file beside its lease, written by the step itself, read by `trialign status`.

And, of one that failed, the last lines of its log.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE = "progress.json"
SECONDS = 5.0
LAST_LINES = 15


class Progress:
    """Writes down how far a step is, at most every few seconds; a disk that is full is no reason to fail."""

    def __init__(self, work: Path) -> None:
        """work: the folder that the step's lease is in."""
        self._file, self._told = work / FILE, -SECONDS

    def tell(self, done: int, of: int, unit: str, **more: float) -> None:
        """Write that `done` of so many units are done; at once for the first and the last word.

        more: `loss`, `tokens_per_second`, `seconds_left`, where they are known.
        """
        now = time.monotonic()
        if now - self._told < SECONDS and done < of:
            return
        self._told = now
        draft = self._file.with_name(f"{FILE}.{os.getpid()}")
        with suppress(OSError):
            draft.write_text(json.dumps({"done": done, "of": of, "unit": unit, "told": time.time(), **more}))
            draft.replace(self._file)


def read(work: Path) -> dict[str, Any]:
    """Return what was last told of the work in a folder; nothing where nothing was."""
    try:
        return json.loads((work / FILE).read_text())
    except (OSError, ValueError):  # half a file of a host that died
        return {}


def last_lines(log: Path) -> list[str]:
    """Return the last lines of a log, less blank ones at its end; none where there is no log."""
    return log.read_text(errors="replace").rstrip().splitlines()[-LAST_LINES:] if log.is_file() else []
