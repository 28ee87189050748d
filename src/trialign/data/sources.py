"""Sources: fetch a pinned repository of the hub, and read rows from a folder of data files.

A folder may be a fetched repository, a part of the demo world or the user's own: `read_rows` knows the layouts of the
hub (`data/train_sft-00000-of-00003.parquet`, with a fingerprint after it or not), single files (`train.jsonl`,
`train.json`, `train.parquet`) and a repository without splits that has one JSON-lines file per origin
(openbmb/UltraFeedback), which is all "train".
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trialign.data.cards import BATCH, write_json
from trialign.errors import UserError

if TYPE_CHECKING:
    from trialign.recipes import FetchRecipe
    from trialign.settings import HubRepository
    from trialign.steps import Step

SOURCE_FILE = "source.json"  # where a fetched repository came from; cards of prepared data repeat it
_SUFFIXES = (".jsonl", ".json", ".parquet")
# `train-00000-of-00003`; repositories made by older versions of `datasets` append a fingerprint of 16 hex digits
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]{16})?$|-\d{5,}$")
_SPLIT_WORD = re.compile(r"^(train|test|val|valid|validation|dev|eval)([^a-z]|$)")
_NOT_DATA = {SOURCE_FILE, "card.json", "run.json", "dataset_infos.json", "dataset_info.json"}
_PROGRESS_SECONDS = 10.0


def splits(folder: Path) -> dict[str, list[Path]]:
    """Return the data files of `folder` and of `folder`/data by split: file stem less its shard number."""
    found: dict[str, list[Path]] = {}
    for where in (folder, folder / "data"):
        if not where.is_dir():
            continue
        for path in sorted(where.iterdir()):
            if path.suffix in _SUFFIXES and path.name not in _NOT_DATA and not path.name.startswith("."):
                found.setdefault(_SHARD.sub("", path.stem), []).append(path)
    return found


def split_files(folder: Path, split: str) -> list[Path]:
    """Return the files that make up `split`; UserError where there are none, naming what is there.

    Where no file is named after a split, all JSON-lines files together are "train".
    """
    found = splits(folder)
    if split in found:
        return found[split]
    lines = [path for paths in found.values() for path in paths if path.suffix == ".jsonl"]
    if split == "train" and lines and not any(_SPLIT_WORD.match(name) for name in found):
        return lines
    there = ", ".join(sorted(found)) or "no .jsonl, .json or .parquet file"
    raise UserError(f"{folder.name}: there is no split '{split}'; there is: {there}. Name one of these as the split.")


def read_rows(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split, file by file, without holding them all; UserError for what is not rows."""
    for path in split_files(folder, split):
        yield from _READERS[path.suffix](path)


def origin(folder: Path) -> dict[str, Any] | None:
    """Return what `fetch` wrote about the repository that `folder` holds; None for other folders."""
    path = folder / SOURCE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def is_text(value: Any, *, may_be_blank: bool = False) -> bool:
    """Say whether a value of a row is text: not null, not blank, and Unicode (JSON can hold halves of characters)."""
    if not isinstance(value, str) or not (may_be_blank or value.strip()):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(line, f"{path.name}, line {number}")


def _read_json(path: Path) -> Iterator[dict[str, Any]]:
    """A JSON array of rows, or JSON lines under the name .json, as the hub has both."""
    with path.open("rb") as file:
        is_array = file.read(1024).lstrip().startswith(b"[")
    if not is_array:
        yield from _read_lines(path)
        return
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path.name} is not JSON: {error}; fetch it again.") from None
    for number, row in enumerate(rows, start=1):
        yield _checked(row, f"{path.name}, row {number}")


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise UserError(f"{path.name} is not a parquet file: {error}; fetch it again.") from None


_READERS = {".jsonl": _read_lines, ".json": _read_json, ".parquet": _read_parquet}


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        return _checked(json.loads(line), where)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}; fetch the file again.") from None


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a row: a JSON object is wanted, this is a {type(row).__name__}.")
    return row


def fetch(step: Step[FetchRecipe]) -> dict[str, Any]:
    """Download a repository at its pinned revision into `step.out`: real files, and `source.json` beside them.

    The download waits in `step.scratch`, so that a killed one goes on where it stopped. The token is the hub client's
    (HF_TOKEN). Facts: commit, files, bytes. UserError: offline, gated, unknown repository or revision, full disk,
    a pattern that no file fits.
    """
    import huggingface_hub
    from httpx2 import HTTPError

    repository = step.recipe.repository
    folder = step.scratch / "download"
    arguments: dict[str, Any] = {
        "repo_id": repository.repo,
        "repo_type": repository.type,
        "allow_patterns": list(repository.include) or None,
        "cache_dir": step.scratch / "cache",
        "local_dir": folder,
        "tqdm_class": _lines(),
    }
    try:
        planned = huggingface_hub.snapshot_download(**arguments, revision=repository.revision, dry_run=True)
        size = _check_plan(repository, planned, step.scratch)
        commit = planned[0].commit_hash
        print(f"{repository.repo}@{commit}: {len(planned)} files, {size / 1e9:.3f} GB", file=sys.stderr, flush=True)
        huggingface_hub.snapshot_download(**arguments, revision=commit)
    except (OSError, HTTPError) as error:
        raise _explained(repository, error) from error
    # What the hub client keeps for itself (.cache) stays behind in the scratch folder.
    for path in sorted(folder.iterdir()):
        if path.name != ".cache":
            shutil.move(path, step.out / path.name)
    write_json(step.out / SOURCE_FILE, {**repository.model_dump(mode="json"), "commit": commit})
    return {"commit": commit, "files": len(planned), "bytes": size}


def _check_plan(repository: HubRepository, planned: list[Any], scratch: Path) -> int:
    """Return the size of the planned files in bytes, and refuse what cannot end well before it starts."""
    names = [file.filename for file in planned]
    if not names:
        raise UserError(f"{repository.repo}@{repository.revision}: nothing to fetch; no file fits `include`.")
    for pattern in repository.include:
        wanted = f"{pattern}*" if pattern.endswith("/") else pattern
        if not fnmatch.filter(names, wanted):
            raise UserError(f"{repository.repo}@{repository.revision}: no file fits include pattern '{pattern}'.")
    missing = sum(file.file_size for file in planned if file.will_download)
    free = shutil.disk_usage(scratch).free
    if missing > free:
        raise UserError(
            f"{repository.repo}: {missing / 1e9:.1f} GB to fetch, {free / 1e9:.1f} GB free; free some, "
            "narrow `include`, or put the results on a larger disk."
        )
    return sum(file.file_size for file in planned)


def _explained(repository: HubRepository, error: Exception) -> UserError:
    """Say in one line what kept the hub client from fetching."""
    from huggingface_hub import errors

    # A dry run that fails has the hub's own error as its cause.
    if isinstance(error, errors.DryRunError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    name = f"{repository.type} {repository.repo}"
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{name} is gated: accept its terms on its page on the hub and set HF_TOKEN, then run again.")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{name} has no revision '{repository.revision}'; take a commit hash from its history.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(f"{name} does not exist on the hub, or is private: check the name, or set HF_TOKEN.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(f"{name} must be fetched, but the hub is switched off: unset HF_HUB_OFFLINE and run again.")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    what = f"{type(error).__name__}: {reason}"
    return UserError(f"{name} could not be fetched ({what}); check network and disk, then run again: it goes on there.")


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
                print(msg or str(self), file=sys.stderr, flush=True)

    return Lines
