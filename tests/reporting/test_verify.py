"""What `explain --check` finds, on a finished study: nothing at first, then each thing that was changed, by name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import command
from trialign import steps
from trialign.recipes import FetchRecipe, TriplesRecipe
from trialign.reporting import explain, verify
from trialign.settings import FeedbackRules, HubRepository

DPO = "mistral+sft+dpo@beta=0.1"
RUN = f"runs/{DPO}/seed1"


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> Path:
    """A copy that shares no file with the study, linked within itself as steps publish."""
    subprocess.run(["cp", "-a", str(finished_study), str(tmp_path / "study")], check=True)
    return tmp_path / "study"


def flip(file: Path, place: int = -1) -> None:
    """Flip the lowest bit of one byte, in place: in all names of the file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    with file.open("r+b") as stream:
        stream.write(content)


def problems(path: Path, *cell: str) -> list[str]:
    return verify.check(explain.explain(path, *cell)).problems


def rewrite(file: Path, change) -> None:
    """Change a record under all of its names."""
    record = json.loads(file.read_text())
    change(record)
    with file.open("w") as stream:
        json.dump(record, stream)


def test_a_study_fits_and_all_of_it_is_read(study: Path) -> None:
    done = command("trialign", "explain", str(study / "results.csv"), "--check")
    assert done.returncode == 0 and "everything fits" in done.stdout
    report = verify.check(chain := explain.explain(study / "results.csv"))
    assert not report.problems and not report.unchecked
    # every published file under the store, but records and other artifacts, once
    stored = {
        (file.stat().st_ino, file.stat().st_size)
        for fingerprint in chain.steps
        for file in (study / ".store" / fingerprint).rglob("*")
        if file.is_file() and file.name != "run.json"
    }
    assert (
        (report.files, report.bytes)
        == (len(stored), sum(size for _, size in stored))
        == (
            report.files,
            verify.size(chain),
        )
    )


@pytest.mark.parametrize(
    "file",
    [
        f"{RUN}/model/model.safetensors",
        f"{RUN}/mtbench/rubric/judgments.jsonl",
        f"{RUN}/mtbench/answers/answers.jsonl",
        "runs/mistral/seed1/model/model.safetensors",
        "data/reference/mistral+sft/seed1/triples/chosen-rejected.fp32/train.parquet",
        "data/prepared/ultrachat/train.parquet",
        "data/world/mt_bench/question.jsonl",
        "table2.csv",
    ],
)
def test_one_flipped_bit_is_named_and_nothing_else(study: Path, file: str) -> None:
    flip(study / file, 40)
    asked = ["trialign", "explain", str(study / "table2.csv"), "--row", DPO, "--column", "MT-Bench", "--check"]
    done = command(*asked)
    assert done.returncode == 1
    told = [line for line in done.stdout.splitlines() if line.startswith("does not fit")]
    assert len(told) == 1 and told[0].startswith(f"does not fit  {file}: its contents are "), told
    found = json.loads(command(*asked, "--json").stdout)
    assert len(found["problems"]) == 1


def test_a_bit_that_the_cell_does_not_stand_on_is_none_of_its_business(study: Path) -> None:
    flip(study / "runs/mistral+tpo@alpha=0.9@beta=0.2/seed1/model/model.safetensors")
    assert problems(study / "table2.csv", DPO, "MT-Bench") == []
    assert len(problems(study / "table2.csv")) == 1


def test_a_place_that_is_no_link_any_more_is_read_for_itself(study: Path) -> None:
    file = study / RUN / "model/model.safetensors"
    shutil.copy(file, file.with_name("copy"))
    file.with_name("copy").replace(file)
    assert problems(study / RUN) == []
    flip(file)
    (told,) = problems(study / RUN)
    assert told.startswith(f"{RUN}/model/model.safetensors: ")
    file.unlink()
    assert problems(study / RUN) == [f"{RUN}/model/model.safetensors: is not there"]


def test_a_recipe_or_an_input_that_was_rewritten_has_another_fingerprint(study: Path) -> None:
    def warmer(record: dict) -> None:
        record["recipe"]["training"]["learning_rate"] *= 2

    rewrite(study / RUN / "run.json", warmer)
    (told,) = problems(study / "table2.csv", DPO)
    fingerprint = json.loads((study / RUN / "run.json").read_text())["fingerprint"]
    assert told.startswith(f".store/{fingerprint}/run.json: recipe and inputs have the fingerprint ")


def test_a_record_beside_the_result_that_is_not_the_stores_is_named(study: Path) -> None:
    file = study / RUN / "run.json"
    record = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps(record | {"host": "another"}))
    (told,) = problems(study / RUN)
    assert told.startswith(f"{RUN}/run.json: says something else than the store's record")


def test_a_file_that_no_step_wrote_into_a_result_is_named(study: Path) -> None:
    fingerprint = json.loads((study / "data/world/run.json").read_text())["fingerprint"]
    (study / ".store" / fingerprint / "mt_bench/more.jsonl").write_text("{}\n")
    assert problems(study / RUN) == [
        f".store/{fingerprint}/mt_bench/more.jsonl: is there, but the step's record does not name it"
    ]


@pytest.mark.parametrize("place", ["model/adapter_config.json", "notes.json"])
def test_a_file_that_no_step_wrote_beside_a_result_is_named(study: Path, place: str) -> None:
    """A loader that opens the model's folder would read it; the run's suites, in folders of their own, are known."""
    (study / RUN / place).write_text("{}\n")
    assert problems(study / "table2.csv", DPO) == [f"{RUN}/{place}: is there, but the step's record does not name it"]


def test_without_a_store_the_declared_places_are_checked(study: Path) -> None:
    shutil.rmtree(study / ".store")
    assert problems(study / "table2.csv") == []
    flip(study / RUN / "mtbench/rubric/judgments.jsonl", 40)
    (told,) = problems(study / "table2.csv")
    assert told.startswith(f"{RUN}/mtbench/rubric/judgments.jsonl: ")


# --- sources: a download that the lock names, a folder of the user's --------------------------------------------------


@pytest.fixture
def feedback(tmp_path: Path, finished_study: Path) -> Path:
    """A folder in the hub's place with one data set, and an empty results tree beside it."""
    folder = tmp_path / "hub/datasets/me/feedback"
    shutil.copytree(finished_study / "data/world/ultrafeedback", folder)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/experiment.json").write_text('{"name": "mine"}')
    return folder


def prepare(root: Path, source: Path) -> Path:
    rules = FeedbackRules(train_rows=80, eval_rows=20)
    steps.run(TriplesRecipe(data=rules), {"source": (source,)}, root, root / "data/prepared/triples")
    return root / "data/prepared/triples"


def test_a_download_is_held_to_the_locks_hashes(
    tmp_path: Path, feedback: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where someone has written a record that fits the file."""
    monkeypatch.setenv("TRIALIGN_MIRROR", str(tmp_path / "hub"))
    files = {
        file.name: f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in feedback.iterdir()
    }  # fmt: skip
    repository = HubRepository(kind="hub", type="dataset", repo="me/feedback", revision="main")
    root = tmp_path / "results"
    recipe = FetchRecipe(repository=repository, commit="a" * 40, files=files)
    steps.run(recipe, {}, root, root / "data/source/feedback")
    prepared = prepare(root, root / "data/source/feedback")
    assert problems(prepared) == []
    name = min(files)
    flip(root / "data/source/feedback" / name, 40)
    found = hashlib.sha256((root / "data/source/feedback" / name).read_bytes()).hexdigest()
    rewrite(root / "data/source/feedback/run.json", lambda record: record["files"].update({name: found}))
    (told,) = problems(prepared)
    assert told == f"data/source/feedback/{name}: is sha256:{found}, and the lock says {files[name]}"


def test_git_hashes_of_a_lock_are_checked_too(tmp_path: Path, feedback: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIALIGN_MIRROR", str(tmp_path / "hub"))
    files = {
        file.name: "git:" + subprocess.check_output(["git", "hash-object", str(file)], text=True).strip()
        for file in feedback.iterdir()
    }
    repository = HubRepository(kind="hub", type="dataset", repo="me/feedback", revision="main")
    root = tmp_path / "results"
    steps.run(FetchRecipe(repository=repository, commit="a" * 40, files=files), {}, root, root / "data/source/feedback")
    assert problems(root / "data/source/feedback") == []
    flip(root / "data/source/feedback" / min(files), 40)
    told = problems(root / "data/source/feedback")
    assert len(told) == 2 and told[1].endswith(f"and the lock says {files[min(files)]}")


def test_a_folder_of_the_users_is_held_to_what_was_read(tmp_path: Path, feedback: Path) -> None:
    prepared = prepare(tmp_path / "results", feedback)
    chain = explain.explain(prepared)
    assert [each.given for each in chain.local.values()] == [feedback.as_posix()]
    assert problems(prepared) == []
    file = next(feedback.iterdir())
    flip(file, 40)
    assert problems(prepared) == [f"{feedback}: the files there are not those that were read (input source)"]
    shutil.rmtree(feedback)
    report = verify.check(chain)
    assert report.problems == [] and len(report.unchecked) == 1 and str(feedback) in report.unchecked[0]


def test_records_name_the_commit_of_the_code(tmp_path: Path, feedback: Path) -> None:
    record = json.loads((prepare(tmp_path / "results", feedback) / "run.json").read_text())
    git = ["git", "-C", str(Path(steps.__file__).parent)]
    assert record["code"]["commit"] == subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    changed = subprocess.check_output([*git, "status", "--porcelain", "."], text=True).strip() != ""
    assert record["code"]["changed"] == changed and record["gpus"] == 0


def test_code_that_lies_in_a_checkout_of_something_else_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an installed package does, in an environment below a user's own repository."""
    package = tmp_path / ".venv/trialign"
    package.mkdir(parents=True)
    (package / "steps.py").write_text("")
    (tmp_path / "mine").write_text("")
    environment = os.environ | {
        f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    for words in (["init", "-q"], ["add", "mine"], ["commit", "-qm", "mine"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, env=environment)
    monkeypatch.setattr(steps, "__file__", str(package / "steps.py"))
    assert steps.code() is None
    subprocess.run(["git", "-C", str(tmp_path), "add", "-f", "."], check=True)
    assert steps.code()["changed"] is True
