"""Preflight, by real Snakemake runs: what this machine lacks is said within seconds, and nothing is written."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, TEST_CONFIG
from trialign import config, preflight
from trialign.errors import UserError
from trialign.preflight import Task
from trialign.settings import EndpointSettings

TRAIN = Task("train", {"lineage": "mistral+tpo@alpha=1@beta=0.1", "seed": "42"}, {"gpu": 1, "disk_mb": 1})
SPLIT = Task("train", {"lineage": "mistral+sft+dpo@beta=0.1", "seed": "42"}, {"gpu": 4, "disk_mb": 1})
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture(scope="module")
def paper() -> config.Experiment:
    return config.load_files([REPOSITORY / "config/config.yaml"]).model_copy(update={"lock": None})


@pytest.fixture
def by_trl(paper: config.Experiment) -> config.Experiment:
    """The paper's study with TPO by stock TRL, which keeps its batch whole on one GPU."""
    tpo = paper.stages["tpo"]
    stock = tpo.model_copy(update={"training": tpo.training.model_copy(update={"engine": "trl"})})
    return paper.model_copy(update={"stages": {**paper.stages, "tpo": stock}})


@pytest.fixture
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which a test can put an nvidia-smi of its own."""
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.fixture
def hub() -> Iterator[str]:
    """A hub that answers, if only that there is nothing."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def snakemake(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = Path(sys.executable).parent
    return subprocess.run(
        [str(folder / "snakemake"), *arguments],
        cwd=REPOSITORY, text=True, check=False, timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **environment},
    )  # fmt: skip


def add_gpus(folder: Path, *mebibytes: int) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo {size}\n" for size in mebibytes))
    tool.chmod(0o755)


def test_a_machine_that_cannot_do_it_says_what_it_lacks_and_the_ways_forward(tmp_path: Path) -> None:
    results = tmp_path / "study"
    done = snakemake(
        "--cores", "2", "--nolock", "--config", f"results_dir={results}", "--", f"{results}/table2.csv",
        HF_ENDPOINT=NOWHERE, CUDA_VISIBLE_DEVICES="", OPENAI_API_KEY="",
    )  # fmt: skip
    assert done.returncode != 0 and not results.exists()
    said = done.stdout.split("trialign: this machine cannot do that:\n")[1]
    assert "  - GPUs: 28 jobs ask for up to 4 each (A100 80GB), and 0 are here\n" in said
    assert "  - network: 4 download(s) (" in said and f"and {NOWHERE} does not answer" in said
    assert "  - judge gpt-4: the environment variable OPENAI_API_KEY is not set: export it" in said
    for way in ("--profile profiles/demo all", "--profile slurm", "trialign plan"):
        assert way in said
    assert "Traceback" not in done.stdout


def test_a_judges_key_is_asked_for_before_models_are_trained(
    paper: config.Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task("judge", {"lineage": "mistral+sft", "seed": "42", "judge": "gpt-4"}, {})
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    with pytest.raises(UserError, match="judge gpt-4: the environment variable OPENAI_API_KEY is not set"):
        preflight.check(paper, [task], local=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-any")
    preflight.check(paper, [task], local=False)
    judge = paper.judges["gpt-4"]
    for endpoint in (EndpointSettings(base_url="http://node:8000/v1"), EndpointSettings(key="OTHER_KEY")):
        judges = {"gpt-4": judge.model_copy(update={"endpoint": endpoint})}
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        monkeypatch.setenv("OTHER_KEY", "any")
        preflight.check(paper.model_copy(update={"judges": judges}), [task], local=False)


def test_a_dry_run_is_never_in_its_way(tmp_path: Path) -> None:
    done = snakemake("-n", "--config", f"results_dir={tmp_path}", "--", f"{tmp_path}/table2.csv", HF_ENDPOINT=NOWHERE)
    assert done.returncode == 0 and "cannot do" not in done.stdout


def test_a_login_node_needs_no_gpu_but_the_network(
    paper: config.Experiment, no_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preflight.check(paper, [SPLIT], local=False)
    fetch = Task("fetch", {"source": "mmlu"}, {"disk_mb": 1})
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    with pytest.raises(UserError, match="does not answer") as refused:
        preflight.check(paper, [SPLIT, fetch], local=False)
    assert "GPUs:" not in str(refused.value) and "slurm" not in str(refused.value)


def test_what_the_declared_gpus_cannot_hold_does_not_reach_a_clusters_queue(
    by_trl: config.Experiment, no_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"training mistral takes up to \d+ GB \(tpo\) on one GPU, of 80") as refused:
        preflight.check(by_trl, [SPLIT, TRAIN], local=False)
    said = str(refused.value)
    assert said.startswith("this cannot be done as it is declared:\n") and "under `hardware`" in said
    assert "resources.train.gpus" not in said and "trialign plan" in said
    larger = by_trl.hardware.model_copy(update={"memory_gb": 288})
    preflight.check(by_trl.model_copy(update={"hardware": larger}), [SPLIT, TRAIN], local=False)
    monkeypatch.setenv("TRIALIGN_PREFLIGHT", "off")
    preflight.check(by_trl, [SPLIT, TRAIN], local=False)


def test_a_hub_or_mirror_that_answers_is_a_network(
    paper: config.Experiment, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Task("fetch", {"source": "mmlu"}, {"disk_mb": 1})
    monkeypatch.setenv("HF_ENDPOINT", hub)
    preflight.check(paper, [fetch], local=True)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    for mirror in (hub, str(tmp_path)):
        preflight.check(paper.model_copy(update={"mirror": mirror}), [fetch], local=True)


def test_each_host_is_asked_and_a_mirror_is_a_folder_that_is_there(
    paper: config.Experiment, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the web come from their own host, whatever stands for the hub."""
    web = paper.sources["bigbench"].model_copy(update={"base": f"{NOWHERE}/files/"})
    study = paper.model_copy(update={"mirror": str(tmp_path), "sources": {**paper.sources, "bigbench": web}})
    tasks = [Task("fetch", {"source": name}, {"disk_mb": 1}) for name in ("mmlu", "bigbench")]
    with pytest.raises(
        UserError, match=rf"network: 1 download\(s\) \(bigbench\) to do, and {NOWHERE}/ does not answer"
    ):
        preflight.check(study, tasks, local=True)
    preflight.check(study, tasks[:1], local=True)
    with pytest.raises(UserError, match=r"config: mirror: '/nope' is no folder here, and no address \(https://"):
        preflight.check(study.model_copy(update={"mirror": "/nope"}), tasks[:1], local=True)


def test_gpus_are_counted_and_measured(
    by_trl: config.Experiment, no_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preflight.gpu_memories() == []
    add_gpus(no_gpu, 81559, 81559)
    assert preflight.gpu_memories() == pytest.approx([79.6, 79.6], abs=0.1)
    with pytest.raises(UserError, match=r"training mistral takes up to \d+ GB \(tpo\) on one GPU"):
        preflight.check(by_trl, [TRAIN], local=True)
    add_gpus(no_gpu, 1_000_000)
    preflight.check(by_trl, [TRAIN], local=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="and 0 are here"):
        preflight.check(by_trl, [TRAIN], local=True)


def test_a_disk_that_is_too_small_is_said_and_the_check_can_be_passed(
    paper: config.Experiment, no_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Task("train", SPLIT.wildcards, {"gpu": 4, "disk_mb": 3 * 10**12, "scratch_mb": 4 * 10**12})
    with pytest.raises(UserError, match=r"disk: at least 7,000,000,000 GB are needed \(3,000,000,000 stay\)"):
        preflight.check(paper, [large], local=False)
    monkeypatch.setenv("TRIALIGN_PREFLIGHT", "off")
    preflight.check(paper, [large], local=False)


def test_several_nodes_are_a_clusters(paper: config.Experiment, no_gpu: Path) -> None:
    add_gpus(no_gpu, 1_000_000, 1_000_000)
    task = Task("train", {**TRAIN.wildcards, "lineage": "mistral+sft+dpo@beta=0.1"}, {"gpu": 2, "nodes": 2})
    with pytest.raises(UserError, match=r"nodes: 1 trainings ask for 2 each, .*\(or resources.train.nodes: 1\)"):
        preflight.check(paper, [task], local=True)
    preflight.check(paper, [task], local=False)


def test_jobs_that_ask_for_neither_gpu_nor_hub_are_let_be(paper: config.Experiment, no_gpu: Path) -> None:
    tasks = [Task("train", TRAIN.wildcards, {"gpu": 0, "disk_mb": 10**13}), Task("table", {}, {})]
    preflight.check(paper, tasks, local=True)


def test_a_tracker_that_is_not_installed_ends_a_start_that_would_train(tmp_path: Path) -> None:
    """A Python that finds no tensorboard; a start that trains nothing does not ask for it."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *more: None if name == 'tensorboard' else find(name, *more)\n"
    )
    overlay, results = tmp_path / "tracking.yaml", tmp_path / "results"
    overlay.write_text("tracking: [tensorboard]\n")
    options = [*TEST_CONFIG, str(overlay), "--config", f"results_dir={results}", "--cores", "1", "--nolock", "--"]
    without = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = snakemake(*options, "all", **without)
    line = "config: tracking: tensorboard is not installed: pip install 'trialign[tensorboard]', or leave it out"
    assert done.returncode != 0 and f"trialign: {line}" in done.stdout, done.stdout
    assert not results.exists()
    done = snakemake(*options, f"{results}/data/prepared/ultrachat", **without)
    assert done.returncode == 0, done.stdout
    assert (results / ".shared/tracking.json").read_text() == '["tensorboard"]\n'
