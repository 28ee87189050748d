"""Single files of the web, from a server of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trialign import config, study
from trialign.data import web
from trialign.data.sources import origin
from trialign.errors import UserError
from trialign.lock import Lock, LockedFiles, unlocked
from trialign.recipes import WebRecipe
from trialign.settings import WebFiles
from trialign.steps import Step

CONTENT = {"one.json": b'{"a": 1}\n', "two.json": b'{"b": "\xc3\xa9"}\n' * 1000}
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


class Server(BaseHTTPRequestHandler):
    asked: list[str]
    served: dict[str, bytes]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.removeprefix("/v1/")
        self.asked.append(name)
        content = self.served.get(name)
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (Server,), {"asked": [], "served": dict(CONTENT)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def step(tmp_path: Path, server: ThreadingHTTPServer) -> Callable[..., Step[WebRecipe]]:
    """Return a function that starts a download of `files`: each start has an empty `out`, and the same `scratch`."""
    starts = 0

    def start(files: dict[str, str]) -> Step[WebRecipe]:
        nonlocal starts
        starts += 1
        source = WebFiles(base=f"http://127.0.0.1:{server.server_port}/v1/", files=files)
        (tmp_path / f"out{starts}").mkdir()
        (tmp_path / "scratch").mkdir(exist_ok=True)
        return Step(WebRecipe(source=source), {}, tmp_path / f"out{starts}", tmp_path / "scratch")

    return start


def test_folders_of_the_address_are_kept(step: Callable[..., Step[WebRecipe]], server: ThreadingHTTPServer) -> None:
    server.RequestHandlerClass.served["a/deep/one.json"] = CONTENT["one.json"]
    for _ in range(2):  # the second start after a kill finds the file in its scratch folder
        one = step({"a/deep/one.json": SHA256["one.json"]})
        web.resolve(one.recipe.source)
        assert web.fetch(one)["files"] == 1
        assert (one.out / "a/deep/one.json").read_bytes() == CONTENT["one.json"]


def test_files_come_as_they_are_and_their_hashes_are_recorded(step: Callable[..., Step[WebRecipe]]) -> None:
    one = step({"one.json": SHA256["one.json"], "two.json": "unknown"})
    assert web.fetch(one) == {"files": 2, "bytes": sum(map(len, CONTENT.values()))}
    assert {name: (one.out / name).read_bytes() for name in CONTENT} == CONTENT
    assert origin(one.out) == {"kind": "web", "base": one.recipe.source.base, "files": SHA256}


def test_another_file_than_its_hash_is_refused_and_fetched_anew(
    step: Callable[..., Step[WebRecipe]], server: ThreadingHTTPServer
) -> None:
    handler: Any = server.RequestHandlerClass
    handler.served["two.json"] = b"<html>try later</html>"
    first = step(dict(SHA256))
    with pytest.raises(UserError, match=r"/v1/two\.json is not the file that config or lock names: .*run again"):
        web.fetch(first)
    assert not any(first.out.iterdir())
    handler.served["two.json"] = CONTENT["two.json"]
    again = step(dict(SHA256))
    web.fetch(again)
    assert (again.out / "two.json").read_bytes() == CONTENT["two.json"]
    assert handler.asked == ["one.json", "two.json", "two.json"]  # what was right is not fetched again


def test_a_file_that_is_not_there_is_named(step: Callable[..., Step[WebRecipe]]) -> None:
    with pytest.raises(UserError, match=r"/v1/three\.json could not be fetched \(HTTPStatusError: .*404") as error:
        web.fetch(step({"three.json": "unknown"}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("two.json", b"<html>log in</html>"),
        ("two.json", b""),
        ("two.json", b'{"a": 1'),
        ("two.jsonl", b'{"a": 1}\n<html>log in</html>\n'),
        ("two.jsonl", b"[\n1\n]\n"),
    ],
)
def test_a_page_is_not_taken_for_json_of_an_unknown_hash(
    step: Callable[..., Step[WebRecipe]], server: ThreadingHTTPServer, name: str, content: bytes
) -> None:
    handler: Any = server.RequestHandlerClass
    handler.served[name] = content
    first = step({name: "unknown"})
    with pytest.raises(UserError, match=rf"/v1/{name} does not give {name}: what came is not JSON"):
        web.fetch(first)
    with pytest.raises(UserError, match="what came is not JSON"):
        web.resolve(first.recipe.source)
    handler.served[name] = CONTENT["two.json"]
    assert web.fetch(step({name: "unknown"}))["files"] == 1


@pytest.mark.parametrize("name", ["../one.json", "a/../b.json", "/b.json", "a//b.json", "a/", ".hidden", ""])
def test_names_stay_in_the_folder(name: str) -> None:
    with pytest.raises(ValidationError):
        WebFiles(base="https://example.org/", files={name: "unknown"})


@pytest.mark.parametrize("wanted", ["", "unknowable", SHA256["one.json"][1:], None])
def test_a_hash_is_a_hash_or_unknown(wanted: str | None) -> None:
    with pytest.raises(ValidationError):
        WebFiles(base="https://example.org/", files={"one.json": wanted})


def test_a_recipe_survives_its_json() -> None:
    recipe = WebRecipe(source=WebFiles(base="https://example.org/v1/", files={"b.json": "unknown", **SHA256}))
    assert WebRecipe.model_validate_json(recipe.canonical()) == recipe
    assert list(json.loads(recipe.canonical())["source"]["files"]) == ["b.json", "one.json", "two.json"]


CONFIG = """
lock: {lock}
sources:
  mine: {{kind: web, base: "http://127.0.0.1:{port}/v1/", files: {{one.json: {one}, two.json: unknown}}}}
data:
  ultrachat: {{source: mine}}
"""


def lock(tmp_path: Path, port: int, one: str = "unknown", *options: str) -> subprocess.CompletedProcess[str]:
    """Run `trialign lock` on the demo with its conversations from the web."""
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(CONFIG.format(lock=tmp_path / "lock.json", port=port, one=one))
    command = [f"{Path(sys.executable).parent}/trialign", "lock", *options]
    return subprocess.run(
        [*command, "config/config.yaml", "config/demo.yaml", str(overlay)],
        env=os.environ | {"HF_HUB_OFFLINE": "0"}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def only_entry(tmp_path: Path) -> dict[str, Any]:
    (entry,) = json.loads((tmp_path / "lock.json").read_text())["web"].values()
    return entry


def test_lock_writes_the_hashes_and_downloads_are_held_to_them(tmp_path: Path, server: ThreadingHTTPServer) -> None:
    handler: Any = server.RequestHandlerClass
    files = ("config/config.yaml", "config/demo.yaml", str(tmp_path / "mine.yaml"))
    done = lock(tmp_path, server.server_port)
    assert done.returncode == 0 and "locked mine: http://127.0.0.1" in done.stdout, done.stdout
    entry = only_entry(tmp_path)
    assert entry["files"] == SHA256 and entry["bytes"] == sum(map(len, CONTENT.values()))
    experiment = config.load_files([Path(name) for name in files])
    assert study.fetch_recipe(experiment, "mine").source.files == SHA256
    study.check_lock(experiment, ["mine"])

    handler.served["two.json"] = b"[]"
    assert "kept   mine" in lock(tmp_path, server.server_port).stdout
    assert only_entry(tmp_path) == entry
    assert "locked mine" in lock(tmp_path, server.server_port, SHA256["one.json"], "--upgrade").stdout
    assert only_entry(tmp_path)["files"]["two.json"] != SHA256["two.json"]


def test_an_entry_is_of_its_address_names_and_known_hashes() -> None:
    base, one, two = "https://example.org/v1/", SHA256["one.json"], SHA256["two.json"]
    held = Lock(web={"mine": LockedFiles(base=base, files={"one.json": one, "two.json": two}, bytes=9)})
    open_files = {"one.json": one, "two.json": "unknown"}
    assert unlocked(held, {"a": WebFiles(base=base, files=open_files)}, folder=False) == []
    assert (
        unlocked(Lock(), {"a": WebFiles(base=base, files={"one.json": one})}, folder=False) == []
    )  # the config says it all
    others = {
        "address": WebFiles(base="https://example.org/v2/", files=open_files),
        "names": WebFiles(base=base, files={"two.json": "unknown"}),
        "hash": WebFiles(base=base, files={"one.json": two, "two.json": "unknown"}),
    }
    assert unlocked(held, others, folder=False) == list(others)
