"""The lock of sources: which commit of a hub repository a name stands for, and the hash of each file.

`trialign lock` writes it from the hub and the web (`trialign.data.hub`, `.web`); recipes of downloads take commit and
hashes from it, so that a run today and a run next year read the same bytes. An entry belongs to a repository, a
revision as the config has it and the file patterns, or to an address and its file names: others need their own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from trialign.errors import UserError
from trialign.settings import UNKNOWN, HubRepository, Settings, WebFiles

COMMIT = re.compile(r"[0-9a-f]{40}")
MIRROR = "TRIALIGN_MIRROR"  # the folder that stands for the hub


class Locked(Settings):
    """What a repository's revision was when it was locked. Hashes are `sha256:<hex>`, or `git:<hex>` (a git blob's)."""

    repo: str
    type: str
    revision: str
    include: tuple[str, ...]
    commit: str = Field(pattern=COMMIT.pattern)
    files: dict[str, str]
    bytes: int

    @property
    def place(self) -> str:
        """What is locked, for people."""
        return f"{self.repo}@{self.commit}"

    def fits(self, source: HubRepository | WebFiles) -> bool:
        """Whether this entry is of the repository `source`, its revision and its patterns."""
        mine = (self.repo, self.type, self.revision, self.include)
        return isinstance(source, HubRepository) and mine == (source.repo, source.type, source.revision, source.include)


class LockedFiles(Settings):
    """What single files of the web were when they were locked: file -> SHA-256."""

    base: str
    files: dict[str, str]
    bytes: int

    @property
    def place(self) -> str:
        """What is locked, for people."""
        return self.base

    def fits(self, source: HubRepository | WebFiles) -> bool:
        """Whether this entry is of the files `source`, with the hashes that it names itself."""
        if not isinstance(source, WebFiles):
            return False
        wanted = {name: self.files.get(name) if hash == UNKNOWN else hash for name, hash in source.files.items()}
        return (self.base, self.files) == (source.base, wanted)


class Lock(Settings):
    """All entries, by the names that a config gave the sources when they were locked."""

    sources: dict[str, Locked] = Field(default={})
    web: dict[str, LockedFiles] = Field(default={})

    def of(self, source: HubRepository | WebFiles) -> Locked | LockedFiles | None:
        """Return the entry of a source; None where it is not locked."""
        entries = self.web if isinstance(source, WebFiles) else self.sources
        return next((entry for entry in entries.values() if entry.fits(source)), None)

    def including(self, name: str, entry: Locked | LockedFiles) -> Lock:
        """Return this lock with one entry more, or another."""
        part = "web" if isinstance(entry, LockedFiles) else "sources"
        return self.model_copy(update={part: {**getattr(self, part), name: entry}})

    def holds(self, source: HubRepository | WebFiles) -> bool:
        """Whether the config itself, or this lock, says which bytes a source is."""
        if isinstance(source, WebFiles):
            return UNKNOWN not in source.files.values() or self.of(source) is not None
        return COMMIT.fullmatch(source.revision) is not None or self.of(source) is not None


def use_mirror(mirror: str | None) -> None:
    """Let this process and those it starts take a mirror for the hub: a URL, or a folder. None changes nothing."""
    if mirror is not None:
        os.environ["HF_ENDPOINT" if mirror.startswith(("http://", "https://")) else MIRROR] = mirror


def read(path: Path) -> Lock:
    """Read a lock file; an empty lock where there is none. UserError for a file that is not a lock."""
    if not path.is_file():
        return Lock()
    try:
        return Lock.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {place}: {first['msg']}; write it anew with trialign lock") from None


def write(lock: Lock, path: Path) -> None:
    """Write a lock file: whole or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(lock.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
    draft.replace(path)


def unlocked(lock: Lock, sources: Mapping[str, HubRepository | WebFiles]) -> list[str]:
    """Return the names of the sources of which neither config nor lock says which bytes they are."""
    return [name for name, source in sources.items() if not lock.holds(source)]


def refusal(names: Iterable[str], path: str) -> UserError:
    """Return the error for sources without a lock."""
    return UserError(
        f"config: sources: {', '.join(names)}: not locked, and what a name stands for can change: run `trialign lock` "
        f"with these config files where the hub, or a mirror, can be reached; it writes commits and hashes to {path}"
    )
