"""The hub: resolve revisions to commits and hashes (`trialign lock`), and download what they stand for.

Where it is reached: huggingface.co, a mirror of it (the config's `mirror`, or HF_ENDPOINT, a URL), or a folder with the
layout `models/<owner>/<name>/...`, `datasets/...`, `spaces/...` (the config's `mirror`, a path). But for single files
of the web (`data/web.py`), nothing else in the package touches the network.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trialign.data.cards import sha256, write_json
from trialign.data.sources import SOURCE_FILE
from trialign.errors import UserError
from trialign.lock import COMMIT, FOLDER, Locked, check_folder, folder_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

    from trialign.recipes import FetchRecipe
    from trialign.settings import HubRepository
    from trialign.steps import Step

_PROGRESS_SECONDS = 10.0
_CHUNK = 1 << 20


class File(NamedTuple):
    """A file of a repository: its size in bytes and its hash, `sha256:<hex>` or `git:<hex>`."""

    size: int
    hash: str


def resolve(repository: HubRepository) -> Locked:
    """Ask the hub, or the folder that stands for it, what a revision is now.

    UserError: offline, gated, unknown repository or revision, a pattern that no file fits.
    """
    folder = _folder(repository)
    commit, files = _folder_contents(repository, folder) if folder else _hub_contents(repository, repository.revision)
    return Locked(
        **repository.model_dump(include={"repo", "type", "revision", "include"}),
        commit=commit,
        files={name: file.hash for name, file in sorted(files.items())},
        bytes=sum(file.size for file in files.values()),
    )


def fetch(step: Step[FetchRecipe]) -> dict[str, Any]:
    """Download a repository at its commit into `step.out`: real files, each held to its hash, and `source.json`.

    The hashes are the lock's; without a lock the hub's own. The download waits in `step.scratch`, so that a killed one
    goes on where it stopped, within a file too. The token is the hub client's (HF_TOKEN). Facts: commit, files, bytes,
    and how many files were held to a hash. UserError: offline, gated, unknown repository or revision, full disk, a
    pattern that no file fits, a file that is not what was locked.
    """
    recipe = step.recipe
    repository = recipe.repository
    folder = _folder(repository)
    if folder:
        commit, hashes, draft = _folder_commit(recipe), recipe.files, step.scratch / "copy"
        included = _included(repository, _names(folder))
        _check_names(repository, included, recipe.files)
        _copy(repository, folder, included, draft)
    else:
        commit, files = _hub_contents(repository, recipe.commit or repository.revision)
        hashes, draft = recipe.files or {name: file.hash for name, file in files.items()}, step.scratch / commit
        _check_names(repository, files, recipe.files)
        _download(repository, commit, files, draft)
    names = sorted(_names(draft))
    _verify(repository, draft, hashes, by="was locked" if recipe.files else "the hub says it is")
    for path in sorted(draft.iterdir()):
        shutil.move(path, step.out / path.name)
    write_json(step.out / SOURCE_FILE, {**repository.model_dump(mode="json"), "commit": commit})
    size = sum((step.out / name).stat().st_size for name in names)
    return {"commit": commit, "files": len(names), "bytes": size, "verified": len(hashes)}


# --- a folder in place of the hub -------------------------------------------------------------------------------------


def _folder(repository: HubRepository) -> Path | None:
    """Return the repository's folder in the folder that stands for the hub; None where the hub itself is asked."""
    mirror = folder_of(None)
    if mirror is None:
        return None
    check_folder(mirror)
    folder = mirror / f"{repository.type}s" / repository.repo
    if not folder.is_dir():
        raise UserError(
            f"{repository.type} {repository.repo} is not in the mirror: {folder} is no folder; put the repository's "
            "files there, or take `mirror` out of the config"
        )
    return folder


def _folder_contents(repository: HubRepository, folder: Path) -> tuple[str, dict[str, File]]:
    """Return the included files of a folder and, as it has no commits, what stands for one: a hash of theirs."""
    names = _included(repository, _names(folder))
    files = {name: File((folder / name).stat().st_size, f"sha256:{sha256(folder / name)}") for name in names}
    return f"{FOLDER}{hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()}", files


def _folder_commit(recipe: FetchRecipe) -> str:
    """Return the commit to record: one that the config names stays, whatever a folder's lock made of it."""
    revision = recipe.repository.revision
    return revision if COMMIT.fullmatch(revision) else recipe.commit or revision


def _copy(repository: HubRepository, folder: Path, names: Sequence[str], draft: Path) -> None:
    """Copy files of `folder` into `draft`."""
    _check_space(repository, sum((folder / name).stat().st_size for name in names), draft.parent)
    shutil.rmtree(draft, ignore_errors=True)
    with _explaining(repository, repository.revision):
        for name in names:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, draft / name)


# --- the hub ----------------------------------------------------------------------------------------------------------


def _hub_contents(repository: HubRepository, revision: str) -> tuple[str, dict[str, File]]:
    """Return the commit that a revision is, and its included files."""
    import huggingface_hub

    with _explaining(repository, revision):
        try:
            info = huggingface_hub.HfApi().repo_info(
                repository.repo, repo_type=repository.type, revision=revision, files_metadata=True
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # a page of HTML, or other JSON
            raise _no_hub(repository) from error
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    names = _included(repository, siblings)
    if info.sha is None:
        raise _no_hub(repository)
    return info.sha, {name: _file(repository, siblings[name]) for name in names}


def _file(repository: HubRepository, sibling: RepoSibling) -> File:
    """Return what the hub says of a file; UserError where it says too little, or gives the file in no download."""
    from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE

    if sibling.size is None or not (sibling.lfs or sibling.blob_id):
        raise _no_hub(repository)
    if sibling.size > MAX_HTTP_DOWNLOAD_SIZE:
        raise UserError(
            f"{repository.repo}: {sibling.rfilename} has {sibling.size / 1e9:.1f} GB, more than a download of the hub "
            f"may have ({MAX_HTTP_DOWNLOAD_SIZE / 1e9:.0f} GB); leave it out with `include`"
        )
    return File(sibling.size, f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git:{sibling.blob_id}")


def _no_hub(repository: HubRepository) -> UserError:
    from huggingface_hub.constants import ENDPOINT

    return UserError(
        f"{repository.type} {repository.repo}: {ENDPOINT} does not answer as the hub does (commit, sizes and hashes of "
        "files): a login page or proxy in its place, or no whole mirror; check `mirror` and HF_ENDPOINT"
    )


def _download(repository: HubRepository, commit: str, files: Mapping[str, File], draft: Path) -> None:
    """Download files into `draft`, on from where an earlier start stopped.

    One by one over plain HTTP: the client's own download of a snapshot writes to names made by chance, so that a
    killed one begins 5 GB files anew (huggingface_hub 2.4.0, file_download.py, `_download_to_tmp_and_move`).
    """
    parts = draft.with_suffix(".parts")
    for folder in (draft, parts):
        folder.mkdir(exist_ok=True)
    part_of = {name: parts / file.hash.partition(":")[2] for name, file in files.items()}
    missing = {name: file for name, file in files.items() if not (draft / name).is_file()}
    for name, file in missing.items():
        if _is_longer(part_of[name], file.size):
            part_of[name].unlink()
    have = sum(part.stat().st_size for part in {part_of[name] for name in missing} if part.is_file())
    size = sum(file.size for file in missing.values())
    _check_space(repository, size - have, draft)
    _say(f"{repository.repo}@{commit}: {len(missing)} files, {size / 1e9:.3f} GB, {have / 1e9:.3f} GB of it there")
    for name, file in missing.items():
        _say(f"{name}: {file.size / 1e6:.3f} MB")
        with _explaining(repository, commit, name):
            _download_file(repository, commit, name, file.size, part_of[name])
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            part_of[name].replace(draft / name)


def _download_file(repository: HubRepository, commit: str, name: str, size: int, part: Path) -> None:
    """Append to `part` what it lacks of a file. size: bytes of the whole file.

    A part that cannot become the file is removed, or every later start would go on behind it.
    """
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    address = hf_hub_url(repository.repo, name, repo_type=repository.type, revision=commit)
    headers = {**build_hf_headers(), "accept-encoding": "identity"}  # a range of a compressed answer is not the file's
    try:
        with part.open("ab") as file:
            http_get(
                address, file, resume_size=file.tell(), headers=headers, expected_size=size, displayed_filename=name,
                tqdm_class=_lines(),
            )  # fmt: skip
    except (OSError, HTTPError) as error:
        if not (_is_longer(part, size) or _status(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise
        part.unlink()
        raise UserError(
            f"{repository.repo}: what came for {name} is not the file of {size} bytes; a proxy may answer for the "
            "hub: run again, it fetches the file from its first byte"
        ) from error


def _is_longer(part: Path, size: int) -> bool:
    return part.is_file() and part.stat().st_size > size


def _status(error: Exception) -> int | None:
    """Return the HTTP status of a refused request; None for other errors."""
    return getattr(getattr(error, "response", None), "status_code", None)


@contextmanager
def _explaining(repository: HubRepository, revision: str, name: str = "") -> Iterator[None]:
    """Turn the errors of the hub client into one line. revision: the one that is asked for; name: of a file of it."""
    from httpx2 import HTTPError

    try:
        yield
    except (OSError, HTTPError) as error:
        raise _explained(repository, revision, name, error) from error


def _explained(repository: HubRepository, revision: str, file: str, error: Exception) -> UserError:
    """Say in one line what kept the hub client from fetching."""
    from huggingface_hub import errors

    name, status = f"{repository.type} {repository.repo}", _status(error)
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{name} is gated: accept its terms on its page on the hub and set HF_TOKEN, then run again.")
    if isinstance(error, errors.RevisionNotFoundError) and revision != repository.revision:
        return UserError(
            f"{name} no longer has the commit {revision}, which the lock names for '{repository.revision}': lock what "
            "is there now (trialign lock --upgrade), or take a mirror that has it."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{name} has no revision '{revision}'; take a commit hash from its history.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(f"{name} does not exist on the hub, or is private: check the name, or set HF_TOKEN.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(f"{name} must be fetched, but the hub is switched off: unset HF_HUB_OFFLINE and run again.")
    if file and status == HTTPStatus.NOT_FOUND:
        return UserError(f"{name}: {file} is not there at commit {revision}, though the hub lists it: a broken mirror?")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    what = f"{type(error).__name__}: {reason}"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return UserError(f"{name} is refused ({what}): set HF_TOKEN to a token that may read it, then run again.")
    return UserError(f"{name} could not be fetched ({what}); check network and disk, then run again: it goes on there.")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _lines() -> type:
    """Return a progress bar for the hub client that writes a line now and then, fit for a log file."""
    from huggingface_hub.utils import tqdm

    class Lines(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._last_line = time.monotonic()
            kwargs |= {"mininterval": _PROGRESS_SECONDS, "bar_format": "{desc}: {n_fmt}/{total_fmt}"}
            super().__init__(*args, **kwargs)

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if time.monotonic() - self._last_line >= _PROGRESS_SECONDS:
                self._last_line = time.monotonic()
                _say(msg or str(self))

    return Lines


# --- what both are held to --------------------------------------------------------------------------------------------


def _included(repository: HubRepository, names: Iterable[str]) -> list[str]:
    """Return the names that fit the repository's patterns; UserError for a pattern that none fits."""
    patterns = [f"{each}*" if each.endswith("/") else each for each in repository.include]
    names = sorted(names)
    for pattern, written in zip(patterns, repository.include, strict=True):
        if not fnmatch.filter(names, pattern):
            raise UserError(f"{repository.repo}@{repository.revision}: no file fits include pattern '{written}'.")
    if not names:
        raise UserError(f"{repository.repo}@{repository.revision}: nothing to fetch; the repository is empty.")
    return [name for name in names if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def _check_space(repository: HubRepository, missing: int, place: Path) -> None:
    """Refuse what cannot end well before it starts. missing: bytes."""
    free = shutil.disk_usage(place).free
    if missing > free:
        raise UserError(
            f"{repository.repo}: {missing / 1e9:.1f} GB to fetch, {free / 1e9:.1f} GB free; free some, "
            "narrow `include`, or put the results on a larger disk."
        )


def _names(folder: Path) -> list[str]:
    """Return the files of a folder, relative to it, less the caches that the hub's client leaves in one."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [path.as_posix() for path in paths if ".cache" not in path.parts]


def _check_names(repository: HubRepository, names: Iterable[str], locked: Mapping[str, str]) -> None:
    """Refuse other files than the locked ones, before any of them is moved. locked: empty where nothing is."""
    there = set(names)
    if locked and (missing := sorted(locked.keys() - there)):
        raise UserError(f"{repository.repo}: {missing[0]} is locked, but is not there; run trialign lock --upgrade")
    if locked and (more := sorted(there - locked.keys())):
        raise UserError(
            f"{repository.repo}: {more[0]} is there, but not locked; take it away, narrow `include`, or lock the "
            "source again (trialign lock --upgrade)"
        )


def _verify(repository: HubRepository, draft: Path, hashes: Mapping[str, str], by: str) -> None:
    """Hold the files to hashes. A file with other contents is removed, so that the next start fetches it anew."""
    for name, wanted in hashes.items():
        kind = wanted.partition(":")[0]
        found = f"{kind}:{HASHES[kind](draft / name)}"
        if found != wanted:
            (draft / name).unlink()
            raise UserError(
                f"{repository.repo}: {name} is not what {by} ({found}, not {wanted}): damaged on its way, or "
                "another version; run again to fetch it anew, or lock the source again (trialign lock --upgrade)"
            )


def _git(path: Path) -> str:
    """Return the name that git gives a file's contents: SHA-1 of `blob <size>`, a zero byte and the contents."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# kind of a hash, as a lock names it -> how it is computed
HASHES: dict[str, Callable[[Path], str]] = {"sha256": sha256, "git": _git}
