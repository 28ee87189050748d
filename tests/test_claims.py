"""The claims file: what is read of it, and the one line for each thing that is wrong with it."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.conftest import command
from trialign import artifacts, claims, config, study
from trialign.errors import UserError

FILE = Path("paper/claims.csv")
CONFIGS = [Path("config/config.yaml")]
ROW = {
    "id": "one", "claim": "A is above B.", "quote": "A wins", "source": "Abstract", "kind": "difference",
    "a": "mistral+tpo", "b": "mistral+sft", "column": "arc", "stated": "", "unit": "", "artifacts": "table1",
}  # fmt: skip


def write(folder: Path, *rows: dict[str, str], headings: tuple[str, ...] = claims.HEADINGS) -> Path:
    path = folder / "claims.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, headings, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def experiment_with(path: Path, *more: Path) -> config.Experiment:
    overlay = path.with_suffix(".yaml")
    overlay.write_text(f"artifacts: {{claims: {{file: {path}}}}}\n")
    return config.load_files([*CONFIGS, *more, overlay])


def test_the_papers_claims_are_read() -> None:
    found = {claim.id: claim for claim in claims.read(FILE)}
    assert len(found) > 50
    assert found["average-dpo"].columns == (("arc", "truthfulqa", "winogrande", "hellaswag", "mmlu"),), "one mean"
    assert found["leads-all"].columns == (("arc",), ("truthfulqa",), ("winogrande",), ("hellaswag",), ("mmlu",)), "each"
    assert {claim.kind for claim in found.values()} == set(claims.KINDS), "no kind without a claim"
    stated = {(claim.stated, claim.unit) for claim in found.values() if claim.stated}
    assert stated >= {(n, "%") for n in ("4.97", "4.27", "5.37", "4.07", "2.35", "4.2", "12.7", "7.2", "13.3", "5.12")}
    assert all(claim.quote and claim.source for claim in found.values())


def test_sentences_hold_no_number_of_a_result() -> None:
    """They are printed where the paper's numbers must not be: what is left are names and settings."""
    for claim in claims.read(FILE):
        rest = re.sub(r"Phi-2|alpha 0\.9 and beta 0\.2|Figure 2", "", claim.claim)
        assert not re.search(r"\d", rest), claim.claim


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "diference"}, "claim 'one': there is no kind 'diference' (did you mean 'difference'?); there are "),
        ({"unit": "percent"}, "claim 'one': there is no unit 'percent'; there are '', 'points', '%', 'orders'"),
        ({"stated": "4,27", "unit": "%"}, "claim 'one': stated: '4,27' is no number, such as 4.27"),
        ({"stated": "4.27"}, "claim 'one': unit: it is empty, but 4.27 is stated: give points, % or orders"),
        ({"claim": " "}, "claim 'one': its claim is empty"),
        ({"b": "mistral+sft mistral+sft+dpo"}, "claim 'one': b: kind 'difference' takes one name, not 2"),
        ({"kind": "pairs", "a": "mistral+tpo phi2+tpo"}, "claim 'one': kind 'pairs': a names 2 lineages and b 1"),
        ({"a": "mistral++tpo"}, "claim 'one': lineage 'mistral++tpo': '' is not a stage name"),
        ({"kind": "larger effect", "a": "gamma", "b": "beta"}, "claim 'one': there is no parameter 'gamma' to compare"),
        ({"kind": "orders"}, "claim 'one': there is no setting 'arc' to compare; there are learning_rate"),
        ({"kind": "diverges", "column": "arc mmlu"}, "claim 'one': column: kind 'diverges' takes one column"),
        ({"id": "One"}, "line 2: 'One' is not a row with an id of its own"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_one_line(tmp_path: Path, change: dict[str, str], said: str) -> None:
    path = write(tmp_path, ROW | change)
    with pytest.raises(UserError) as error:
        claims.read(path)
    assert str(error.value).startswith(f"{path}: {said}") and "\n" not in str(error.value)


def test_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; name the file with the claims"):
        claims.read(tmp_path / "none.csv")
    path = write(tmp_path, ROW, headings=(*claims.HEADINGS, "remark"))
    with pytest.raises(UserError, match=r"its columns are id, claim, .*artifacts, each once: look at remark"):
        claims.read(path)
    with pytest.raises(UserError, match="claim 'one' is there twice"):
        claims.read(write(tmp_path, ROW, ROW))


def test_check_refuses_a_benchmark_or_a_parameter_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, ROW | {"column": "arcc"})
    with pytest.raises(UserError, match=r"artifacts.claims: .*claim 'one': column: there is no benchmark 'arcc' "):
        experiment_with(path)
    overlay = path.with_suffix(".yaml")
    done = command("trialign", "check", "config/config.yaml", str(overlay))
    assert done.returncode == 2 and "did you mean 'arc'?" in done.stdout and done.stdout.count("\n") == 1
    write(tmp_path, ROW | {"a": "mistral+tpo@alfa=1"})
    with pytest.raises(UserError, match=r"claim 'one': lineage 'mistral.tpo@alfa=1': stage .* no parameter 'alfa'"):
        experiment_with(path)
    write(tmp_path, ROW | {"column": "mean of arc mtbench"})
    with pytest.raises(UserError, match="it is a mean of accuracies and judged scores"):
        experiment_with(path)


def test_a_model_that_is_not_here_leaves_a_claim_not_run(tmp_path: Path) -> None:
    path = write(tmp_path, ROW, ROW | {"id": "two", "a": "llama+tpo"}, ROW | {"id": "three", "b": "mistral+spin"})
    recipe = artifacts.artifact_recipe(experiment_with(path), "claims")
    assert recipe.lacking == {
        "two": "there is no model 'llama' in this experiment", "three": "there is no stage 'spin' in this experiment"
    }  # fmt: skip


@pytest.mark.parametrize("overlays", [(), ("demo",), ("demo", "test"), ("released",)])
def test_claims_never_add_a_run(overlays: tuple[str, ...]) -> None:
    experiment = config.load_files([*CONFIGS, *(Path(f"config/{name}.yaml") for name in overlays)])
    others = [item for name, item in experiment.artifacts.items() if name != "claims"]
    asked = study.results(experiment, [experiment.artifacts["claims"]])
    assert asked and set(asked) <= set(study.results(experiment, others))
    assert set(study.results(experiment, others)) == set(study.results(experiment, experiment.artifacts.values()))


def test_what_stands_for_a_lineage_must_be_named_by_a_claim(tmp_path: Path) -> None:
    experiment = config.load_files([*CONFIGS, Path("config/demo.yaml")])
    names = artifacts.artifact_recipe(experiment, "claims").names
    rate = "mistral+tpo@alpha=1@beta=0.1@learning_rate"
    assert (names[f"{rate}=2e-5"], names["mistral+dpo"]) == (f"{rate}=0.012", "mistral+dpo@beta=0.1")
    overlay = tmp_path / "other.yaml"
    overlay.write_text("artifacts: {claims: {instead: {mistral+tpo@alpha=7: mistral+tpo}}}\n")
    with pytest.raises(UserError, match=r"instead: no claim of paper/claims.csv names 'mistral.tpo@alpha=7'"):
        config.load_files([*CONFIGS, overlay])
