"""Sources: the layouts of data folders, and the real hub client against a small hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_room import write_lines

from trialign.data.sources import read_rows, split_files
from trialign.errors import UserError

ROWS = [{"a": 1, "b": [{"c": "é\u2028"}]}, {"a": 2, "b": []}]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_each_format_gives_the_same_rows(tmp_path: Path) -> None:
    write_lines(tmp_path / "one.jsonl", ROWS)
    (tmp_path / "two.json").write_text(json.dumps(ROWS, indent=1))
    write_lines(tmp_path / "three.json", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "four.parquet")
    for split in ("one", "two", "three", "four"):
        assert list(read_rows(tmp_path, split)) == ROWS


@pytest.mark.parametrize(
    "fingerprints", [("", "", ""), ("-a3ecf92756993583", "-0a1788ecdd1fd2ae", "-1d21a27a8c1ac3c6")]
)
def test_hub_shards_are_read_in_order(tmp_path: Path, fingerprints: tuple[str, ...]) -> None:
    (tmp_path / "data").mkdir()
    for i in (1, 0, 2):
        name = f"train_sft-{i:05d}-of-00003{fingerprints[i]}.parquet"
        pq.write_table(pa.table({"n": [i * 10, i * 10 + 1]}), tmp_path / "data" / name)
    name = f"train_gen-00000-of-00001{fingerprints[0]}.parquet"
    pq.write_table(pa.table({"n": [99]}), tmp_path / "data" / name)
    assert [row["n"] for row in read_rows(tmp_path, "train_sft")] == [0, 1, 10, 11, 20, 21]


def test_a_repository_without_splits_is_all_train(tmp_path: Path) -> None:
    for name in ("flan", "evol_instruct", "truthful_qa"):
        write_lines(tmp_path / f"{name}.jsonl", [{"source": name}])
    (tmp_path / "card.json").write_text("{}")
    assert [row["source"] for row in read_rows(tmp_path, "train")] == ["evol_instruct", "flan", "truthful_qa"]
    assert [row["source"] for row in read_rows(tmp_path, "flan")] == ["flan"]
    with pytest.raises(UserError, match="there is: evol_instruct, flan, truthful_qa"):
        split_files(tmp_path, "test")


@pytest.mark.parametrize("there", ["test.jsonl", "test_sft.jsonl", "validation.jsonl", "dev.jsonl"])
def test_test_data_is_never_taken_for_training_data(tmp_path: Path, there: str) -> None:
    write_lines(tmp_path / there, ROWS)
    with pytest.raises(UserError, match=f"no split 'train'; there is: {Path(there).stem}"):
        split_files(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", '{"a": 1}\n\n{"a":', "train.jsonl, line 3 is not JSON"),
        ("train.jsonl", "version https://git-lfs.github.com/spec/v1\n", "train.jsonl, line 1 is not JSON"),
        ("train.jsonl", "[1]\n", "train.jsonl, line 1 is not a row"),
        ("train.json", "[1, 2]", "train.json, row 1 is not a row"),
        ("train.json", '[{"a": 1}', "train.json is not JSON"),
        ("train.parquet", "PAR?", "train.parquet is not a parquet file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        list(read_rows(tmp_path, "train"))


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is: no \.jsonl, \.json or \.parquet file"):
        split_files(tmp_path, "train")


FILES = {
    "flan.jsonl": b'{"a": 1}\n' * 1000,
    "data/train-00000-of-00001.parquet": b"PAR1" * 50,
    "README.md": b"# read me",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: one data set, a gated one, and files by revision."""

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "/me/gated" in path:
            self.reply(403, b"{}", X_Error_Code="GatedRepo")
        elif "/me/data" not in path:
            self.reply(404, b"{}", X_Error_Code="RepoNotFound")
        elif not any(known in path for known in (COMMIT, "/main")):
            self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
        elif path.startswith("/api/datasets/me/data/revision/"):
            self.reply(200, json.dumps({"id": "me/data", "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith("/api/datasets/me/data/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in FILES.items()
            ]
            self.reply(200, json.dumps(tree).encode())
        else:
            content = FILES[path.split(f"/resolve/{COMMIT}/")[1]]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.reply(200, content, ETag=etag, X_Repo_Commit=COMMIT, Content_Type="application/octet-stream")


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


SCRIPT = """
import json, sys
from pathlib import Path
from trialign.data.sources import fetch
from trialign.errors import UserError
from trialign.recipes import parse
from trialign.steps import Step
out, scratch = Path(sys.argv[2]), Path(sys.argv[3])
try:
    print(json.dumps(fetch(Step(parse(sys.argv[1]), {}, out, scratch))))
except UserError as error:
    print("UserError:", error)
"""


def fetched(tmp_path: Path, endpoint: str, offline: bool = False, **repository: Any) -> tuple[str, Path]:
    """Run the step in a process of its own: the hub client reads its endpoint when it is imported."""
    described = {"repo": "me/data", "type": "dataset", "revision": "main", **repository}
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": str(int(offline))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps({"step": "fetch", "repository": described}), out, scratch],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1], out


def test_fetch_leaves_real_files_and_their_origin(tmp_path: Path, hub: str) -> None:
    told, out = fetched(tmp_path, hub)
    size = sum(len(content) for content in FILES.values())
    assert json.loads(told) == {"commit": COMMIT, "files": 3, "bytes": size}
    there = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    assert there.keys() == {*FILES, "source.json"}
    assert not any(path.is_symlink() for path in there.values())
    assert all(there[name].read_bytes() == content for name, content in FILES.items())
    origin = json.loads(there["source.json"].read_text())
    assert (origin["repo"], origin["revision"], origin["commit"]) == ("me/data", "main", COMMIT)


def test_fetch_takes_only_what_is_included(tmp_path: Path, hub: str) -> None:
    told, out = fetched(tmp_path, hub, include=["*.jsonl", "data/"], revision=COMMIT)
    assert json.loads(told)["files"] == 2
    assert not (out / "README.md").exists()


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ({"repo": "me/gated"}, "dataset me/gated is gated: accept its terms on its page on the hub and set HF_TOKEN"),
        ({"repo": "me/nothing"}, "dataset me/nothing does not exist on the hub, or is private"),
        ({"revision": "v9"}, "dataset me/data has no revision 'v9'"),
        ({"include": ["*.jsonl", "*.csv"]}, "no file fits include pattern '*.csv'"),
        ({"include": ["*.csv"]}, "nothing to fetch"),
    ],
)
def test_fetch_says_what_is_wrong(tmp_path: Path, hub: str, repository: dict[str, Any], message: str) -> None:
    told, out = fetched(tmp_path, hub, **repository)
    assert told.startswith("UserError:")
    assert message in told
    assert list(out.iterdir()) == []


def test_fetch_without_network(tmp_path: Path, hub: str) -> None:
    told, _ = fetched(tmp_path, "http://127.0.0.1:1")
    assert told.startswith("UserError: dataset me/data could not be fetched (ConnectError")
    told, _ = fetched(tmp_path, hub, offline=True)
    assert "the hub is switched off: unset HF_HUB_OFFLINE" in told
