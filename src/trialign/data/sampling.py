"""Samples that depend on what the rows say and on the seed, never on the order in which they came.

Each row gets a key (a hash of the seed and of its content); a sample is the rows with the smallest keys, in the order
of their keys. Rows wait on disk, so that memory does not grow with the data set.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

KEY_BYTES = 32


def digest(*parts: Any) -> bytes:
    """Return the SHA-256 of JSON-able `parts`; different parts never meet as the same text."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


def prompt_hash(prompt: str) -> str:
    """Return the SHA-256 of a prompt in hex, which is what UltraChat 200k's `prompt_id` is."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


class Spool:
    """JSON rows in a file, each with a sort key: group key (KEY_BYTES) + key within the group (KEY_BYTES)."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._starts = array("q")
        self._keys: list[bytes] = []

    def add(self, group: bytes, within: bytes, row: Any) -> None:
        """Append a row under the key `group` + `within`."""
        self._starts.append(self._file.tell())
        self._keys.append(group + within)
        self._file.write(json.dumps(row).encode() + b"\n")

    def __len__(self) -> int:
        return len(self._keys)

    def order(self, *, one_per_group: bool) -> list[int]:
        """Return row numbers by ascending key; with `one_per_group` only the first row of each group."""
        by_key = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        if not one_per_group:
            return by_key
        groups = [self._keys[i][:KEY_BYTES] for i in by_key]
        return [i for n, i in enumerate(by_key) if n == 0 or groups[n] != groups[n - 1]]

    def rows(self, order: Iterable[int]) -> Iterator[Any]:
        """Yield the rows with these numbers, in this order."""
        for i in order:
            self._file.seek(self._starts[i])
            yield json.loads(self._file.readline())

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
