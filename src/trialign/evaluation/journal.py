"""A journal of what was computed, so that a restart goes on where a kill stopped it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trialign.evaluation.questions import line


class Journal:
    """A file of records that survives a kill: appended to as work goes on, and read again at the next start."""

    def __init__(self, path: Path) -> None:
        """Read what is there. A last line that a kill cut short is dropped from the file, as is what a host spoilt.

        (A host that dies may leave a line of the right length whose bytes never reached the disk.)
        """
        self._path = path
        self.records: list[dict[str, Any]] = []
        if not path.exists():
            return
        whole = 0
        for part in path.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(part)
            except ValueError:
                break
            if not part.endswith(b"\n"):
                break
            self.records.append(record)
            whole += len(part)
        os.truncate(path, whole)

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records to the file, which is closed again, and to `records`."""
        new = list(records)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(map(line, new)))
        self.records += new
