"""Steps: publish whole or not at all, come back from the store, one process at a time, resume after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trialign import recipes, steps
from trialign.errors import UserError

RECIPE = recipes.TokenizerRecipe(vocab_size=300, chat_template="zephyr")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A step of the test's own in the place of the tokenizer's: it writes two files and counts its calls."""
    calls: list[Path] = []

    def work(step: steps.Step) -> dict[str, int]:
        calls.append(step.out)
        assert not any(step.out.iterdir())
        (step.out / "model").mkdir()
        (step.out / "model" / "weights").write_text("weights")
        (step.out / "log.jsonl").write_text("{}\n")
        return {"calls": len(calls)}

    monkeypatch.setattr(steps, "_function", lambda recipe: work)
    return calls


def run(root: Path, output: str = "runs/a/seed1", **inputs: Path) -> str:
    return steps.run(RECIPE, {name: (path,) for name, path in inputs.items()}, root, root / output)


def test_a_result_is_published_whole_and_recorded(tmp_path: Path, counted: list[Path]) -> None:
    assert run(tmp_path) == "made"
    folder = tmp_path / "runs/a/seed1"
    record = json.loads((folder / "run.json").read_text())
    assert (folder / "model/weights").read_text() == "weights"
    assert record["recipe"] == json.loads(RECIPE.canonical())
    assert set(record["files"]) == {"model/weights", "log.jsonl"}
    assert record["versions"]["torch"].startswith("2.")
    assert not list((tmp_path / ".work").iterdir())


def test_deleted_outputs_come_back_from_the_store(tmp_path: Path, counted: list[Path]) -> None:
    run(tmp_path)
    (tmp_path / "runs/a/seed1/run.json").unlink()
    (tmp_path / "runs/a/seed1/model/weights").unlink()
    assert run(tmp_path) == "restored"
    assert (tmp_path / "runs/a/seed1/model/weights").read_text() == "weights"
    assert len(counted) == 1


def test_the_same_step_asked_for_twice_is_made_once(tmp_path: Path, counted: list[Path]) -> None:
    run(tmp_path, "runs/a/seed1")
    assert run(tmp_path, "runs/a/seed2") == "restored"
    assert (tmp_path / "runs/a/seed1/model/weights").samefile(tmp_path / "runs/a/seed2/model/weights")


def test_another_input_is_another_result(tmp_path: Path, counted: list[Path]) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/text").write_text("one")
    assert run(tmp_path, corpus=tmp_path / "corpus") == "made"
    assert run(tmp_path, corpus=tmp_path / "corpus") == "restored"
    (tmp_path / "corpus/text").write_text("two")
    assert run(tmp_path, corpus=tmp_path / "corpus") == "made"


def test_snakemakes_timestamp_file_changes_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one")
    before = steps.input_fingerprint(tmp_path)
    (tmp_path / ".snakemake_timestamp").touch()
    assert steps.input_fingerprint(tmp_path) == before


def test_a_failed_step_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: steps.Step) -> dict[str, int]:
        (step.out / "half").write_text("half")
        (step.scratch / "checkpoint").write_text("kept")
        raise RuntimeError("no")

    monkeypatch.setattr(steps, "_function", lambda recipe: fail)
    with pytest.raises(RuntimeError):
        run(tmp_path)
    assert not (tmp_path / ".store").exists() and not (tmp_path / "runs").exists()
    assert [path.name for path in tmp_path.glob(".work/*/scratch/*")] == ["checkpoint"]
    assert not list(tmp_path.glob(".work/*/lease.json"))


def test_a_missing_input_is_named(tmp_path: Path, counted: list[Path]) -> None:
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path, corpus=tmp_path / "nowhere")


SLOW = """
    import sys, time
    from pathlib import Path
    from trialign import recipes, steps

    def work(step):
        done = step.scratch / "done"
        (step.out / "half").write_text("half")
        first = not done.exists()
        done.write_text("yes")
        if first:
            print("working", flush=True)
            time.sleep(1 if sys.argv[2:] else 60)
        (step.out / "half").unlink()
        (step.out / "whole").write_text("resumed")
        return {}

    steps._function = lambda recipe: work
    root = Path(sys.argv[1])
    recipe = recipes.TokenizerRecipe(vocab_size=300, chat_template="zephyr")
    print(steps.run(recipe, {}, root, root / "".join(sys.argv[2:] or ["out"])), flush=True)
"""


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW), str(root), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_second_start_waits_for_a_live_one_and_resumes_after_a_killed_one(tmp_path: Path) -> None:
    first = start(tmp_path)
    assert first.stdout.readline() == "working\n"
    second = start(tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):  # it waits beside the live one
        second.wait(timeout=3)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(timeout=60)
    out, _ = second.communicate(timeout=60)  # and takes over from the dead one
    assert out == "made\n"
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != "run.json"] == ["whole"]


def test_starts_at_the_same_moment_make_the_step_once(tmp_path: Path) -> None:
    """The first makes it, the others wait and take it from the store; none reads half a lease."""
    processes = [start(tmp_path, f"out{k}") for k in range(4)]
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, ends
    assert sorted(out.split()[-1] for out, _ in ends) == ["made", "restored", "restored", "restored"]


def test_a_lease_that_is_given_back_while_others_ask_for_it_is_no_error(tmp_path: Path) -> None:
    """Six processes hold 300 leases one after the other, as fast as they can: the folder comes and goes under them."""
    script = """
    import sys
    from pathlib import Path
    from trialign import lease
    lease.POLL_SECONDS = 0.0002
    for k in range(300):
        with lease.held(Path(sys.argv[1]) / str(k)):
            pass
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    ends = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, ends
    assert not list(tmp_path.rglob("*"))
