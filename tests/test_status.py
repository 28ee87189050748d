"""The status of real runs: finished, at work, killed, failed, repeated with success; its hours are the records'."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import REPOSITORY, TEST_CONFIG, command
from trialign import lease, paths

TPO = "mistral+tpo@alpha=0.9@beta=0.2"
TRAIN = f"train {TPO} 1"
LONG = "training: {max_steps: 20000}\n"
PLAIN = [word for file in TEST_CONFIG[3:] for word in ("--configfile", file)]


def status(results: Path, *more: str) -> dict[str, Any]:
    done = command("trialign", "status", "--json", *PLAIN, "--config", f"results_dir={results}", *more)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout)


def text(results: Path, *more: str) -> str:
    done = command("trialign", "status", *PLAIN, "--config", f"results_dir={results}", *more)
    assert done.returncode == 0, done.stdout
    return done.stdout


def states(found: dict[str, Any]) -> dict[str, str]:
    return {row["what"]: row["state"] for row in found["rows"]}


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> Path:
    """A copy of the finished study without its TPO model and what was made of that."""
    results = tmp_path / "results"
    shutil.copytree(finished_study, results)
    shutil.rmtree(results / "runs" / TPO)
    shutil.rmtree(results / paths.STORE)
    shutil.rmtree(results / "logs/train" / TPO)
    for pattern in ("*.csv", "*.png"):
        for file in results.glob(pattern):
            file.unlink()
    return results


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Snakemake; killed in the end, with all that it started."""
    started: list[subprocess.Popen[str]] = []

    def begin(results: Path, *more: str) -> subprocess.Popen[str]:
        run = subprocess.Popen(
            [
                f"{Path(sys.executable).parent}/snakemake", *TEST_CONFIG, *more, "--config", f"results_dir={results}",
                "--cores", "1", "--nolock", "--", f"{results}/runs/{TPO}/seed1/run.json",
            ],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(run)
        return run

    yield begin
    for run in started:
        if run.poll() is None:
            for process in [*psutil.Process(run.pid).children(recursive=True), run]:
                process.kill()
        run.wait()


def test_spent_hours_are_the_sum_of_the_records(finished_study: Path) -> None:
    found = status(finished_study)
    records = [json.loads(file.read_text()) for file in finished_study.rglob("*.json") if ".store" in file.parts]
    steps = {record["fingerprint"]: record for record in records if record.keys() >= {"fingerprint", "seconds"}}
    assert len(steps) > 20 and found["jobs"] == {"done": len(steps), "all": len(steps)}
    assert found["spent"]["cpu_hours"] == pytest.approx(
        sum(each["seconds"] for each in steps.values()) / 3600, abs=1e-4
    )
    assert found["spent"]["gpu_hours"] == found["spent"]["usd"] == 0
    assert found["remaining"]["cpu_hours"] == found["remaining"]["wall_hours"] == 0 and found["rows"] == []
    assert sum(stage["done"] for stage in found["by_stage"]) == len(steps)
    assert f"test: {len(steps)} of {len(steps)} jobs done (100%), of all\n" in text(finished_study)


def test_a_gpu_hour_costs_what_the_config_says(finished_study: Path, tmp_path: Path) -> None:
    results, overlay = tmp_path / "results", tmp_path / "gpus.yaml"
    shutil.copytree(finished_study, results)
    overlay.write_text("hardware: {hourly_rate: 1000}\n")
    file = results / "runs" / TPO / "seed1/leaderboard/run.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"gpus": 2}))  # as if it had run on two
    found = status(results, "--configfile", str(overlay))
    hours = 2 * record["seconds"] / 3600
    assert found["spent"]["gpu_hours"] == pytest.approx(hours, abs=1e-4)
    assert found["spent"]["usd"] == pytest.approx(1000 * hours, abs=0.1)


def test_a_training_at_work_and_after_its_kill(study: Path, start: Callable[..., Any], tmp_path: Path) -> None:
    overlay = tmp_path / "long.yaml"
    overlay.write_text(LONG)
    more = ["--configfile", str(overlay)]
    snakemake = start(study, str(overlay))
    log = study / f"logs/train/{TPO}/seed1.log"
    while "loss" not in (log.read_text() if log.exists() else ""):
        assert snakemake.poll() is None, snakemake.communicate()
        time.sleep(0.2)
    found = status(study, *more)
    (row,) = found["rows"]
    assert (row["what"], row["state"], row["wildcards"]) == (TRAIN, "running", {"lineage": TPO, "seed": "1"})
    assert str(log) in psutil.Process(row["pid"]).cmdline() and row["host"] == os.uname().nodename
    assert 0 < found["at"] - row["since"] < time.time() - psutil.Process(row["pid"]).create_time() + 1
    told, lines = row["progress"], log.read_text()
    assert f"step {told['done']}/20000  loss {told['loss']:.4f}  {told['tokens_per_second']:,.0f} tokens/s" in lines
    assert told["of"] == 20000 and told["seconds_left"] > 0
    assert 0 < found["jobs"]["done"] < found["jobs"]["all"] and found["remaining"]["cpu_hours"] > 0
    shown = text(study, *more)
    assert re.search(rf"{re.escape(TRAIN)} .*process {row['pid']} .*/20,000 steps, loss .* tokens/s, .* left", shown)
    assert snakemake.poll() is None  # it was not disturbed

    os.kill(row["pid"], signal.SIGKILL)
    assert snakemake.wait(timeout=60) != 0
    found = status(study, *more)
    (row,) = found["rows"]
    assert (row["what"], row["state"]) == (TRAIN, "interrupted") and row["progress"]["done"] >= told["done"]
    assert row["lines"] == log.read_text().rstrip().splitlines()[-15:]
    assert row["repeat"] == f"sh {log.with_suffix('.sh')}"
    assert [stage["interrupted"] for stage in found["by_stage"] if stage["stage"] == "train tpo"] == [1]
    # another study of the same tree does not need it
    (note,) = status(study, f"{study}/data/world")["notes"]
    assert note.startswith("1 interrupted step(s) of the tree that these targets do not need: trialign prune --work")


def test_a_failed_job_shows_its_last_lines_until_it_was_repeated_with_success(
    study: Path, start: Callable[..., Any]
) -> None:
    tokens = study / "data/tokens/mistral/triples/train.parquet"
    whole, times = tokens.read_bytes(), tokens.stat()
    tokens.write_text("this is no parquet file")
    os.utime(tokens, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert start(study).wait(timeout=120) != 0
    found = status(study)
    (row,) = found["rows"]
    log = study / f"logs/train/{TPO}/seed1.log"
    assert (row["what"], row["state"], row["host"]) == (TRAIN, "failed", None)
    assert "Parquet" in row["said"] and "ArrowInvalid" in row["lines"][-1]
    assert row["lines"] == log.read_text().rstrip().splitlines()[-15:]
    assert row["repeat"] == f"sh {log.with_suffix('.sh')}"
    shown = text(study)
    assert f"✗ {TRAIN}, 0:00:" in shown and f"  repeat it alone: sh {log.with_suffix('.sh')}\n" in shown
    assert "".join(f"    {line}\n" for line in row["lines"]) in shown

    tokens.write_bytes(whole)
    os.utime(tokens, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert command(*row["repeat"].split()).returncode == 0
    found = status(study)
    assert found["rows"] == [] and "failed in" not in text(study)
    trained = next(stage for stage in found["by_stage"] if stage["stage"] == "train tpo")
    assert (trained["done"], trained["failed"]) == (1, 0)


def test_what_a_step_said_that_is_to_be_started_again(study: Path) -> None:
    log = study / f"logs/train/{TPO}/seed1.log"
    script = (
        "import sys; from trialign import cli, steps, errors\n"
        "def again(*_): raise errors.Again('out of time at step 3 of 9, with a checkpoint')\n"
        "steps.run = again; sys.argv = ['trialign', *sys.argv[1:]]; cli.main()"
    )
    recipe = json.dumps({"step": "tokenizer", "vocab_size": 300, "chat_template": "zephyr"})
    places = ["--root", str(study), "--output", str(study / f"runs/{TPO}/seed1"), "--log", str(log)]
    assert command(sys.executable, "-c", script, "step", recipe, *places).returncode == 1
    (row,) = status(study)["rows"]
    assert (row["what"], row["state"]) == (TRAIN, "again")
    assert row["said"] == "out of time at step 3 of 9, with a checkpoint"


def test_a_holder_of_which_nobody_can_tell_is_said_to_be_so(study: Path) -> None:
    """On another host, in no SLURM job."""
    work = study / paths.WORK / "0123456789abcdef"
    log = f"{study}/logs/train/{TPO}/seed1.log"
    with lease.held(work, {"step": "train", "place": f"runs/{TPO}/seed1", "log": log}):
        held = json.loads((work / lease.LEASE).read_text())
        assert states(status(study)) == {TRAIN: "running"}
        (work / lease.LEASE).write_text(json.dumps(held | {"host": "elsewhere"}))
        assert states(status(study)) == {TRAIN: "unknown"}
        assert "Cannot be told from here whether it runs" in text(study)


def test_live_ends_with_the_study(finished_study: Path) -> None:
    options = ["trialign", "status", "--live", *PLAIN, "--config", f"results_dir={finished_study}"]
    done = command(*options)
    assert done.returncode == 2 and done.stdout.startswith("trialign: status: --live needs a terminal")
    done = command(*options, "--json")
    assert done.returncode == 2 and "--live is for people, --json for scripts" in done.stdout
    master, terminal = pty.openpty()
    run = subprocess.Popen(
        [f"{Path(sys.executable).parent}/trialign", *options[1:]],
        cwd=REPOSITORY, stdin=terminal, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # its end closes the terminal
        while read := os.read(master, 65536):
            shown += read
    os.close(master)
    assert run.wait(timeout=60) == 0 and b" jobs done (100%), of all" in shown
