"""Choosing a candidate: by the evaluation rows, the first of equals, never one that diverged; what is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trialign import diverged
from trialign.errors import UserError
from trialign.recipes import ChooseRecipe
from trialign.steps import SNAKEMAKE_TIMESTAMP, Step
from trialign.training.choose import choose


def run(folder: Path, final: dict[str, float] | None) -> Path:
    """A run's folder as a training leaves it; None: it diverged."""
    (folder / "model").mkdir(parents=True)
    if final is None:
        diverged.write(folder / "model", {"step": 3, "not_finite": "loss", "value": "nan"})
    else:
        (folder / "model/model.safetensors").write_bytes(folder.name.encode())
    (folder / "model" / SNAKEMAKE_TIMESTAMP).touch()
    (folder / "log.jsonl").write_text(f"{folder.name}\n")
    (folder / "run.json").write_text(json.dumps({"facts": {"final": final, "steps": 7}}))
    return folder


def chosen(tmp_path: Path, method: str, finals: list[dict[str, float] | None]) -> tuple[dict, Path]:
    folders = tuple(run(tmp_path / f"run{i}", final) for i, final in enumerate(finals))
    names = tuple(f"dpo@beta={i}" for i in range(len(finals)))
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    return choose(Step(ChooseRecipe(method=method, candidates=names), {"candidate": folders}, out, scratch)), out


@pytest.mark.parametrize(
    ("method", "finals", "best"),
    [
        ("dpo", [{"accuracies": 0.6, "loss": 0.1}, {"accuracies": 0.7, "loss": 0.9}], 1),
        ("dpo", [{"rewards/accuracies": 0.8, "loss": 0.4}, {"accuracies": 0.7, "loss": 0.2}], 0),
        ("sft", [{"loss": 1.2}, {"loss": 1.1}, {"loss": 1.3}], 1),
        ("tpo", [{"accuracies": 0.5}, {"accuracies": 0.7}, {"accuracies": 0.7}], 1),
        ("tpo", [None, {"accuracies": 0.2}], 1),
    ],
)
def test_the_best_on_the_evaluation_rows_is_published(tmp_path, method, finals, best):
    facts, out = chosen(tmp_path, method, finals)
    assert facts["chosen"] == f"dpo@beta={best}" and facts["steps"] == 7
    assert facts["measure"] == ("loss" if method == "sft" else "accuracy")
    assert list(facts["reached"]) == [f"dpo@beta={i}" for i in range(len(finals))]
    weights = out / "model/model.safetensors"
    assert weights.samefile(tmp_path / f"run{best}/model/model.safetensors")  # no second copy of the bytes
    assert (out / "log.jsonl").read_text() == f"run{best}\n"
    assert not (out / "model" / SNAKEMAKE_TIMESTAMP).exists()


def test_where_all_diverged_so_has_the_choice(tmp_path):
    facts, out = chosen(tmp_path, "dpo", [None, None])
    assert diverged.read(out / "model") and facts["reached"] == {"dpo@beta=0": None, "dpo@beta=1": None}


def test_a_record_without_the_measure_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"run1/run.json: facts.final has no accuracy of the evaluation rows"):
        chosen(tmp_path, "dpo", [{"accuracies": 0.5}, {"loss": 0.1}])
