"""A finished study as an RO-Crate, read again by the rocrate package: nothing is missing, and each hash is right."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from urllib.parse import unquote

import pytest
from rocrate.rocrate import ROCrate

from tests.conftest import command
from trialign import steps
from trialign.errors import UserError
from trialign.recipes import TriplesRecipe
from trialign.reporting import explain
from trialign.reporting.crate import export
from trialign.settings import FeedbackRules

DPO = "mistral+sft+dpo@beta=0.1"
METADATA = "ro-crate-metadata.json"


@pytest.fixture(scope="module")
def folder(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crate") / "study"
    done = command("trialign", "crate", str(finished_study), str(out))
    assert done.returncode == 0, done.stdout
    return out


@pytest.fixture(scope="module")
def crate(folder: Path) -> ROCrate:
    return ROCrate(folder)


def many(value) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def steps_of(crate: ROCrate) -> dict[str, object]:
    return {action["identifier"]: action for action in crate.get_by_type("CreateAction") if action.id != "#study"}


def test_every_step_is_an_action_with_its_record(finished_study: Path, crate: ROCrate) -> None:
    records = [json.loads(file.read_text()) for file in (finished_study / ".store").glob("*/run.json")]
    actions = steps_of(crate)
    assert set(actions) == {record["fingerprint"] for record in records}
    for record in records:
        action = actions[record["fingerprint"]]
        assert {entity["sha256"] for entity in many(action["result"])} == set(record["files"].values())
        assert action["startTime"] == record["started"]
        assert action["instrument"]["softwareVersion"].startswith(record["versions"]["trialign"])
        needed = {each["name"]: each["softwareVersion"] for each in action["instrument"]["softwareRequirements"]}
        assert needed["torch"] == record["versions"]["torch"] and needed["python"] == record["python"]


def test_every_file_is_there_with_its_hash_and_nothing_else(folder: Path, crate: ROCrate) -> None:
    files = {entity.id: entity for entity in crate.get_entities() if "File" in many(entity.type)}
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {unquote(name) for name in files} == there - {METADATA}
    for name, entity in files.items():
        if name not in ("README.md", METADATA):
            content = (folder / unquote(name)).read_bytes()
            assert entity["sha256"] == hashlib.sha256(content).hexdigest()
            assert entity["contentSize"] == str(len(content))


def test_models_are_named_by_their_hash(finished_study: Path, folder: Path, crate: ROCrate, tmp_path: Path) -> None:
    weights = finished_study / "runs" / DPO / "seed1/model/model.safetensors"
    assert not list(folder.rglob("*.safetensors"))
    address = base64.urlsafe_b64encode(hashlib.sha256(weights.read_bytes()).digest()).decode().rstrip("=")
    entity = crate.dereference(f"ni:///sha-256;{address}")
    assert entity["name"] == f"runs/{DPO}/seed1/model/model.safetensors"
    record = json.loads((finished_study / "runs" / DPO / "seed1/run.json").read_text())
    assert entity in many(steps_of(crate)[record["fingerprint"]]["result"])
    export(finished_study, tmp_path / "whole", models=True)
    assert (tmp_path / "whole" / weights.relative_to(finished_study)).read_bytes() == weights.read_bytes()


def test_the_chain_of_a_table_can_be_walked_in_the_crate(finished_study: Path, crate: ROCrate) -> None:
    """By results and objects of actions alone, to the same steps as explain finds by fingerprints."""
    made_by = {entity.id: action for action in steps_of(crate).values() for entity in many(action["result"])}
    seen: set[str] = set()
    waiting = [made_by["table2.csv"]]
    while waiting:
        action = waiting.pop()
        if action["identifier"] not in seen:
            seen.add(action["identifier"])
            waiting += [made_by[entity.id] for entity in many(action.get("object"))]
    assert seen == set(explain.explain(finished_study / "table2.csv").steps)


def test_the_study_is_one_run_of_the_workflow_on_its_config(finished_study: Path, crate: ROCrate) -> None:
    study = crate.dereference("#study")
    assert study["instrument"] == crate.mainEntity and crate.mainEntity.id == "Snakefile"
    (config,) = many(study["object"])
    assert config.id == "config.json"
    assert {"table1.csv", "figure2.svg", "results.csv"} < {entity.id for entity in study["result"]}
    profiles = {profile.id for profile in many(crate.root_dataset["conformsTo"])}
    assert "https://w3id.org/ro/wfrun/workflow/0.5" in profiles


def test_without_a_snakefile_it_is_a_process_run_crate(
    finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export(finished_study, tmp_path / "crate")
    crate = ROCrate(tmp_path / "crate")
    profile = crate.root_dataset["conformsTo"]
    assert [each.id for each in many(profile)] == ["https://w3id.org/ro/wfrun/process/0.5"]
    assert crate.mainEntity is None and crate.dereference("#study") is None


def test_the_config_holds_what_the_study_was_started_with(folder: Path) -> None:
    told = json.loads((folder / "config.json").read_text())
    assert told["name"] == "test" and told["seeds"] == [1] and "table2" in told["artifacts"]


def test_what_no_step_made_is_named_as_it_was_given(finished_study: Path, tmp_path: Path) -> None:
    """A folder of the user's, and a result that nothing in the tree holds any more."""
    source, root = finished_study / "data/world/ultrafeedback", tmp_path / "results"
    shutil.copytree(source, tmp_path / "mine")
    (root / "data").mkdir(parents=True)
    (root / "experiment.json").write_text('{"name": "mine"}')
    rules = TriplesRecipe(data=FeedbackRules(train_rows=80, eval_rows=20))
    steps.run(rules, {"source": (tmp_path / "mine",)}, root, root / "data/prepared/mine")
    steps.run(rules, {"source": (source,)}, root, root / "data/prepared/worlds")
    export(root, tmp_path / "crate")
    actions = steps_of(ROCrate(tmp_path / "crate")).values()
    read = {action["name"]: many(action["object"])[0]["name"] for action in actions}
    assert read == {
        "triples: data/prepared/mine": str(tmp_path / "mine"),
        "triples: data/prepared/worlds": str(source),
    }


def test_a_zip_holds_the_same_and_is_the_same_again(finished_study: Path, folder: Path, tmp_path: Path) -> None:
    export(finished_study, tmp_path / "study.zip")
    with zipfile.ZipFile(tmp_path / "study.zip") as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        assert names == {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        assert archive.read(METADATA) == (folder / METADATA).read_bytes()


def test_what_cannot_be_exported_is_one_line(finished_study: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is there already"):
        export(finished_study, folder)
    with pytest.raises(UserError, match="not a results tree"):
        export(tmp_path, tmp_path / "crate")
    subprocess.run(["cp", "-a", str(finished_study), str(tmp_path / "study")], check=True)
    with (tmp_path / "study/table1.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"table1.csv: is not what was recorded .* explain --check"):
        export(tmp_path / "study", tmp_path / "crate")
    assert not (tmp_path / "crate").exists()
