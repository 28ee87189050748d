"""Downloads and the lock: the real hub client against a small hub on this machine, and a folder in the hub's place."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_room import Hub, blob, commit_of, serving
from trialign import config, study
from trialign import lock as locking
from trialign.errors import UserError
from trialign.lock import Lock, Locked
from trialign.settings import HubRepository

FILES = {
    "flan.jsonl": b'{"a": 1}\n' * 1000,
    "data/train-00000-of-00001.parquet": b"PAR1" * 50,
    "README.md": b"# read me",
}
STEP = """
import json, sys
from pathlib import Path
from trialign.data.hub import fetch
from trialign.errors import UserError
from trialign.recipes import parse
from trialign.steps import Step
out, scratch = Path(sys.argv[2]), Path(sys.argv[3])
try:
    print(json.dumps(fetch(Step(parse(sys.argv[1]), {}, out, scratch))))
except UserError as error:
    print("UserError:", error)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "hub" / "datasets" / "me" / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    gated = tmp_path / "hub/datasets/me/gated/secret.jsonl"
    gated.parent.mkdir()
    gated.write_text("{}")
    (tmp_path / "hub/datasets/me/empty").mkdir()
    return tmp_path / "hub"


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    with serving(root, gated=("me/gated",)) as hub:
        yield hub


@pytest.fixture
def commit(root: Path) -> str:
    return commit_of(root / "datasets/me/data")


def environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRIALIGN_"))}
    return clean | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"} | variables


def recipe(commit: str | None = None, files: dict[str, str] | None = None, **repository: Any) -> str:
    described = {"repo": "me/data", "type": "dataset", "revision": "main", **repository}
    return json.dumps({"step": "fetch", "repository": described, "commit": commit, "files": files or {}})


def start(tmp_path: Path, text: str, **variables: str) -> tuple[subprocess.Popen[str], Path]:
    """Start the step in a process of its own: the hub client reads its endpoint when it is imported."""
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", STEP, text, str(out), str(scratch)], env=environment(tmp_path, **variables),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, out


def fetched(tmp_path: Path, text: str, **variables: str) -> tuple[str, Path]:
    process, out = start(tmp_path, text, **variables)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return stdout.strip().splitlines()[-1], out


def hashes() -> dict[str, str]:
    large = (".jsonl", ".parquet")
    return {
        name: f"sha256:{hashlib.sha256(content).hexdigest()}" if name.endswith(large) else f"git:{blob(content)}"
        for name, content in FILES.items()
    }


def test_fetch_leaves_real_files_and_their_origin(tmp_path: Path, hub: Hub, commit: str) -> None:
    told, out = fetched(tmp_path, recipe(), HF_ENDPOINT=hub.url)
    size = sum(len(content) for content in FILES.values())
    assert json.loads(told) == {"commit": commit, "files": 3, "bytes": size, "verified": 3}
    there = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    assert there.keys() == {*FILES, "source.json"}
    assert not any(path.is_symlink() for path in there.values())
    assert all(there[name].read_bytes() == content for name, content in FILES.items())
    origin = json.loads(there["source.json"].read_text())
    assert (origin["repo"], origin["revision"], origin["commit"]) == ("me/data", "main", commit)


def test_fetch_takes_only_what_is_included(tmp_path: Path, hub: Hub, commit: str) -> None:
    told, out = fetched(tmp_path, recipe(include=["*.jsonl", "data/"], revision=commit), HF_ENDPOINT=hub.url)
    assert json.loads(told)["files"] == 2
    assert not (out / "README.md").exists()


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ({"repo": "me/gated"}, "dataset me/gated is gated: accept its terms on its page on the hub and set HF_TOKEN"),
        ({"repo": "me/nothing"}, "dataset me/nothing does not exist on the hub, or is private"),
        ({"revision": "v9"}, "dataset me/data has no revision 'v9'"),
        ({"include": ["*.jsonl", "*.csv"]}, "no file fits include pattern '*.csv'"),
        ({"repo": "me/empty"}, "nothing to fetch; the repository is empty"),
    ],
)
def test_fetch_says_what_is_wrong(tmp_path: Path, hub: Hub, repository: dict[str, Any], message: str) -> None:
    told, out = fetched(tmp_path, recipe(**repository), HF_ENDPOINT=hub.url)
    assert told.startswith("UserError:")
    assert message in told
    assert list(out.iterdir()) == []


def test_fetch_without_network(tmp_path: Path, hub: Hub) -> None:
    told, _ = fetched(tmp_path, recipe(), HF_ENDPOINT="http://127.0.0.1:1")
    assert told.startswith("UserError: dataset me/data could not be fetched (ConnectError")
    told, _ = fetched(tmp_path, recipe(), HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert "the hub is switched off: unset HF_HUB_OFFLINE" in told


def test_a_file_that_was_cut_off_is_fetched_to_its_end(tmp_path: Path, hub: Hub) -> None:
    hub.cut["flan.jsonl"] = 1
    told, out = fetched(tmp_path, recipe(files=hashes()), HF_ENDPOINT=hub.url)
    assert json.loads(told)["verified"] == 3 and hub.cut["flan.jsonl"] == 0
    assert (out / "flan.jsonl").read_bytes() == FILES["flan.jsonl"]


def test_a_killed_download_goes_on_within_its_file(tmp_path: Path, root: Path) -> None:
    """SIGKILL in the middle of a large file, after which no byte that had come is asked for again."""
    large = root / "datasets/me/data/large.jsonl"
    large.write_bytes(os.urandom(1 << 20) * 200)
    wanted = hashes() | {"large.jsonl": f"sha256:{hashlib.sha256(large.read_bytes()).hexdigest()}"}
    part = tmp_path / "scratch" / f"{commit_of(large.parent)}.parts" / wanted["large.jsonl"].removeprefix("sha256:")
    with serving(root) as hub:
        process, out = start(tmp_path, recipe(files=wanted), HF_ENDPOINT=hub.url)
        while not (part.is_file() and part.stat().st_size > 1 << 22):
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert list(out.iterdir()) == []
        there = part.stat().st_size
        assert 0 < there < large.stat().st_size
        hub.requests.clear()
        told, _ = fetched(tmp_path, recipe(files=wanted), HF_ENDPOINT=hub.url)
        assert json.loads(told)["verified"] == 4
        again = [(path.rpartition("/")[2], since) for _, path, since in hub.requests if "/resolve/" in path]
        assert again == [("large.jsonl", there)]
    assert (out / "large.jsonl").read_bytes() == large.read_bytes()


def test_a_revision_that_moves_between_two_starts_is_fetched_whole(tmp_path: Path, root: Path, hub: Hub) -> None:
    """A download that was cut off before `main` moved leaves nothing of the old files in the new."""
    data = root / "datasets/me/data"
    (data / "z.jsonl").write_bytes(b'{"z": 1}\n')
    hub.altered["z.jsonl"] = b'{"z": 2}\n'
    told, _ = fetched(tmp_path, recipe(), HF_ENDPOINT=hub.url)
    assert told.startswith("UserError: me/data: z.jsonl is not what the hub says it is")
    (data / "flan.jsonl").write_bytes(b'{"a": 12}\n')
    hub.altered.clear()
    told, out = fetched(tmp_path, recipe(), HF_ENDPOINT=hub.url)
    assert json.loads(told)["commit"] == commit_of(data)
    assert {path.name: path.read_bytes() for path in out.glob("*.jsonl")} == {
        "flan.jsonl": b'{"a": 12}\n', "z.jsonl": b'{"z": 1}\n',
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "set HF_TOKEN to a token that may read it, then run again"),
        (403, "set HF_TOKEN to a token that may read it, then run again"),
        (404, "README.md is not there at commit "),
    ],
)
def test_a_file_that_is_refused_is_not_blamed_on_the_network(
    tmp_path: Path, hub: Hub, status: int, message: str
) -> None:
    hub.refused["README.md"] = status
    told, _ = fetched(tmp_path, recipe(), HF_ENDPOINT=hub.url)
    assert told.startswith("UserError: ") and "network" not in told
    assert message in told or (status == 401 and "is private: check the name, or set HF_TOKEN" in told)


def siblings(**entry: Any) -> bytes:
    return json.dumps({"id": "me/data", "sha": "1" * 40, "siblings": [{"rfilename": "a.jsonl", **entry}]}).encode()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>log in</html>", "does not answer as the hub does"),
        (b"[1]", "does not answer as the hub does"),
        (b"{}", "does not answer as the hub does"),
        (siblings(size=1, blobId="1" * 40).replace(b'"sha"', b'"no"'), "does not answer as the hub does"),
        (siblings(), "does not answer as the hub does"),
        (siblings(size=1), "does not answer as the hub does"),
        (siblings(size=60 * 10**9, blobId="1" * 40), "a.jsonl has 60.0 GB, more than a download of the hub may have"),
    ],
)
def test_what_answers_in_the_hubs_place_is_told_from_it(tmp_path: Path, hub: Hub, answer: bytes, message: str) -> None:
    hub.answer = answer
    told, _ = fetched(tmp_path, recipe(), HF_ENDPOINT=hub.url)
    assert told.startswith("UserError: ") and message in told


def test_a_commit_that_is_gone_is_named_and_not_the_branch(tmp_path: Path, hub: Hub) -> None:
    told, _ = fetched(tmp_path, recipe(commit="9" * 40, files=hashes()), HF_ENDPOINT=hub.url)
    assert told.startswith(f"UserError: dataset me/data no longer has the commit {'9' * 40}, which the lock names for")
    assert "trialign lock --upgrade" in told


LONGER = FILES["flan.jsonl"] + b"<html>and more</html>"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (LONGER, ["what came for flan.jsonl is not the file of 9000 bytes"]),
        # a page that is shorter becomes the beginning of the file: found by size, by range, or by hash
        (
            b"<html>log in</html>",
            ["could not be fetched (OSError: Consistency check failed", "what came for flan.jsonl"],
        ),
    ],
)
def test_what_is_not_the_file_never_stays_its_beginning(tmp_path: Path, hub: Hub, body: bytes, said: list[str]) -> None:
    """A proxy that answers for the hub: when it is gone, the file is fetched from its first byte."""
    hub.altered["flan.jsonl"] = body
    for expected in said:
        told, _ = fetched(tmp_path, recipe(files=hashes()), HF_ENDPOINT=hub.url)
        assert told.startswith("UserError: ") and expected in told
    hub.altered.clear()
    hub.requests.clear()
    told, out = fetched(tmp_path, recipe(files=hashes()), HF_ENDPOINT=hub.url)
    assert json.loads(told)["verified"] == 3
    assert [since for _, path, since in hub.requests if path.endswith("/flan.jsonl")] == [0]
    assert (out / "flan.jsonl").read_bytes() == FILES["flan.jsonl"]


def test_a_beginning_that_is_not_the_files_is_found_by_the_hash_and_fetched_anew(tmp_path: Path, hub: Hub) -> None:
    hub.altered["flan.jsonl"] = b"<html>log in</html>"
    fetched(tmp_path, recipe(files=hashes()), HF_ENDPOINT=hub.url)
    hub.altered.clear()
    told, _ = fetched(tmp_path, recipe(files=hashes()), HF_ENDPOINT=hub.url)
    assert told.startswith("UserError: me/data: flan.jsonl is not what was locked")
    hub.requests.clear()
    told, _ = fetched(tmp_path, recipe(files=hashes()), HF_ENDPOINT=hub.url)
    assert json.loads(told)["verified"] == 3
    assert [since for _, path, since in hub.requests if path.endswith("/flan.jsonl")] == [0]


def test_a_part_that_is_too_long_is_begun_anew_and_one_of_two_equal_files_counts_once(
    tmp_path: Path, root: Path, hub: Hub
) -> None:
    data = root / "datasets/me/data"
    content = bytes(4_000_000)
    for name in ("one.jsonl", "two.jsonl"):
        (data / name).write_bytes(content)
    parts = tmp_path / "scratch" / f"{commit_of(data)}.parts"
    parts.mkdir(parents=True)
    (parts / hashlib.sha256(content).hexdigest()).write_bytes(content[:2_000_000])
    (parts / hashes()["README.md"].removeprefix("git:")).write_bytes(b"x" * 1000)
    process, out = start(tmp_path, recipe(), HF_ENDPOINT=hub.url)
    told, log = process.communicate(timeout=120)
    assert json.loads(told)["verified"] == 5, told
    assert "5 files, 0.008 GB, 0.002 GB of it there" in log
    since = {path.rpartition("/")[2]: first for _, path, first in hub.requests if "/resolve/" in path}
    assert since["one.jsonl"] == 2_000_000 and since["README.md"] == 0
    assert (out / "README.md").read_bytes() == FILES["README.md"]


def test_a_file_that_is_not_what_was_locked_is_refused_and_fetched_anew(tmp_path: Path, hub: Hub) -> None:
    hub.altered["flan.jsonl"] = b'{"a": 2}\n' * 1000
    told, out = fetched(tmp_path, recipe(files=hashes()), HF_ENDPOINT=hub.url)
    assert told.startswith("UserError: me/data: flan.jsonl is not what was locked (sha256:")
    assert list(out.iterdir()) == []
    hub.altered.clear()
    told, out = fetched(tmp_path, recipe(files=hashes()), HF_ENDPOINT=hub.url)
    assert json.loads(told)["verified"] == 3
    assert (out / "flan.jsonl").read_bytes() == FILES["flan.jsonl"]


def test_a_disk_without_room_is_refused_before_anything_is_fetched(tmp_path: Path, root: Path, hub: Hub) -> None:
    if os.geteuid():
        pytest.skip("needs root, to mount a small disk")
    (root / "datasets/me/data/large.jsonl").write_bytes(bytes(1 << 20))
    (tmp_path / "scratch").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(tmp_path / "scratch")]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        told, out = fetched(tmp_path, recipe(), HF_ENDPOINT=hub.url)
        copied, _ = fetched(tmp_path, recipe(), TRIALIGN_MIRROR=str(root))
    finally:
        subprocess.run(["umount", str(tmp_path / "scratch")], check=True)
    for said in (told, copied):
        assert said.startswith("UserError: me/data: 0.0 GB to fetch, 0.0 GB free; free some")
    assert not list(out.iterdir())


def test_a_folder_stands_for_the_hub(tmp_path: Path, root: Path) -> None:
    sums = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in FILES.items()}
    told, out = fetched(tmp_path, recipe(files=sums | hashes()), TRIALIGN_MIRROR=str(root), HF_HUB_OFFLINE="1")
    assert json.loads(told)["verified"] == 3
    assert all((out / name).read_bytes() == content for name, content in FILES.items())
    (root / "datasets/me/data/README.md").write_text("# read this")
    told, _ = fetched(tmp_path, recipe(files=hashes()), TRIALIGN_MIRROR=str(root))
    assert "README.md is not what was locked" in told
    told, _ = fetched(tmp_path, recipe(repo="me/other"), TRIALIGN_MIRROR=str(root))
    assert told.startswith("UserError: dataset me/other is not in the mirror: ")


CONFIG = """
lock: {lock}
mirror: {mirror}
sources:
  mine: {{kind: hub, type: dataset, repo: me/data, revision: main, include: ["*.jsonl", "*.md"]}}
data:
  ultrachat: {{source: mine}}
"""


def lock(tmp_path: Path, mirror: str, *options: str, config: str = CONFIG) -> subprocess.CompletedProcess[str]:
    """Run `trialign lock` on the demo with its conversations from the hub."""
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(config.format(lock=tmp_path / "lock.json", mirror=mirror))
    return subprocess.run(
        [
            f"{Path(sys.executable).parent}/trialign", "lock", *options,
            "config/config.yaml", "config/demo.yaml", str(overlay),
        ],
        env=environment(tmp_path), text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_lock_writes_commits_and_hashes_and_keeps_them(tmp_path: Path, root: Path, hub: Hub, commit: str) -> None:
    done = lock(tmp_path, hub.url)
    assert done.returncode == 0 and f"locked mine: me/data@{commit}, 2 files" in done.stdout, done.stdout
    (entry,) = entries(tmp_path)
    assert entry["commit"] == commit
    assert entry["files"] == {name: value for name, value in hashes().items() if "/" not in name}
    (root / "datasets/me/data/flan.jsonl").write_bytes(b"{}\n")
    assert f"kept   mine: me/data@{commit}" in lock(tmp_path, hub.url).stdout
    moved = commit_of(root / "datasets/me/data")
    assert f"locked mine: me/data@{moved}" in lock(tmp_path, hub.url, "--upgrade").stdout


def entries(tmp_path: Path) -> list[dict[str, Any]]:
    return list(json.loads((tmp_path / "lock.json").read_text())["sources"].values())


def experiment(tmp_path: Path) -> config.Experiment:
    return config.load_files(
        [Path(name) for name in ("config/config.yaml", "config/demo.yaml", tmp_path / "mine.yaml")]
    )


def test_lock_reads_a_folder_in_the_hubs_place(tmp_path: Path, root: Path) -> None:
    done = lock(tmp_path, str(root))
    assert done.returncode == 0, done.stdout
    (entry,) = entries(tmp_path)
    assert entry["files"]["README.md"] == f"sha256:{hashlib.sha256(FILES['README.md']).hexdigest()}"
    assert re.fullmatch("folder:[0-9a-f]{40}", entry["commit"])
    study.check_lock(experiment(tmp_path), ["mine"])


def test_a_lock_of_a_folder_is_none_for_the_hub(tmp_path: Path, root: Path, hub: Hub, commit: str) -> None:
    """Going over to the hub asks for a lock of the hub; that one holds for both, and the folder's stays."""
    lock(tmp_path, str(root))
    made_up = entries(tmp_path)[0]["commit"]
    assert lock(tmp_path, hub.url).stdout.startswith(f"locked mine: me/data@{commit}")
    assert {entry["commit"] for entry in entries(tmp_path)} == {made_up, commit}
    assert lock(tmp_path, str(root)).stdout.startswith(f"kept   mine: me/data@{made_up}")

    (tmp_path / "lock.json").unlink()
    lock(tmp_path, str(root))
    (tmp_path / "mine.yaml").write_text(CONFIG.format(lock=tmp_path / "lock.json", mirror=hub.url))
    with pytest.raises(UserError, match="sources: mine: not locked"):
        study.check_lock(experiment(tmp_path), ["mine"])
    assert study.fetch_recipe(experiment(tmp_path), "mine").commit is None

    (tmp_path / "lock.json").unlink()
    lock(tmp_path, hub.url)
    (tmp_path / "mine.yaml").write_text(CONFIG.format(lock=tmp_path / "lock.json", mirror=root))
    study.check_lock(experiment(tmp_path), ["mine"])
    assert study.fetch_recipe(experiment(tmp_path), "mine").commit == commit


def test_a_commit_says_which_bytes_the_hub_gives_not_which_a_folder_holds(tmp_path: Path, root: Path) -> None:
    pinned = HubRepository(repo="me/data", type="dataset", revision="1" * 40)
    assert Lock().holds(pinned, folder=False) and not Lock().holds(pinned, folder=True)
    entry = Locked(**pinned.model_dump(include={"repo", "type", "revision", "include"}), commit=f"folder:{'2' * 40}",
                   files={"a": "sha256:3"}, bytes=1)  # fmt: skip
    assert Lock().including(entry).holds(pinned, folder=True)
    told, _ = fetched(
        tmp_path, recipe(revision="1" * 40, commit=entry.commit, files=hashes()), TRIALIGN_MIRROR=str(root)
    )
    assert json.loads(told)["commit"] == "1" * 40


def test_a_file_that_the_lock_does_not_name_is_refused(tmp_path: Path, root: Path) -> None:
    (root / "datasets/me/data/more.jsonl").write_text('{"a": 2}')
    told, out = fetched(tmp_path, recipe(files=hashes()), TRIALIGN_MIRROR=str(root))
    assert told.startswith("UserError: me/data: more.jsonl is there, but not locked") and not list(out.iterdir())


def test_configs_that_share_a_lock_keep_each_others_entries(tmp_path: Path, root: Path, hub: Hub) -> None:
    (root / "datasets/me/other").mkdir()
    (root / "datasets/me/other/a.jsonl").write_text("{}")
    (root / "datasets/me/other/README.md").write_text("other")
    lock(tmp_path, hub.url)
    other = CONFIG.replace("me/data", "me/other")
    assert lock(tmp_path, hub.url, config=other).stdout.startswith("locked mine: me/other@")
    assert lock(tmp_path, hub.url).stdout.startswith("kept   mine: me/data@")
    assert lock(tmp_path, hub.url, config=other).stdout.startswith("kept   mine: me/other@")
    assert len(entries(tmp_path)) == 2


ADD = """
import sys
from pathlib import Path
from trialign import lock
for number in range(40):
    name = f"{sys.argv[2]}/{number}"
    lock.add(lock.Locked(repo=name, type="model", revision="main", include=(), commit="1" * 40, files={}, bytes=0),
             Path(sys.argv[1]))
"""


def test_locks_written_at_a_time_lose_no_entry_and_leave_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "lock.json"
    writers = [subprocess.Popen([sys.executable, "-c", ADD, str(path), name]) for name in ("one", "two", "three")]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(locking.read(path).sources) == 120
    assert list(path.parent.iterdir()) == [path]


def test_lock_refuses_a_mirror_that_is_not_there(tmp_path: Path) -> None:
    done = lock(tmp_path, "/nope")
    assert done.returncode == 2
    assert done.stdout == "trialign: config: mirror: '/nope' is no folder here, and no address (https://...)\n"


def test_a_lock_that_cannot_be_written_is_said(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "file").write_text("")
    done = lock(tmp_path, hub.url, config=CONFIG.replace("{lock}", str(tmp_path / "file" / "lock.json")))
    assert done.returncode == 2 and "file/lock.json: the lock cannot be written there" in done.stdout
    assert done.stdout.count("\n") == 2 and "Traceback" not in done.stdout


def test_lock_says_what_is_wrong_in_one_line_and_keeps_the_old_lock(tmp_path: Path, root: Path, hub: Hub) -> None:
    lock(tmp_path, hub.url)
    before = (tmp_path / "lock.json").read_bytes()
    (root / "datasets/me/data").rename(root / "datasets/me/gone")
    done = lock(tmp_path, hub.url, "--upgrade")
    assert done.returncode == 2 and done.stdout.startswith("trialign: dataset me/data does not exist on the hub")
    assert done.stdout.count("\n") == 1 and (tmp_path / "lock.json").read_bytes() == before
    (tmp_path / "lock.json").write_text('{"sources": {"mine": {"repo": 1}}}')
    done = lock(tmp_path, hub.url)
    assert done.returncode == 2 and "lock.json: sources.mine.repo: Input should be a valid string" in done.stdout
    assert "delete it and write it anew" in done.stdout
