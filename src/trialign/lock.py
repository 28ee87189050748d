"""The lock of sources: which commit of a hub repository a name stands for, and the hash of each file.

`trialign lock` writes it from the hub and the web (`trialign.data.hub`, `.web`); recipes of downloads take commit and
hashes from it, so that a run today and a run next year read the same bytes. An entry belongs to a repository, a
revision as the config has it and the file patterns, or to an address and its file names: others need their own.

A folder that stands for the hub has no commits: its entry is of its files' hashes alone and holds for folders only. The
hub's entry holds for both, since a folder is then held to the hub's hashes.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError

from trialign.errors import UserError
from trialign.settings import UNKNOWN, HubRepository, Settings, WebFiles

COMMIT = re.compile(r"[0-9a-f]{40}")
MIRROR = "TRIALIGN_MIRROR"  # the folder that stands for the hub
FOLDER = "folder:"  # before the hash of a folder's files, in place of a commit
_HOST = re.compile(r"(\w+:/.*)|(localhost|[\w-]+(\.[\w-]+)+)(:\d+)?(/.*)?")


class Locked(Settings):
    """What a repository's revision was when it was locked. Hashes are `sha256:<hex>`, or `git:<hex>` (a git blob's).

    commit: the hub's, or `folder:<hash>` where it was locked from a folder in the hub's place.
    """

    repo: str
    type: str
    revision: str
    include: tuple[str, ...]
    commit: str = Field(pattern=f"^({FOLDER})?{COMMIT.pattern}$")
    files: dict[str, str]
    bytes: int

    @property
    def key(self) -> str:
        """Its place in the lock: entries of one key replace each other."""
        return " ".join([self.type, f"{self.repo}@{self.revision}", *self.include, *(["(folder)"] * self.of_folder)])

    @property
    def of_folder(self) -> bool:
        """Whether it was locked from a folder in the hub's place."""
        return self.commit.startswith(FOLDER)

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
    def key(self) -> str:
        """Its place in the lock: entries of one key replace each other."""
        return " ".join([self.base, *sorted(self.files)])

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
    """All entries, by what they are of: configs with other sources of the same names can share a lock."""

    sources: dict[str, Locked] = Field(default={})
    web: dict[str, LockedFiles] = Field(default={})

    def of(self, source: HubRepository | WebFiles, *, folder: bool) -> Locked | LockedFiles | None:
        """Return the entry of a source; None where it is not locked. folder: whether a folder stands for the hub."""
        if isinstance(source, WebFiles):
            return next((entry for entry in self.web.values() if entry.fits(source)), None)
        fitting = [entry for entry in self.sources.values() if entry.fits(source) and (folder or not entry.of_folder)]
        return max(fitting, key=lambda entry: entry.of_folder, default=None)

    def including(self, entry: Locked | LockedFiles) -> Lock:
        """Return this lock with one entry more, in place of the one of the same source."""
        part = "web" if isinstance(entry, LockedFiles) else "sources"
        others = {name: each for name, each in getattr(self, part).items() if each.key != entry.key}
        return self.model_copy(update={part: {**others, entry.key: entry}})

    def holds(self, source: HubRepository | WebFiles, *, folder: bool) -> bool:
        """Whether the config itself, or this lock, says which bytes a source is.

        A commit in the config says it of the hub, not of a folder in its place.
        """
        if isinstance(source, WebFiles):
            named = UNKNOWN not in source.files.values()
        else:
            named = not folder and COMMIT.fullmatch(source.revision) is not None
        return named or self.of(source, folder=folder) is not None


def is_url(mirror: str) -> bool:
    """Whether a mirror is an address; else it is a folder."""
    return mirror.startswith(("http://", "https://"))


def is_mistyped(mirror: str) -> bool:
    """Whether a mirror is neither an address nor a folder by its looks: a host without http://, another protocol."""
    return not is_url(mirror) and not Path(mirror).is_dir() and _HOST.fullmatch(mirror) is not None


def check_folder(folder: Path) -> None:
    """Refuse a mirror that is not there. UserError."""
    if not folder.is_dir():
        raise UserError(f"config: mirror: '{folder}' is no folder here, and no address (https://...)")


def folder_of(mirror: str | None) -> Path | None:
    """Return the folder that stands for the hub, by a config's `mirror` or, without it, this process's; else None."""
    mirror = mirror or os.environ.get(MIRROR)
    return None if not mirror or is_url(mirror) else Path(mirror)


def use_mirror(mirror: str | None) -> None:
    """Let this process and those it starts take a mirror for the hub: a URL, or a folder. None changes nothing."""
    if mirror is None:
        return
    if is_url(mirror):
        os.environ["HF_ENDPOINT"] = mirror
        os.environ.pop(MIRROR, None)
    else:
        os.environ[MIRROR] = mirror


def read(path: Path) -> Lock:
    """Read a lock file; an empty lock where there is none. UserError for a file that is not a lock."""
    if not path.is_file():
        return Lock()
    try:
        return Lock.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {place}: {first['msg']}; delete it and write it anew with trialign lock") from None


def add(entry: Locked | LockedFiles, path: Path) -> None:
    """Put an entry into a lock file, whole or not at all, beside those that others put there meanwhile.

    UserError where the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(path):
            draft = path.with_name(f"{path.name}.draft")
            lock = read(path).including(entry)
            draft.write_text(json.dumps(lock.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
            draft.replace(path)
    except OSError as error:
        raise UserError(f"{path}: the lock cannot be written there: {error.strerror}") from error


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Keep other processes from changing `path`, by a file beside it: `path` itself is replaced by each change."""
    guard = path.with_name(f"{path.name}.held")
    while True:
        with guard.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_there(guard, file.fileno()):
                continue  # who held it before has removed it: another file is the guard now
            try:
                yield
            finally:
                guard.unlink()
            return


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def unlocked(lock: Lock, sources: Mapping[str, HubRepository | WebFiles], *, folder: bool) -> list[str]:
    """Return the names of the sources of which neither config nor lock says which bytes they are."""
    return [name for name, source in sources.items() if not lock.holds(source, folder=folder)]


def refusal(names: Iterable[str], path: str) -> UserError:
    """Return the error for sources without a lock."""
    return UserError(
        f"config: sources: {', '.join(names)}: not locked, and what a name stands for can change: run `trialign lock` "
        f"with these config files where the hub, or a mirror, can be reached; it writes commits and hashes to {path}"
    )
