"""Prune, on a finished study: what goes, what stays, what it costs, and that nothing finished is made again for it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TEST_CONFIG, command
from trialign import config, lease
from trialign import study as study_of
from trialign.plan import Dag, Job
from trialign.prune import manifest as manifest_of

FILES = ["--configfile", "config/demo.yaml", "--configfile", "config/test.yaml"]
LEAVES = ["mistral+sft+dpo@beta=0.1", "mistral+tpo@alpha=0.9@beta=0.2"]
PARENTS = ["mistral+sft", "mistral"]


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> Path:
    """A copy with hard links of its own, as steps publish."""
    subprocess.run(["cp", "-a", str(finished_study), str(tmp_path / "study")], check=True)
    return tmp_path / "study"


def prune(study: Path, *arguments: str) -> str:
    done = command("trialign", "prune", *FILES, "--config", f"results_dir={study}", *arguments)
    assert done.returncode == 0, done.stdout
    return done.stdout


def dry_run(study: Path, *overlays: str) -> str:
    tree = ["--config", f"results_dir={study}", "-n", "--nolock"]
    done = command("snakemake", *TEST_CONFIG, *overlays, *tree, "--", "all")
    assert done.returncode == 0, done.stdout
    return done.stdout


def reopen(study: Path) -> None:
    """Take a table away: of this copy Snakemake has no record by which it would know that rows were added."""
    (study / "table1.csv").unlink()


def models(study: Path) -> set[str]:
    return {folder.parent.parent.name for folder in (study / "runs").glob("*/seed1/model")}


def store_entry(study: Path, lineage: str) -> Path:
    return study / ".store" / json.loads((study / "runs" / lineage / "seed1/run.json").read_text())["fingerprint"]


def manifest(study: Path) -> list[dict]:
    return [json.loads(line) for line in (study / "pruned.jsonl").read_text().splitlines()]


def test_the_studys_page_keeps_no_model(study: Path) -> None:
    """It is open until all else is done, and reads records only: pruned models are not made again for it."""
    (study / "index.html").unlink()
    prune(study, "--yes")
    assert models(study) == set(PARENTS)
    planned = dry_run(study)
    assert "rule index:" in planned and "rule train:" not in planned


def test_leaves_go_from_runs_and_store_and_nothing_is_made_again(study: Path) -> None:
    entries = {lineage: store_entry(study, lineage) for lineage in LEAVES + PARENTS}
    sizes = {
        lineage: sum(file.stat().st_size for file in entry.rglob("*") if file.is_file() and file.parent != entry)
        for lineage, entry in entries.items()
    }
    said = prune(study)
    assert models(study) == {*LEAVES, *PARENTS} and "nothing is removed yet" in said
    assert not (study / "pruned.jsonl").exists()
    prune(study, "--yes")
    assert models(study) == set(PARENTS)
    assert [entries[lineage].exists() for lineage in LEAVES + PARENTS] == [False, False, True, True]
    gone = manifest(study)
    assert [entry["name"] for entry in gone] == [f"{lineage} seed1" for lineage in LEAVES]
    assert all(entry["bytes"] >= sizes[lineage] for lineage, entry in zip(LEAVES, gone, strict=True))
    assert (study / "runs" / LEAVES[0] / "seed1/run.json").is_file()  # what it was, and how to have it again
    assert "Nothing to be done" in dry_run(study)
    assert "nothing to prune" in prune(study)


def test_a_new_row_on_a_kept_parent_trains_itself_alone(study: Path, tmp_path: Path) -> None:
    prune(study, "--yes")
    overlay = tmp_path / "row.yaml"
    rows = f"[mistral+sft, {LEAVES[0]}, mistral+sft+ipo]"
    overlay.write_text(f"artifacts: {{table1: {{rows: {rows}, columns: [arc]}}}}\n")
    reopen(study)
    printed = dry_run(study, str(overlay))
    assert "output: " + str(study / "runs/mistral+sft+ipo@beta=0.1/seed1/model") in printed
    assert printed.count("rule train:") == 1 and printed.count("rule evaluate:") == 1


def test_a_parents_price_has_what_comes_back_with_it(study: Path, tmp_path: Path) -> None:
    prune(study, "--parents", "--yes")
    assert models(study) == set()
    assert "Nothing to be done" in dry_run(study)
    gone = {entry["name"].removesuffix(" seed1"): entry for entry in manifest(study)}
    assert [name.count("+") for name in gone] == [2, 1, 1, 0]  # leaves first
    assert set(gone["mistral+sft"]["again"]) == {"mistral seed1", f"{LEAVES[0]} seed1"}
    assert len(gone["mistral"]["again"]) == 3 and gone["mistral"]["parent"] and not gone[LEAVES[0]]["parent"]
    # Snakemake's own word: a new row on the parent brings all of that back
    overlay = tmp_path / "row.yaml"
    overlay.write_text("artifacts: {table1: {rows: [mistral+sft, mistral+sft+ipo], columns: [arc]}}\n")
    reopen(study)
    printed = dry_run(study, str(overlay))
    assert "rule pretrain:" in printed and f"output: {study / 'runs/mistral+sft/seed1/model'}" in printed


def test_what_a_waiting_job_reads_stays(study: Path) -> None:
    """An answer that is still to be given needs its model; its parent is needed by nothing that waits."""
    shutil.rmtree(study / "runs" / LEAVES[0] / "seed1/leaderboard")
    reopen(study)
    assert "rule evaluate:" in dry_run(study)
    said = prune(study, "--yes")
    assert models(study) == {LEAVES[0], *PARENTS}, said


def test_a_model_that_no_artifact_names_any_more_goes(study: Path) -> None:
    orphan = study / "runs" / "mistral+sft+ipo@beta=0.1" / "seed1"
    shutil.copytree(study / "runs" / LEAVES[0] / "seed1", orphan)
    record = json.loads((orphan / "run.json").read_text())
    (orphan / "run.json").unlink()
    (orphan / "run.json").write_text(json.dumps(record | {"fingerprint": "0" * 32}))
    prune(study, "--yes")
    assert models(study) == set(PARENTS)
    assert {entry["name"] for entry in manifest(study)} >= {"mistral+sft+ipo@beta=0.1 seed1"}


def test_a_model_that_a_changed_recipe_left_in_the_store_goes(study: Path) -> None:
    """The run's name is another model's now: the old one has a name in the store alone."""
    named = study / "runs" / LEAVES[1] / "seed1"
    old = store_entry(study, LEAVES[1])
    new = old.with_name("f" * 32)
    shutil.copytree(old, new)
    record = json.loads((old / "run.json").read_text())
    record["recipe"]["training"]["batch"] *= 2
    for file, changes in ((new / "run.json", {"fingerprint": new.name}), (old / "run.json", {})):
        file.unlink()
        file.write_text(json.dumps(record | changes))
    shutil.rmtree(named / "model")
    (named / "run.json").unlink()
    subprocess.run(["cp", "-al", str(new / "model"), str(named / "model")], check=True)
    os.link(new / "run.json", named / "run.json")
    said = prune(study)
    assert f".store/{old.name[:8]}" in said and f".store/{new.name[:8]}" not in said
    prune(study, "--yes")
    gone = {entry["name"]: entry for entry in manifest(study)}
    entry = gone[f".store/{old.name[:8]} (train tpo, superseded)"]
    assert not old.exists() and entry["bytes"] > 100_000 and entry["folders"] == [str(old)]
    assert "nothing to prune" in prune(study)


def test_what_the_store_keeps_for_a_waiting_job_stays(study: Path) -> None:
    """Snakemake deleted a failed job's outputs: its model comes back from the store in milliseconds."""
    entry = store_entry(study, LEAVES[0])
    shutil.rmtree(study / "runs" / LEAVES[0])
    reopen(study)
    assert entry.name[:8] not in prune(study, "--yes") and entry.exists()


def test_superseded_models_are_told_from_waiting_ones_by_their_recipes(tmp_path: Path) -> None:
    """Also those of a recipe that this version cannot read any more; other steps' results are none of its business."""
    experiment = config.load_files([Path(f"config/{name}.yaml") for name in ("config", "demo", "test")])
    experiment = experiment.model_copy(update={"results_dir": str(tmp_path)})
    lineage = experiment.lineage(LEAVES[1])
    recipe = json.loads(study_of.train_recipe(experiment, lineage, 1).canonical())
    for name, made in (("a", recipe), ("b", recipe | {"forgotten": 1}), ("c", {"step": "tokens"})):
        folder = tmp_path / ".store" / (name * 32)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"recipe": made, "seconds": 36, "facts": {}}))
    wildcards = {"lineage": str(lineage), "seed": "1"}
    waiting = Job(0, "train", wildcards, ("model",), (), False, True, "", (), 1, {})
    for jobs, names in (((waiting,), ["b"]), ((), ["a", "b"])):
        entries = manifest_of(Dag(experiment, jobs, 1, ""), parents=False, work=False)
        assert [entry.name for entry in entries] == [f".store/{name * 8} (train tpo, superseded)" for name in names]


def test_work_folders_without_a_holder_go_once_nothing_is_to_come(study: Path) -> None:
    held, abandoned, elsewhere = (study / ".work" / name for name in ("a" * 32, "b" * 32, "c" * 32))
    for folder in (held, abandoned, elsewhere):
        (folder / "scratch").mkdir(parents=True)
        (folder / "scratch" / "checkpoint").write_bytes(b"x" * 1000)
    birth = Path(f"/proc/{os.getpid()}/stat").read_text().rsplit(")", 1)[1].split()[19]
    (held / lease.LEASE).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "birth": birth}))
    (elsewhere / lease.LEASE).write_text(json.dumps({"host": "another", "pid": 1, "birth": "1"}))
    (study / "table1.csv").rename(study / "aside")
    prune(study, "--yes")
    assert abandoned.exists()  # a step is to come: this may be its checkpoint
    (study / "aside").rename(study / "table1.csv")
    prune(study, "--yes")
    assert held.exists() and elsewhere.exists() and not abandoned.exists()
