"""What tests share: Snakemake runs of the whole workflow on `config/test.yaml` and on the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

# a result's bits depend on the number of threads: this process and those it starts take one, as the demo's jobs do
os.environ["OMP_NUM_THREADS"] = "1"

SWITCHED_OFF = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME")
REPOSITORY = Path(__file__).parents[1]
# an overlay: the paper's study by stock TRL, SFT in micro-batches
BY_TRL = """
training: {engine: trl}
stages: {sft: {training: &few {micro_batch: 8}}, sft_trained: {training: *few}, sft10k: {training: *few}}
"""
TEST_CONFIG = ["--workflow-profile", "none", "--configfile", "config/demo.yaml", "config/test.yaml"]


def command(*arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment in the repository; its output and errors together in `stdout`."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for name in SWITCHED_OFF:  # by a step that ran in this process, in a fixture of a whole module
        environment.pop(name, None)
    return subprocess.run(
        arguments, cwd=REPOSITORY, env=environment, timeout=timeout, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_study(results: Path, *arguments: str, cores: int = 2) -> subprocess.CompletedProcess[str]:
    """Run Snakemake on the test config with results of its own."""
    done = command(
        "snakemake",
        *TEST_CONFIG,
        "--config",
        f"results_dir={results}",
        "--cores",
        str(cores),
        "--nolock",
        "--",
        *arguments,
    )
    return done


test_study.__test__ = False


def make_demo(timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run `make demo`, one process of tests (pytest -n) at a time: those that come later find it made."""
    (REPOSITORY / "results").mkdir(exist_ok=True)
    with FileLock(REPOSITORY / "results/.demo.lock"):
        return command("make", "demo", timeout=timeout)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """A step that runs in this process switches the hub off in its environment: not for the tests after it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one whole run of the test config."""
    results = tmp_path_factory.mktemp("study")
    done = test_study(results, "all")
    assert done.returncode == 0, done.stdout
    return results


@pytest.fixture(scope="session")
def demo() -> Path:
    """The results of the demo, made by the command that users type; seconds when they are there already."""
    done = make_demo(timeout=4000)
    assert done.returncode == 0, done.stdout[-5000:]
    return REPOSITORY / "results" / "demo"
