"""Single files of the web: resolve their hashes (`trialign lock`), download them, hold them to their hashes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trialign.data.cards import sha256, write_json
from trialign.data.sources import SOURCE_FILE
from trialign.errors import UserError
from trialign.lock import LockedFiles
from trialign.settings import UNKNOWN

if TYPE_CHECKING:
    from trialign.recipes import WebRecipe
    from trialign.settings import WebFiles
    from trialign.steps import Step


def resolve(source: WebFiles) -> LockedFiles:
    """Download the files once, to learn their hashes. UserError: as for `fetch`."""
    with TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in source.files}
        hashes = {name: _download(source, name, path) for name, path in paths.items()}
        size = sum(path.stat().st_size for path in paths.values())
    return LockedFiles(base=source.base, files=hashes, bytes=size)


def fetch(step: Step[WebRecipe]) -> dict[str, Any]:
    """Download the files into `step.out`, and `source.json` with the hash of each beside them.

    A file that came whole waits in `step.scratch`, so that a killed download goes on with the next one. Facts: files,
    bytes. UserError: no network, no such file, another file than its hash says, a full disk; without a hash, a .json or
    .jsonl that is not JSON.
    """
    source = step.recipe.source
    hashes = {name: _download(source, name, step.scratch / name) for name in sorted(source.files)}
    size = sum((step.scratch / name).stat().st_size for name in hashes)
    for name in hashes:
        (step.out / name).parent.mkdir(parents=True, exist_ok=True)
        (step.scratch / name).rename(step.out / name)
    write_json(step.out / SOURCE_FILE, {"kind": source.kind, "base": source.base, "files": hashes})
    return {"files": len(hashes), "bytes": size}


def _download(source: WebFiles, name: str, path: Path) -> str:
    """Make `path` of a file, unless it is there already, and hold it to its hash. Returns its SHA-256."""
    from httpx2 import HTTPError

    address, wanted = source.base + name, source.files[name]
    try:
        if not path.is_file():
            _get(address, path)
        found = sha256(path)
    except (OSError, HTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{address} could not be fetched ({type(error).__name__}: {reason}); check address, network and disk and "
            f"run again, or put the files into a folder and name it as a local source"
        ) from error
    if wanted not in (UNKNOWN, found):
        path.unlink()  # the next start fetches it anew
        raise UserError(
            f"{address} is not the file that config or lock names: SHA-256 {found}, not {wanted}; damaged on its way "
            f"(run again), or changed (correct `files`, or lock it again: trialign lock --upgrade)"
        )
    if wanted == UNKNOWN and not _is_what_it_is_called(path):
        path.unlink()
        raise UserError(
            f"{address} does not give {name}: what came is not JSON; a login page or a proxy may answer in its "
            "place: check address and network and run again, or name the file's SHA-256 in `files`"
        )
    return found


def _is_what_it_is_called(path: Path) -> bool:
    """Whether a .json is JSON or JSON lines (data sets have both under that name), and a .jsonl the latter."""
    if path.suffix == ".json":
        return _is_json(path.read_bytes()) or _is_lines(path)
    return path.suffix != ".jsonl" or _is_lines(path)


def _is_lines(path: Path) -> bool:
    with path.open("rb") as file:
        return all(_is_json(line) for line in file if line.strip()) and path.stat().st_size > 0


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _get(address: str, path: Path) -> None:
    from huggingface_hub.utils import http_backoff

    response = http_backoff("GET", address, follow_redirects=True)
    response.raise_for_status()
    print(f"{address}: {len(response.content) / 1e6:.3f} MB", file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(response.content)
    part.replace(path)
