"""The long tests on a real SLURM (make soak): the whole demo, a long chaos, a real time limit. See docs/reliability.md.

TRIALIGN_SOAK_SEED: the seed of the chaos; drawn and printed where there is none.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import command
from tests.slurm.chaos import survive
from tests.slurm.cluster import Cluster
from tests.slurm.study import DEMO, TEST, Study, artifacts

pytestmark = pytest.mark.soak
CHAOS = (*TEST, str(Path(__file__).with_name("chaos.yaml")))
EVENTS = {
    "scancel": 5, "time_limit": 3, "out_of_memory": 3, "preempt_requeue": 2, "preempt_cancel": 2, "node_down": 2,
    "kill_controller": 2, "second_controller": 1, "full_disk": 1,
}  # fmt: skip
AT_A_TIME = ("--jobs", "6")  # of the jobs that these two cores can bear, whatever the virtual nodes have


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the long chaos's study, run in peace on this machine."""
    results = tmp_path_factory.mktemp("quiet")
    done = command(
        "snakemake", "--workflow-profile", "none", "--configfile", *CHAOS, "--config", f"results_dir={results}",
        "--cores", "2", "--nolock", "--", "all", timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return results


@pytest.mark.timeout(5000)
@pytest.mark.parametrize("kind", ["accounted", "plain"])
def test_a_long_chaos_changes_no_table(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, quiet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("TRIALIGN_SOAK_SEED", str(time.time_ns() % 10_000)))
    started = time.monotonic()
    cluster = request.getfixturevalue(kind)
    chaos = survive(
        cluster,
        tmp_path,
        artifacts(quiet),
        EVENTS,
        seed=seed,
        configs=CHAOS,
        seconds=3000,
        options=AT_A_TIME,
        pause=10,
    )
    with capsys.disabled():
        print(f"\nchaos, {kind}, seed {seed}, {time.monotonic() - started:.0f} s:", *chaos.log, sep="\n  ")


@pytest.mark.timeout(9000)
def test_the_whole_demo_on_a_cluster_has_the_tables_of_a_laptop(plain: Cluster, tmp_path: Path, demo: Path) -> None:
    study = Study(tmp_path / "study", plain, tmp_path / "results", DEMO)
    controller = study.start(*AT_A_TIME, "--", "all")
    try:
        assert study.finish(controller, 7200) == 0, study.said()
    finally:
        study.end()
    assert artifacts(study.results) == artifacts(demo)


@pytest.mark.timeout(1200)
def test_trainings_longer_than_their_jobs_go_on_in_others(plain: Cluster, tmp_path: Path) -> None:
    """A limit of one minute, and trainings of more: each ends with a checkpoint before, and no attempt is spent."""
    overlay = tmp_path / "long.yaml"
    lineage = "mistral+sft+dpo@beta=0.1"
    rows = {"rows": [lineage], "columns": ["arc"]}
    left_out = dict.fromkeys(("table2", "figure2", "forest_leaderboard", "curves"))
    overlay.write_text(
        yaml.safe_dump({"name": "long", "training": {"max_steps": 900}, "artifacts": {"table1": rows, **left_out}})
    )
    whole = tmp_path / "whole"
    config = [*TEST, str(overlay), "--config"]
    done = command(
        "snakemake", "--workflow-profile", "none", "--configfile", *config, f"results_dir={whole}", "--cores", "2",
        "--nolock", "--", "all", timeout=1000,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    study = Study(tmp_path / "study", plain, tmp_path / "results", (*TEST, str(overlay)))
    controller = study.start("--set-resources", "train:runtime=1", "--retries", "0", "--", "all")
    try:
        assert study.finish(controller, 1000) == 0, study.said()
    finally:
        study.end()
    assert "starts anew: out of time at step" in study.said()
    model = f"runs/{lineage}/seed1/model/model.safetensors"
    assert (study.results / model).read_bytes() == (whole / model).read_bytes()
