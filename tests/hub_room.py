"""A small hub on this machine: serves a folder of repositories as the hub's client asks for them.

The folder has the layout of a mirror, `models/<owner>/<name>/...`, `datasets/...`, `spaces/...`. Files with an `LFS`
suffix are large-file-storage files there, named by SHA-256; the others by git's blob hash, as on the hub.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LFS = (".safetensors", ".parquet", ".jsonl")
_API = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/revision/([^/?]+)")
_FILE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def commit_of(folder: Path) -> str:
    """The commit that `main` of a repository stands for: it changes with the files."""
    names = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in sorted(folder.rglob("*.*"))]
    return hashlib.sha1(repr(names).encode()).hexdigest()


def blob(content: bytes) -> str:
    """Git's name of a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """What the hub holds and how it misbehaves. `cut`: path suffix -> how many requests get only half of the bytes."""

    def __init__(self, root: Path, gated: tuple[str, ...] = (), commits: dict[str, str] | None = None) -> None:
        self.root, self.gated = root, gated
        self.commits = commits or {}
        self.cut: dict[str, int] = {}
        self.altered: dict[str, bytes] = {}
        self.refused: dict[str, int] = {}  # file name -> status of the answer
        self.answer: bytes | None = None  # what the API says instead, with status 200
        self.requests: list[tuple[str, str, int]] = []  # method, path, first byte asked for
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append((self.command, self.path, self._first_byte()))
        path = self.path.split("?")[0]
        if self.hub.answer is not None and path.startswith("/api/"):
            self._send(self.hub.answer, 200)
        elif match := _API.fullmatch(path):
            kind, repo, revision = match.groups()
            if folder := self._repository(kind, repo, revision):
                self._json(self._info(folder, repo))
        elif match := _FILE.fullmatch(path):
            kind, repo, revision, name = match.groups()
            if repo in self.hub.gated:  # what files it has is public, as on the hub
                self._json({}, 403, X_Error_Code="GatedRepo")
            elif folder := self._repository(kind or "models", repo, revision):
                self._file(folder, name, self._commit(folder, repo))
        else:
            self._json({}, 404)

    def _repository(self, kind: str, repo: str, revision: str) -> Path | None:
        folder = self.hub.root / kind / repo
        if not folder.is_dir():
            self._json({}, 404, X_Error_Code="RepoNotFound")
        elif revision not in ("main", self._commit(folder, repo)):
            self._json({}, 404, X_Error_Code="RevisionNotFound")
        else:
            return folder
        return None

    def _commit(self, folder: Path, repo: str) -> str:
        return self.hub.commits.get(repo) or commit_of(folder)

    def _info(self, folder: Path, repo: str) -> dict[str, Any]:
        siblings = []
        for name, content in self._files(folder):
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entry = {"rfilename": name, "size": len(content), "blobId": blob(content)}
            siblings.append(entry | ({"lfs": lfs} if name.endswith(LFS) else {}))
        return {"id": repo, "sha": self._commit(folder, repo), "siblings": siblings}

    def _files(self, folder: Path) -> Iterator[tuple[str, bytes]]:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path.read_bytes()

    def _file(self, folder: Path, name: str, commit: str) -> None:
        if name in self.hub.refused:
            self._json({}, self.hub.refused[name])
            return
        if not (folder / name).is_file():
            self._json({}, 404, X_Error_Code="EntryNotFound")
            return
        content = (folder / name).read_bytes()
        etag = hashlib.sha256(content).hexdigest() if name.endswith(LFS) else blob(content)
        content = self.hub.altered.get(name, content)
        start = self._first_byte()
        if start and start >= len(content):
            self._json({}, 416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        for key, value in {
            "Content-Length": len(body), "Content-Type": "application/octet-stream", "ETag": f'"{etag}"',
            "X-Repo-Commit": commit, "Accept-Ranges": "bytes",
            **({"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}),
        }.items():  # fmt: skip
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut.get(name, 0) > 0:
            self.hub.cut[name] -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        with suppress(ConnectionError):  # the client was killed
            self.wfile.write(body)

    def _first_byte(self) -> int:
        return int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, **headers)

    def _send(self, body: bytes, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(root: Path, gated: tuple[str, ...] = (), commits: dict[str, str] | None = None) -> Iterator[Hub]:
    """Serve `root` on a port of this machine, `hub.url`. commits: what `main` of some repositories stands for."""
    hub = Hub(root, gated, commits)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
