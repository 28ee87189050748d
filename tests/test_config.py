"""Configs: what the shipped ones hold, and what a user sees for each wrong one: one line, before any job."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.utils import update_config

from trialign import artifact_settings, artifacts, config, known, reference, study
from trialign.errors import UserError
from trialign.evaluation import tasks

PAPER, DEMO = Path("config/config.yaml"), Path("config/demo.yaml")
REMOVE = "remove this key"


@pytest.fixture(scope="module")
def paper() -> config.Experiment:
    return config.load_files([PAPER])


@pytest.fixture(scope="module")
def demo() -> config.Experiment:
    return config.load_files([PAPER, DEMO])


def rows(experiment: config.Experiment, name: str) -> list[str]:
    return study.lineages(experiment, experiment.artifacts[name])


def test_the_papers_rows(paper: config.Experiment) -> None:
    sft = [f"mistral+sft+{method}@beta=0.1" for method in ("dpo", "ipo", "kto", "cpo")]
    common = {"mistral+sft", *sft, "mistral+orpo@beta=0.1", "mistral+sft+tpo@alpha=1@beta=0.1"}
    assert set(rows(paper, "table1")) == common | {"mistral+tpo@alpha=1@beta=0.1", "mistral+tpo@alpha=0.9@beta=0.2"}
    assert set(rows(paper, "table2")) == set(rows(paper, "table1"))
    assert rows(paper, "table3")[0] == "phi2+sft" and len(rows(paper, "table3")) == 9
    assert set(rows(paper, "table8")) == set(rows(paper, "table3"))
    assert rows(paper, "table7")[4:] == [f"mistral+sft10k+{method}@beta=0.1" for method in ("dpo", "cpo", "kto", "ipo")]
    assert "mistral+tpo@alpha=0.3@beta=0.7" in rows(paper, "table6")
    assert rows(paper, "table9") == [
        "mistral+tpo@alpha=1@beta=0.1",
        "mistral+tpo@alpha=1@beta=0.1@learning_rate=2e-5",
        "mistral+tpo@alpha=0.9@beta=0.2",
        "mistral+tpo@alpha=0.9@batch=32@beta=0.2",
        "mistral+tpo@alpha=0.9@beta=0.2@epochs=2",
    ]


def test_the_papers_settings(paper: config.Experiment) -> None:
    dpo = study.train_recipe(paper, paper.lineage("mistral+sft+dpo"), 42)
    assert (dpo.training.learning_rate, dpo.training.schedule, dpo.training.warmup) == (5e-7, "linear", 0.1)
    assert (dpo.training.batch, dpo.training.epochs, dpo.training.weight_decay) == (16, 1, 0)
    assert dpo.params["beta"] == 0.1
    sft = study.train_recipe(paper, paper.lineage("phi2+sft"), 42)
    assert (sft.training.learning_rate, sft.training.schedule, sft.training.batch) == (2e-5, "cosine", 128)
    assert len(paper.benchmarks["mmlu"].subsets) == 57
    assert paper.benchmarks["mmlu"].aggregate == "subsets"
    assert {name: item.shots for name, item in paper.benchmarks.items() if item.kind == "harness"} == {
        "arc": 25,
        "truthfulqa": 0,
        "winogrande": 5,
        "hellaswag": 10,
        "mmlu": 5,
        "causal": 3,
        "sports": 3,
        "formal": 3,
        "openbookqa": 1,
    }
    assert paper.sources["ultrafeedback"].revision == "40b436560ca83a8dba36114c22ab3c66e43f6d5e"
    assert (paper.data["triples"].train_rows, paper.data["triples"].eval_rows) == (10000, 2000)


def test_each_bigbench_task_has_its_file(paper: config.Experiment) -> None:
    tasks = [paper.benchmarks[name] for name in ("causal", "sports", "formal")]
    assert {item.source for item in tasks} == {"bigbench"}
    assert set(paper.sources["bigbench"].files) == {f"{item.split}.json" for item in tasks}
    assert all(item.include == f"trialign/bigbench_{item.split}.yaml" for item in tasks)


def test_table_4_states_the_benchmarks_as_they_are_scored(paper: config.Experiment) -> None:
    recipe = artifacts.artifact_recipe(paper, "table4")
    stated = {row["Benchmark"]: (row["Task"], row["Few-shot"], row["Metric"], row["Average"]) for row in recipe.rows}
    assert stated == {
        "ARC": ("arc_challenge", "25", "acc_norm", "over items"),
        "TruthfulQA": ("truthfulqa_mc2", "0", "acc", "over items"),
        "Winogrande": ("winogrande", "5", "acc", "over items"),
        "HellaSwag": ("hellaswag", "10", "acc_norm", "over items"),
        "MMLU": ("mmlu_{subset}", "5", "acc", "over subsets"),
        "BB-causal": ("bigbench_causal_judgement", "3", "acc", "over items"),
        "BB-sports": ("bigbench_sports_understanding", "3", "acc", "over items"),
        "BB-formal": ("bigbench_formal_fallacies_syllogisms_negation", "3", "acc", "over items"),
        "OpenBookQA": ("openbookqa", "1", "acc_norm", "over items"),
        "MT-Bench": ("two-turn questions", "-", "1-10, gpt-4", "over turns"),
    }


@pytest.mark.parametrize(
    ("lineage", "view"),
    [
        ("mistral+sft", "conversation"),
        ("mistral+sft10k", "reference"),
        ("mistral+dpo", "reference-rejected"),
        ("mistral+sft+dpo", "chosen-rejected"),
        ("mistral+sft10k+kto", "chosen-rejected"),
        ("mistral+orpo", "reference-rejected"),
        ("mistral+tpo", "triple"),
        ("mistral+sft+tpo", "triple"),
        ("mistral+dpo@view=chosen-rejected", "chosen-rejected"),
    ],
)
def test_the_view_is_derived_as_in_the_paper_and_can_be_overridden(
    paper: config.Experiment, lineage: str, view: str
) -> None:
    assert study.train_recipe(paper, paper.lineage(lineage), 42).view == view


def test_an_overridden_view_is_spelled_and_a_derived_one_is_not(paper: config.Experiment) -> None:
    assert str(paper.lineage("mistral+sft+dpo@view=chosen-rejected")) == "mistral+sft+dpo@beta=0.1"
    assert str(paper.lineage("mistral+dpo@view=chosen-rejected")) == "mistral+dpo@beta=0.1@view=chosen-rejected"


def test_a_changed_default_renames_nothing() -> None:
    raw = merged()
    raw["stages"]["tpo"]["params"]["alpha"] = 0.5
    experiment = config.load(raw)
    assert str(experiment.lineage("mistral+tpo@alpha=1@beta=0.1")) == "mistral+tpo@alpha=1@beta=0.1"
    assert str(experiment.lineage("mistral+tpo")) == "mistral+tpo@alpha=0.5@beta=0.1"


def test_what_equals_the_preset_is_not_spelled(paper: config.Experiment) -> None:
    assert str(paper.lineage("mistral+tpo@learning_rate=5e-7@batch=16")) == "mistral+tpo@alpha=1@beta=0.1"


def test_the_demo_is_the_whole_study(paper: config.Experiment, demo: config.Experiment) -> None:
    assert set(paper.artifacts) - {"contamination"} <= set(demo.artifacts)  # nothing in the demo's world is seen
    lineages = {lineage for artifact in demo.artifacts.values() for lineage in study.lineages(demo, artifact)}
    assert len(lineages) >= 40
    assert {lineage.split("+")[0] for lineage in lineages} == {"mistral", "phi2"}
    grid = demo.artifacts["figure2"]
    assert len(grid.alpha) >= 3 and len(grid.beta) >= 3
    assert {"mistral+reference_only", "phi2+reference_only"} <= lineages  # the control that the paper lacks


def test_only_the_suites_of_the_columns_are_needed(paper: config.Experiment) -> None:
    assert study.suites(paper, paper.artifacts["table3"]) == ["mtbench/gpt-4"]
    assert study.suites(paper, paper.artifacts["table1"]) == ["leaderboard"]
    assert study.suites(paper, paper.artifacts["table2"]) == ["mtbench/gpt-4", "bigbench"]


TWO_JUDGES = {
    "judges__local": {"kind": "openai", "model": "some-model", "endpoint": {"base_url": "http://node:8000/v1"}},
    "benchmarks__mtbench_local": {
        "kind": "judged",
        "label": "MT-Bench (local)",
        "source": "mt_bench",
        "judge": "local",
    },
}


def test_two_judges_of_the_same_answers_have_columns_and_folders_of_their_own() -> None:
    raw = changed(**TWO_JUDGES, artifacts__table2__columns=["mtbench", "mtbench_local"])
    experiment = config.load(raw)
    table = experiment.artifacts["table2"]
    assert study.suites(experiment, table) == ["mtbench/gpt-4", "mtbench/local"]
    found = artifacts.artifact_recipe(experiment, "table2")
    assert [column.benchmark for column in found.columns] == ["mtbench", "mtbench_local"]
    assert "MT-Bench is judged by gpt-4 (gpt-4-0613)." in found.caption
    assert "MT-Bench (local) is judged by local (some-model)." in found.caption
    recipes = {name: study.judge_recipe(experiment, name) for name in study.judges(experiment)}
    assert {name: recipe.benchmark for name, recipe in recipes.items()} == {
        "gpt-4": "mtbench", "local": "mtbench_local",
    }  # fmt: skip
    with pytest.raises(UserError, match="'Mean' is a mean of gpt-4 and local: take one judge"):
        config.load(
            changed(
                **TWO_JUDGES, artifacts__table2__columns=[{"label": "Mean", "mean_of": ["mtbench", "mtbench_local"]}]
            )
        )


def test_an_endpoint_shapes_no_score(tmp_path: Path) -> None:
    """Another address, budget or key: the recipe, and with it the fingerprint, stays; a start writes it down."""
    other = {"base_url": "http://node:8000/v1", "max_cost": 3, "price_in": 1, "price_out": 2, "key": "OTHER"}
    one, two = config.load(merged()), config.load(changed(**{"judges__gpt-4__endpoint": other}))
    assert study.judge_recipe(one, "gpt-4").canonical() == study.judge_recipe(two, "gpt-4").canonical()
    study.stamp(two.model_copy(update={"results_dir": str(tmp_path)}))
    (written,) = json.loads((tmp_path / ".shared/endpoints.json").read_text()).values()
    assert written.items() >= other.items()


def test_a_choice_needs_its_candidates_trained_and_is_evaluated_alone(paper: config.Experiment) -> None:
    lineage = paper.lineage("mistral+sft+dpo_tuned")
    assert [str(candidate) for candidate in paper.candidates(lineage)] == [
        "mistral+sft+dpo@beta=0.1",
        "mistral+sft+dpo@beta=0.01",
        "mistral+sft+dpo@beta=0.1@learning_rate=5e-6",
        "mistral+sft+dpo@beta=0.01@learning_rate=5e-6",
    ]
    assert study.choose_recipe(paper, lineage).candidates[1] == "dpo@beta=0.01"
    asked = {str(lineage) for artifact in paper.artifacts.values() for lineage in study.lineages(paper, artifact)}
    assert "mistral+sft+dpo_tuned" in asked and "mistral+sft+dpo@beta=0.01" not in asked


@pytest.mark.parametrize("name", ["paper", "demo"])
def test_every_method_is_tuned_on_the_same_budget_the_usual_setting_among_it(
    name: str, request: pytest.FixtureRequest
) -> None:
    experiment: config.Experiment = request.getfixturevalue(name)
    tuned = study.choosing_stages(experiment)
    assert {experiment.stages[stage].method for stage in tuned} == {"sft", "dpo", "ipo", "kto", "cpo", "orpo", "tpo"}
    for stage in tuned:
        candidates = experiment.candidates(experiment.lineage(f"mistral+{stage}"))
        assert len(candidates) == 4
        plain = "reference_only" if stage == "sft_tuned" else stage.removesuffix("_tuned")
        assert experiment.lineage(f"mistral+{plain}") in candidates


def test_only_the_benchmarks_that_an_artifact_asks_of_a_lineage_are_evaluated() -> None:
    raw = merged()
    raw["artifacts"] = {"one": raw["artifacts"]["table1"] | {"rows": ["mistral+sft"], "columns": ["arc"]}}
    experiment = config.load(raw)
    recipe = study.evaluate_recipe(experiment, experiment.lineage("mistral+sft"), "leaderboard")
    assert list(recipe.benchmarks) == ["arc"]


def test_only_artifacts_that_split_items_need_the_overlap(paper: config.Experiment) -> None:
    needed = {name: study.overlaps(paper, artifact) for name, artifact in paper.artifacts.items()}
    assert {name for name, paths in needed.items() if paths} == {"contamination"}
    assert needed["contamination"] == ["results/data/overlap/ultrachat", "results/data/overlap/triples"]
    asked = artifacts.artifact_recipe(paper, "contamination")
    assert [column.items for column in asked.columns] == ["all", "seen", "unseen"] * 2
    assert "in the training rows of ultrachat or triples" in asked.caption
    assert "training rows" not in artifacts.artifact_recipe(paper, "table1").caption


def test_a_mean_of_unseen_items_is_one_of_each_benchmarks_unseen_items(paper: config.Experiment) -> None:
    spec = artifact_settings.ColumnSpec(label="Average (unseen)", mean_of=("arc", "mmlu"), items="unseen")
    made = artifacts.column(paper, spec)
    assert [(member.benchmark, member.items) for member in made.mean_of] == [("arc", "unseen"), ("mmlu", "unseen")]


def test_shots_and_limits_do_not_search_again(paper: config.Experiment) -> None:
    def with_arc(**changes: Any) -> Any:
        arc = paper.benchmarks["arc"].model_copy(update=changes)
        return study.overlap_recipe(paper.model_copy(update={"benchmarks": paper.benchmarks | {"arc": arc}}), "triples")

    assert with_arc(shots=3, limit=7, label="x") == study.overlap_recipe(paper, "triples")
    assert with_arc(question="stem").fields == {"arc": "stem"}
    assert with_arc(split="validation") != study.overlap_recipe(paper, "triples")


def test_labels_and_sources_are_no_part_of_a_recipe(paper: config.Experiment) -> None:
    """A new heading or another name for a source must not train or evaluate anything again."""
    raw = merged()
    raw["benchmarks"]["arc"]["label"] = "ARC-C"
    raw["sources"]["arc_new"] = raw["sources"]["arc"]
    raw["benchmarks"]["arc"]["source"] = "arc_new"
    raw["stages"]["dpo"]["label"] = "Direct"
    changed = config.load(raw)
    lineage = paper.lineage("mistral+sft+dpo")
    assert study.evaluate_recipe(changed, lineage, "leaderboard") == study.evaluate_recipe(
        paper, lineage, "leaderboard"
    )
    assert study.train_recipe(changed, lineage, 42) == study.train_recipe(paper, lineage, 42)


def test_rows_that_read_the_same_are_told_apart(paper: config.Experiment) -> None:
    rows = artifacts.artifact_recipe(paper, "table1").rows
    assert [row.texts["Align"] for row in rows] == [
        "SFT", "DPO", "IPO", "KTO", "CPO", "ORPO", "TPO", "TPO (α=1, β=0.1)", "TPO (α=0.9, β=0.2)",
    ]  # fmt: skip
    assert [row.texts["Model"] for row in rows] == [
        "Mistral",
        *["Mistral+SFT"] * 4,
        "Mistral",
        "Mistral+SFT",
        "Mistral",
        "Mistral",
    ]
    table9 = artifacts.artifact_recipe(paper, "table9").rows
    assert [(row.texts["Learning Rate"], row.texts["Epoch"], row.texts["Batch Size"]) for row in table9] == [
        ("5e-7", "1", "16"), ("2e-5", "1", "16"), ("5e-7", "1", "16"), ("5e-7", "1", "32"), ("5e-7", "2", "16"),
    ]  # fmt: skip
    assert [row.texts["Align"] for row in table9] == ["TPO (α=1, β=0.1)"] * 2 + ["TPO (α=0.9, β=0.2)"] * 3


def test_what_is_ours_is_said_in_the_artifacts(paper: config.Experiment) -> None:
    caption = artifacts.artifact_recipe(paper, "table2").caption
    assert "; shots of BB-causal, BB-formal, BB-sports, OpenBookQA." in caption
    assert "Ours: the grid, of which only (1, 0.1)" in artifacts.artifact_recipe(paper, "figure2").caption
    assert "; sft10k: training." in artifacts.artifact_recipe(paper, "table7").caption


def test_numbers_as_yaml_reads_them() -> None:
    """YAML reads 5e-7 as text; the typed model takes both spellings."""
    raw = merged()
    raw["training"]["learning_rate"] = "5e-7"
    assert config.load(raw).stages["dpo"].training.learning_rate == 5e-7


def test_the_reference_and_the_schema_are_generated() -> None:
    assert Path("config/README.md").read_text() == reference.markdown(), "run `trialign reference`"
    assert Path("config/schema.json").read_text() == reference.schema(), "run `trialign reference`"


def test_environment_yml_has_the_pins_of_the_lock() -> None:
    conda = yaml.safe_load(Path("environment.yml").read_text())
    (pins,) = (item["pip"] for item in conda["dependencies"] if isinstance(item, dict))
    assert pins == Path("requirements.lock").read_text().split()
    assert "python=3.11" in conda["dependencies"]


def merged() -> dict[str, Any]:
    return yaml.safe_load(PAPER.read_text())


def changed(**changes: Any) -> dict[str, Any]:
    """The paper's config with one change: keys are dotted paths written with __, REMOVE removes a key."""
    raw = merged()
    for place, value in changes.items():
        *way, last = place.split("__")
        part = raw
        for key in way:
            part = part[int(key) if isinstance(part, list) else key]
        if value is REMOVE:
            del part[last]
        elif isinstance(part, list):
            part[int(last)] = value
        else:
            part[last] = value
    return copy.deepcopy(raw)


# change -> what the user sees
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"trainning": {}}, "config: trainning: unknown key 'trainning' (did you mean 'training'?); allowed are 'name', "),
    ({"name": REMOVE}, "config: name: it is missing"),
    ({"name": "My Study"}, "config: name: 'My Study' is not allowed: string should match pattern"),
    ({"results_dir": "results/with space"}, "config: results_dir: 'results/with space' is not allowed"),
    ({"seeds": []}, "config: seeds: [] is not allowed: list should have at least 1 item"),
    ({"seeds": 1}, "config: seeds: 1 is not allowed: input should be a list"),
    ({"published": "nope.csv"}, "config: published: 'nope.csv' does not exist"),
    (
        {"benchmarks__arc__metric": "acc_nrom"},
        "config: benchmarks.arc.metric: there is no metric 'acc_nrom' (did you mean 'acc_norm'?); there are 'acc', ",
    ),
    ({"benchmarks__mmlu__metric": "accuracy"}, "config: benchmarks.mmlu.metric: there is no metric 'accuracy'"),
    (
        {"data__triples__exclude_sources": ["truthfulqa"]},
        "config: data.triples.exclude_sources: there is no source of prompts 'truthfulqa' (did you mean 'truthful_qa'?)",
    ),
    (
        {
            "sources__mt_bench": {
                "kind": "web",
                "base": "https://a.b/c/",
                "files": {"q.jsonl": "unknown"},
                "repo": "a/b",
            }
        },
        "('repo' is of kind 'hub': where an overlay changes the kind, set it to null)",
    ),
    ({"seeds": ["one"]}, "config: seeds.0: 'one' is not allowed: input should be a valid integer"),
    (
        {"training__learning_rate": -1},
        "config: training.learning_rate: -1 is not allowed: input should be greater than 0",
    ),
    (
        {"training__learning_rate": "fast"},
        "config: training.learning_rate: 'fast' is not allowed: input should be a valid number",
    ),
    (
        {"training__schedule": "cosin"},
        "config: training.schedule: 'cosin' is not allowed: input should be 'linear', 'cosine' or 'constant'",
    ),
    ({"training__warmup": 10}, "config: training.warmup: 10 is not allowed: input should be less than 1"),
    ({"training__batch": 16.5}, "config: training.batch: 16.5 is not allowed: input should be a valid integer"),
    ({"stages__dpo__methd": "dpo"}, "config: stages.dpo.methd: unknown key 'methd' (did you mean 'method'?)"),
    (
        {"stages__dpo__method": "dpoo"},
        "config: stages.dpo.method: there is no method 'dpoo' (did you mean 'dpo'?); there are",
    ),
    (
        {"stages__dpo__data": "tripels"},
        "config: stages.dpo.data: there is no data set 'tripels' (did you mean 'triples'?); there are",
    ),
    (
        {"stages__dpo__params__betta": 1},
        "config: stages.dpo.params: there is no parameter 'betta' (did you mean 'beta'?); there are",
    ),
    (
        {"stages__dpo__params__beta": 0},
        "config: stages.dpo: lineage 'mistral+dpo': stage 'dpo': beta: 0 is not allowed: input should be greater than 0",
    ),
    ({"stages__tpo__view": "conversation"}, "stage 'tpo': method 'tpo' reads 'triple', not 'conversation'"),
    ({"stages__dpo__data": "ultrachat"}, "cannot be taken of the data 'ultrachat'"),
    (
        {"stages__sft__imported": {"mixtral": "mistral_sft"}},
        "config: stages.sft.imported: there is no model 'mixtral' (did you mean 'mistral'?)",
    ),
    (
        {"stages__sft__imported": {"mistral": "mistral_stf"}},
        "config: stages.sft.imported.mistral: there is no source 'mistral_stf' (did you mean 'mistral_sft'?)",
    ),
    (
        {"models__mistral__source": REMOVE},
        "config: models.mistral: give either `source` (a published model) or `pretrain` (a tiny one)",
    ),
    ({"models__mistral__source": "mistral"}, "config: models.mistral.source: there is no source 'mistral'"),
    (
        {"models__mistral__source": "ultrachat"},
        "config: models.mistral.source: 'ultrachat' is a dataset repository, not a model",
    ),
    (
        {"models__mistral__chat_template": "zefyr"},
        "config: models.mistral.chat_template: there is no chat template 'zefyr' (did you mean 'zephyr'?)",
    ),
    (
        {"sources__arc": {"kind": "world", "part": "benchmarks/arc"}},
        "config: sources.arc: it is a part of the demo world, but there is no `world`",
    ),
    (
        {"sources__arc__kind": "hubb"},
        "config: sources.arc.kind: 'hubb' is not allowed; allowed are 'hub', 'web', 'world', 'local'",
    ),
    ({"sources__arc__repo": "arc"}, "config: sources.arc.repo: 'arc' is not allowed"),
    (
        {"data__triples__ties": "random"},
        "config: data.triples.ties: 'random' is not allowed: input should be 'paper' or 'released'",
    ),
    ({"data__triples__train_rows": 0}, "config: data.triples.train_rows: 0 is not allowed"),
    ({"benchmarks__arc__shots": -1}, "config: benchmarks.arc.shots: -1 is not allowed"),
    (
        {"benchmarks__arc__source": "ark"},
        "config: benchmarks.arc.source: there is no source 'ark' (did you mean 'arc'?)",
    ),
    (
        {"benchmarks__arc__include": "arc/arc_chalenge.yaml"},
        "config: benchmarks.arc.include: 'arc/arc_chalenge.yaml' is no task file of lm_eval/tasks "
        "(did you mean 'arc/arc_challenge.yaml'?)",
    ),
    (
        {"benchmarks__arc__include": "trialign/arc.yaml"},
        "config: benchmarks.arc.include: 'trialign/arc.yaml' is none of trialign's task files",
    ),
    (
        {"benchmarks__mmlu__subsets": ["virology", "virologie"]},
        "config: benchmarks.mmlu.include: 'mmlu/default/mmlu_virologie.yaml' is no task file of lm_eval/tasks "
        "(did you mean 'mmlu/default/mmlu_virology.yaml'?)",
    ),
    (
        {"sources__bigbench__files": {"../sports.json": "unknown"}},
        "config: sources.bigbench.files",
    ),
    ({"benchmarks__mmlu__subsets": []}, "config: benchmarks.mmlu: `subsets` and '{subset}' in `include` go together"),
    (
        {"benchmarks__arc__suite": "mtbench"},
        "config: benchmarks.arc.suite: 'mtbench' is taken in a run's folder",
    ),
    ({"judges__answers": {"kind": "rubric"}}, "config: judges.answers: 'answers' is the folder of the answers"),
    ({"judges": {"GPT 4": {"kind": "rubric"}}}, "config: judges.GPT 4: 'GPT 4' is not allowed"),
    (
        {"judges__gpt-4__model": "gpt-4"},
        "config: judges.gpt-4.model: 'gpt-4' is an alias that OpenAI moves: pin a dated snapshot, such as gpt-4-0613",
    ),
    (
        {"benchmarks__mtbench__judge": "gpt4"},
        "config: benchmarks.mtbench.judge: there is no judge 'gpt4' (did you mean 'gpt-4'?); there are 'gpt-4'",
    ),
    (
        {"benchmarks__mtbench2": {"kind": "judged", "label": "B", "source": "mt_bench", "judge": "gpt-4"}},
        "config: benchmarks.mtbench2.judge: 'gpt-4' judges 'mtbench' already: give a column its metric",
    ),
    (
        {
            "judges__other": {"kind": "rubric"},
            "benchmarks__mtbench2": {"kind": "judged", "label": "B", "source": "arc", "judge": "other"},
        },
        "config: benchmarks.mtbench2.source: 'arc' is not that of 'mtbench' (mt_bench): all judges see the same answers",
    ),
    (
        {"judges__gpt-4__endpoint": {"max_cost": 5}},
        "config: judges.gpt-4.endpoint.max_cost: without price_in and price_out it stops nothing: give both",
    ),
    (
        {"judges__gpt-4__endpoint": {"max_tokens": 5}, "judges__gpt-4__leave_out": ["max_tokens"]},
        "config: judges.gpt-4.endpoint: a budget needs a longest response: give body.max_completion_tokens",
    ),
    (
        {"judges__gpt-4__body": {"n": 2}},
        "config: judges.gpt-4.body.n: it is set by what is judged: leave it out",
    ),
    ({"judges__gpt-4__endpoint": {"max_cost": -1}}, "config: judges.gpt-4.endpoint.max_cost: -1"),
    (
        {"judges__gpt-4__endpoint": {"key": "sk-secret"}},
        "config: judges.gpt-4.endpoint.key: 'sk-secret' is not allowed",
    ),
    (
        {"artifacts__table1__kind": "tabel"},
        "config: artifacts.table1.kind: 'tabel' is not allowed; allowed are 'table', 'pivot', 'grid', 'heatmap', 'forest', 'curves', 'distributions', 'facts'",
    ),
    (
        {"artifacts__table1__rows__1": "mistral+sfft+dpo"},
        "config: artifacts.table1: lineage 'mistral+sfft+dpo': there is no stage 'sfft' (did you mean 'sft'?)",
    ),
    (
        {"artifacts__table1__rows__1": "mistrl+dpo"},
        "config: artifacts.table1: lineage 'mistrl+dpo': there is no model 'mistrl' (did you mean 'mistral'?)",
    ),
    (
        {"artifacts__table1__rows__1": "mistral+dpo@beta=0.1,0.2"},
        "config: artifacts.table1: lineage 'mistral+dpo@beta=0.1,0.2': '0.1,0.2' is not a parameter value",
    ),
    ({"artifacts__table1__rows__1": "mistral+dpo@alpha=1"}, "stage 'dpo@alpha=1': there is no parameter 'alpha'"),
    ({"artifacts__table1__rows__1": "mistral+tpo@beta=-1"}, "stage 'tpo@beta=-1': beta: -1 is not allowed"),
    ({"artifacts__table1__rows__1": "mistral+tpo@batch=0"}, "stage 'tpo@batch=0': batch: 0 is not allowed"),
    (
        {"artifacts__table1__rows__1": "mistral+sft"},
        "config: artifacts.table1: rows: 'mistral+sft' and 'mistral+sft' are the same lineage",
    ),
    (
        {"artifacts__table1__columns__0": "arcc"},
        "config: artifacts.table1: columns: there is no benchmark 'arcc' (did you mean 'arc'?)",
    ),
    (
        {"artifacts__table1__columns__0": {"label": "ARC"}},
        "config: artifacts.table1: columns: 'ARC' needs either `benchmark` or `mean_of`",
    ),
    (
        {"artifacts__forest_tpo__rows__0": "mistral+tpo@alpha=0.9@beta=0.2"},
        "config: artifacts.forest_tpo: rows: 'mistral+tpo@alpha=0.9@beta=0.2' is the baseline: leave it out of the rows",
    ),
    (
        {"artifacts__forest_tpo__rows__0": "mistral+sft+dpo"},
        "config: artifacts.forest_tpo: rows: 'mistral+sft+dpo' and 'mistral+sft+dpo' are the same lineage",
    ),
    (
        {"artifacts__forest_tpo__baseline": "mistral+tpoo"},
        "config: artifacts.forest_tpo: lineage 'mistral+tpoo': there is no stage 'tpoo' (did you mean 'tpo'?)",
    ),
    (
        {"artifacts__forest_tpo__columns__0": "mtbensh"},
        "config: artifacts.forest_tpo: columns: there is no benchmark 'mtbensh' (did you mean 'mtbench'?)",
    ),
    (
        {"artifacts__heatmap_mtbench__lineage": "mistral+dpo"},
        "config: artifacts.heatmap_mtbench: lineage: 'mistral+dpo' does not end in a stage that takes alpha and beta",
    ),
    (
        {"artifacts__curves__rows__0": "mistral"},
        "config: artifacts.curves: rows: 'mistral' is a base model, which no stage trains: name a lineage with a stage",
    ),
    (
        {"artifacts__curves__rows__0": "mistral+sft"},
        "config: artifacts.curves: rows: 'mistral+sft' is taken as published, there is no log of its training",
    ),
    ({"artifacts__curves__smooth": 0}, "config: artifacts.curves.smooth: 0 is not allowed"),
    (
        {"artifacts__distributions__data__0": "tripels"},
        "config: artifacts.distributions: data: there is no data set 'tripels' (did you mean 'triples'?)",
    ),
    (
        {"artifacts__distributions__data": ["triples", "triples"]},
        "config: artifacts.distributions: data: 'triples' is there twice: leave one",
    ),
    (
        {"artifacts__distributions__model": "mistrall"},
        "config: artifacts.distributions: model: there is no model 'mistrall' (did you mean 'mistral'?)",
    ),
    (
        {"artifacts__figure2__lineage": "mistral+dpo"},
        "config: artifacts.figure2: lineage: 'mistral+dpo' does not end in a stage that takes alpha and beta",
    ),
    (
        {"artifacts__figure2__alpha": [-1]},
        "config: artifacts.figure2: lineage 'mistral+tpo@alpha=-1@beta=0.1': stage 'tpo@alpha=-1@beta=0.1': alpha: -1 is not allowed",
    ),
    ({"artifacts__table3__columns": {}}, "config: artifacts.table3.columns: {} is not allowed"),
    (
        {"artifacts__table1__rows": [5]},
        "config: artifacts.table1.rows.0: 5 is not allowed: input should be a valid string",
    ),
    (
        {"artifacts__table1__columns": [5]},
        "config: artifacts.table1.columns.0: 5 is not allowed: input should be a valid string",
    ),
    ({"stages__tpo__params__margin": 1}, "config: stages.tpo: lineage 'mistral+tpo': stage 'tpo': {"),
    ({"seeds": [-1]}, "config: seeds.0: -1 is not allowed: input should be greater than or equal to 0"),
    ({"seeds": [1, 1]}, "config: seeds: [1, 1] holds a seed twice"),
    ({"benchmarks__arc__suite": "model"}, "config: benchmarks.arc.suite: 'model' is taken in a run's folder"),
    ({"benchmarks__arc__suite": "a/b"}, "config: benchmarks.arc.suite: 'a/b' is not allowed"),
    (
        {
            "artifacts__results": {
                "kind": "table",
                "title": "R",
                "caption": "R",
                "rows": ["mistral"],
                "columns": ["arc"],
            }
        },
        "config: artifacts.results: results.csv is made anyway",
    ),
    (
        {"artifacts__table9__columns__0": {"label": "First", "benchmark": "mtbench", "metric": "frist_turn"}},
        "columns: 'First': there is no metric 'frist_turn' (did you mean 'first_turn'?)",
    ),
    (
        {"artifacts__table1__columns__1": {"label": "ARC", "benchmark": "hellaswag"}},
        "config: artifacts.table1: columns: two are called 'ARC'",
    ),
    (
        {"artifacts__table1__columns__1": {"label": "Mean", "mean_of": ["arc", "mtbench"]}},
        "'Mean' is a mean of accuracies and judged scores",
    ),
    (
        {"training__learning_rate": float("inf")},
        "config: training.learning_rate: inf is not allowed: input should be a finite number",
    ),
    ({"data__triples__max_prompt_length": 2000}, "config: data.triples.max_prompt_length: 2000 leaves no room in 1024"),
    ({"data__triples__source": "phi2_base"}, "config: data.triples.source: 'phi2_base' is a model repository"),
    (
        {"stages__sft__imported": {"mistral": "arc"}},
        "config: stages.sft.imported.mistral: 'arc' is not a model repository",
    ),
    (
        {"stages__dpo_tuned__candidates": ["dpo@beta=0.1"]},
        "config: stages.dpo_tuned.candidates: there is nothing to choose: give two or more stages, each once",
    ),
    (
        {"stages__dpo_tuned__candidates": ["dpo@beta=0.1", "ipo@beta=0.1"]},
        "config: stages.dpo_tuned.candidates: 'ipo@beta=0.1' is ipo on triples, not dpo on triples",
    ),
    (
        {"stages__dpo_tuned__candidates": ["dpo@beta=0.1", "dpo@gamma=0.1"]},
        "config: stages.dpo_tuned.candidates: lineage 'mistral+dpo@gamma=0.1': stage 'dpo@gamma=0.1': there is no "
        "parameter 'gamma'",
    ),
    (
        {"stages__sft_tuned__candidates": ["sft@batch=16", "reference_only"]},
        "config: stages.sft_tuned.candidates: 'sft@batch=16' is sft on ultrachat, not sft on triples",
    ),
    (
        {"artifacts__tuned__rows": ["mistral+sft+dpo_tuned@beta=0.1"]},
        "config: artifacts.tuned: lineage 'mistral+sft+dpo_tuned@beta=0.1': stage 'dpo_tuned@beta=0.1' takes its "
        "parameters from its candidates: leave them out",
    ),
    (
        {"stages__sft__training__tokens_of": "triple"},
        "config: stages.sft: lineage 'mistral+sft': stage 'sft': tokens_of: packed rows have no views to count",
    ),
    ({"judges__gpt-4__model": REMOVE}, "config: judges.gpt-4.model: it is missing"),
    (
        {"artifacts__table1__columns": [{"label": "A", "benchmark": "arc", "items": "some"}]},
        "config: artifacts.table1.columns.0.items: 'some' is not allowed: input should be 'all', 'seen' or 'unseen'",
    ),
    (
        {
            "artifacts__table1__columns": [{"label": "A", "benchmark": "arc", "items": "seen"}],
            "artifacts__table1__rows": ["mistral"],
        },
        "config: artifacts.table1: columns: seen or unseen items are asked for, but no lineage here is trained on any data",
    ),
    ({"resources__train__gpus": -1}, "config: resources.train.gpus: -1 is not allowed"),
    (
        {"training__engine": "trl", "resources__train__gpus": 3},
        "config: stages.sft.training.batch: 128 does not divide into micro-batches of 1 on 3 GPUs",
    ),
    (
        {"training__engine": "trl", "resources__train": {"gpus": 2, "nodes": 3}},
        "128 does not divide into micro-batches of 1 on 6 GPUs (resources.train: gpus x nodes)",
    ),
    (
        {"resources__train": {"gpus": 0, "nodes": 2}},
        "config: resources.train.nodes: 2 nodes train on GPUs alone: give resources.train.gpus",
    ),
    ({"resources__evaluate__nodes": 2}, "config: resources.evaluate.nodes: unknown key"),
    (
        {"training__engine": "trl", "stages__tpo__training": {"micro_batch": 4}},
        "config: stages.tpo.training.micro_batch: TRL's loss of tpo depends on how a batch is split",
    ),
    (
        {"stages__tpo__training": {"micro_batch": 4}},
        "config: stages.tpo.training.micro_batch: the packed engine goes by micro_batch_tokens: leave it out",
    ),
    (
        {"stages__dpo__training": {"packing": 2048}},
        "config: stages.dpo.training.packing: only sft packs what it reads, not dpo",
    ),
    (
        {"stages__tpo__ours": ["all but those of (reference", "rejected)"]},
        "config: stages.tpo.ours: 'all but those of (reference' has a bracket alone: a comma has torn it from the next",
    ),
    ({"artifacts__views__ours": ["rejected)"]}, "config: artifacts.views.ours: 'rejected)' has a bracket alone"),
    (
        {"artifacts__figure2__alpha": [0.5, 1, 1.0]},
        "config: artifacts.figure2: alpha: [0.5, 1.0, 1.0] holds a value twice: leave one",
    ),
    *(
        ({"mirror": mirror}, f"config: mirror: '{mirror}': write an address as https://..., a folder as ./... or /...")
        for mirror in ("hf-mirror.com", "hub.example.org:8080/hf", "localhost:8080", "ftp://example.org", "http:/a.org")
    ),
]


@pytest.mark.parametrize(
    ("change", "message"), WRONG, ids=[next(iter(change)) + f"-{i}" for i, (change, _) in enumerate(WRONG)]
)
def test_a_wrong_config_is_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        config.load(changed(**change))
    text = str(refusal.value)
    assert message in text
    assert text.startswith("config: ") and "\n" not in text and "more)" not in text


def test_a_mistyped_key_is_told_before_the_one_that_is_missing_for_it() -> None:
    table = {"kind": "table", "title": "T", "caption": "C.", "rowz": ["mistral"], "columns": ["arc"]}
    with pytest.raises(UserError, match=r"artifacts.mine.rowz: unknown key 'rowz' \(did you mean 'rows'\?\)"):
        config.load(changed(artifacts__mine=table))


def test_a_file_that_is_no_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("artifacts:\n  mine:\n    kind: table\n   rows: [mistral]\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: line 4, column 4: no YAML: "):
        config.load_files([PAPER, file])


@pytest.mark.parametrize(
    "mirror", ["https://hf-mirror.com", "/no/such.folder", "./mirror.d", "../hub", "hub", "config"]
)
def test_a_mirror_is_an_address_or_a_folder_that_another_machine_may_have(mirror: str) -> None:
    assert config.load(changed(mirror=mirror)).mirror == mirror


def test_null_deletes_a_key_and_lists_are_replaced() -> None:
    raw = merged()
    update_config(raw, {"artifacts": {"table9": None}, "seeds": [1, 2]})
    experiment = config.load(raw)
    assert "table9" not in experiment.artifacts
    assert experiment.seeds == (1, 2)


def test_a_training_gets_the_gpus_of_all_its_nodes_unless_its_batch_must_be_whole() -> None:
    nodes = {"gpus": 4, "nodes": 2}
    packed = config.load(changed(resources__train=nodes))
    stock = config.load(changed(resources__train=nodes, training__engine="trl"))
    for experiment, lineage, gpus, nodes in (
        (stock, "mistral+sft+dpo", 8, 2), (stock, "mistral+tpo", 1, 1), (packed, "mistral+tpo", 8, 2),
    ):  # fmt: skip
        asked = experiment.lineage(lineage)
        assert (study.train_gpus(experiment, asked), study.train_nodes(experiment, asked)) == (gpus, nodes)
        estimate = known.estimate(experiment, "train", {"lineage": str(asked), "seed": "42"})
        assert estimate.gpus == gpus and estimate.gpu_hours == gpus * estimate.seconds / 3600


def test_two_experiments_never_meet_in_one_tree(
    tmp_path: Path, paper: config.Experiment, demo: config.Experiment
) -> None:
    paper = paper.model_copy(update={"results_dir": str(tmp_path)})
    demo = demo.model_copy(update={"results_dir": str(tmp_path)})
    study.check_tree(paper)
    study.stamp(demo)
    study.check_tree(demo)
    with pytest.raises(UserError, match=r"holds the results of experiment 'demo', not of 'paper'.*profiles/demo"):
        study.check_tree(paper)


def test_the_package_asks_for_the_versions_of_the_lock() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    pins = {line.lower().replace("_", "-") for line in Path("requirements.lock").read_text().split()}
    assert {line.lower().replace("_", "-") for line in project["dependencies"]} <= pins


def test_the_rules_that_are_targets_are_those_of_the_workflow() -> None:
    files = [Path("Snakefile"), *Path("workflow/rules").glob("*.smk")]
    assert set(study.RULES) == {name for file in files for name in re.findall(r"(?m)^rule (\w+):", file.read_text())}


def test_metrics_of_task_files_are_read_without_the_harness(paper: config.Experiment, demo: config.Experiment) -> None:
    """Through `include` and `harness`; what lists none, or functions, is not judged."""
    for benchmark in (*paper.benchmarks.values(), *demo.benchmarks.values()):
        if benchmark.kind == "harness":
            file = tasks.locate(benchmark.include.replace("{subset}", "virology"))
            assert benchmark.metric in tasks.metrics(file), benchmark.include
