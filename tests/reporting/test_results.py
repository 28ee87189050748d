from __future__ import annotations

import math

import pandas as pd
import pytest
from invented import Study, right

from trialign.errors import UserError
from trialign.recipes import Column, ResultsRecipe
from trialign.reporting.results import results

RECIPE = ResultsRecipe(
    experiment="demo",
    columns=(
        Column(label="ARC", benchmark="arc", metric="acc_norm", scale=100),
        Column(label="MMLU", benchmark="mmlu", metric="acc", scale=100, aggregate="subsets"),
        Column(label="MT-Bench", benchmark="mtbench", metric="score"),
    ),
)
COMPONENTS = ("concise", "correct", "format", "polite", "score")


@pytest.fixture
def judged(study: Study) -> Study:
    """Two lineages; one has a harness suite for two seeds and a judged suite."""
    for seed in (2, 1):
        records = right("arc", "acc_norm", 2 + seed, 5) + right("arc", "acc", 1, 5)
        records += right("mmlu", "acc", 1, 2, "law") + right("mmlu", "acc", 2, 8, "physics")
        folder = study.suite("mistral+sft", records, seed=seed)
        study.record(folder, f"suite{seed}", model=f"model{seed}/model", **{"data.arc": "world/benchmarks/arc"})
    scores = [("mtbench", "math", f"{q}/1", metric, float(q)) for metric in COMPONENTS for q in (1, 4)]
    folder = study.suite("mistral+sft", scores, seed=1, suite="mtbench/rubric")
    study.record(folder, "judged1", answers="answers1/.", questions="world/mt_bench")
    study.record(folder.parent / "answers", "answers1", model="model1/model", questions="world/mt_bench")
    study.record(study.suite("mistral", right("arc", "acc_norm", 1, 5)), "suite0", model="model0/model")
    return study


def test_one_row_for_each_lineage_seed_benchmark_and_metric(judged: Study) -> None:
    frame = pd.read_csv(judged.run(results, RECIPE) / "results.csv", keep_default_na=False)
    keys = list(frame[["lineage", "seed", "benchmark", "metric", "judge"]].itertuples(index=False, name=None))
    harness = [("arc", "acc"), ("arc", "acc_norm"), ("mmlu", "acc")]
    assert keys == [
        ("mistral", 1, "arc", "acc_norm", ""),
        *[("mistral+sft", 1, *key, "") for key in harness],
        *[("mistral+sft", 1, "mtbench", component, "rubric") for component in COMPONENTS],
        *[("mistral+sft", 2, *key, "") for key in harness],
    ]
    assert set(frame["experiment"]) == {"demo"}
    assert set(frame["suite"]) == {"leaderboard", "mtbench"}


def test_values_are_in_their_own_units_and_subsets_count_alike(judged: Study) -> None:
    frame = pd.read_csv(judged.run(results, RECIPE) / "results.csv").set_index(
        ["lineage", "seed", "benchmark", "metric"]
    )
    arc = frame.loc[("mistral+sft", 2, "arc", "acc_norm")]
    assert (arc["value"], arc["n"]) == (0.8, 5)
    assert arc["stderr"] == pytest.approx(math.sqrt(0.8 * 0.2 / 4))
    assert frame.loc[("mistral+sft", 1, "mmlu", "acc"), "value"] == pytest.approx((1 / 2 + 2 / 8) / 2)
    score = frame.loc[("mistral+sft", 1, "mtbench", "score")]
    assert (score["value"], score["stderr"]) == (2.5, pytest.approx(1.5))


def test_each_number_says_what_made_it(judged: Study) -> None:
    frame = pd.read_csv(judged.run(results, RECIPE) / "results.csv", keep_default_na=False)
    made = frame.groupby(["lineage", "seed", "suite"])[["fingerprint", "model_fingerprint"]].agg(
        lambda x: "".join(set(x))
    )
    assert made.loc[("mistral", 1, "leaderboard")].tolist() == ["suite0", "model0"]
    assert made.loc[("mistral+sft", 2, "leaderboard")].tolist() == ["suite2", "model2"]
    assert made.loc[("mistral+sft", 1, "mtbench")].tolist() == ["judged1", "model1"]
    assert set(frame["versions"]) == {"lm-eval 0.4.13; torch 2.13.0"}


def test_a_judgment_of_answers_that_are_gone_is_refused(judged: Study) -> None:
    judged.record(judged.root / "runs/mistral+sft/seed1/mtbench/answers", "answers2", model="model2/model")
    with pytest.raises(UserError, match=r"judges answers answers1, but .* holds answers2"):
        judged.run(results, RECIPE)


def test_a_benchmark_that_the_config_does_not_name_is_refused(judged: Study) -> None:
    judged.record(judged.suite("phi2", right("boolq", "acc", 1, 5)), "suite9", model="model9/model")
    with pytest.raises(UserError, match=r"'boolq' is not in the config \(arc, mmlu, mtbench\)"):
        judged.run(results, RECIPE)


def test_results_without_a_record_are_refused(judged: Study) -> None:
    judged.suite("phi2", right("arc", "acc", 1, 5))
    with pytest.raises(UserError, match=r"phi2/seed1/leaderboard/run\.json is missing"):
        judged.run(results, RECIPE)
