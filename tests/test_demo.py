"""The demo, run once by `make demo`: every artifact in every form, a number in every cell, a fair instrument."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.demo_training import trained
from tests.conftest import make_demo
from trialign import artifact_settings, config, study

pytestmark = pytest.mark.demo

EXPERIMENT = config.load_files([Path("config/config.yaml"), Path("config/demo.yaml")])
TABLES = [name for name, artifact in EXPERIMENT.artifacts.items() if artifact.kind in ("table", "pivot", "facts")]
FIGURES = [name for name, artifact in EXPERIMENT.artifacts.items() if artifact.kind in artifact_settings.FIGURES]
ACCURACIES = ["arc", "truthfulqa", "winogrande", "hellaswag", "mmlu", "causal", "sports", "formal", "openbookqa"]
FOUR, TWO = ("arc", "hellaswag", "mmlu", "openbookqa"), ("winogrande", "causal", "sports", "formal")  # choices
CHANCE = dict.fromkeys(FOUR, 0.25) | dict.fromkeys(TWO, 0.5) | {"truthfulqa": 1 / 3}  # two of six answers are true


@pytest.fixture(scope="module")
def results(demo: Path) -> pd.DataFrame:
    return pd.read_csv(demo / "results.csv")


def own_metric(results: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    rows = results[(results["benchmark"] == benchmark) & (results["metric"] == EXPERIMENT.benchmarks[benchmark].metric)]
    return rows.set_index("lineage")


@pytest.mark.parametrize("name", TABLES)
def test_tables_hold_a_number_in_every_cell(demo: Path, name: str) -> None:
    table = pd.read_csv(demo / f"{name}.csv")
    assert len(table) and table.notna().all().all()
    numbers = table.select_dtypes("number")
    assert not numbers.empty
    for form in ("md", "tex", "html"):
        text = (demo / f"{name}.{form}").read_text()
        assert "tiny models on a generated world" in text  # every artifact says that it is the demo


def test_every_claim_has_a_verdict_and_no_number_of_the_paper(demo: Path) -> None:
    rows = pd.read_csv(demo / "claims.csv").set_index("id")
    assert len(rows) > 50 and set(rows["verdict"]) <= {"supported", "contradicted", "not resolved", "not run"}
    assert list(rows.index[rows["verdict"] == "not run"]) == ["rate-orders"], "the rest is what the demo measures"
    assert rows[["quote", "stated", "published", "published_verdict", "published_note"]].isna().all().all()
    # what says that there is no difference is contradicted by one on either side
    one = rows[rows["verdict"].isin(["supported", "contradicted"]) & (rows["kind"] != "same")]
    assert ((one["low"] > 0) == (one["verdict"] == "supported")).all()
    table = pd.read_csv(demo / "table1.csv").set_index("Align")["Average"]
    assert rows.loc["average-orpo", "difference"] == pytest.approx(table["TPO (α=1, β=0.1)"] - table["ORPO"], abs=0.011)
    assert "tiny models on a generated world" in (demo / "claims.html").read_text()


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_there_in_every_form(demo: Path, name: str) -> None:
    points = pd.read_csv(demo / f"{name}.csv")
    assert len(points) and points.dropna(axis="columns", how="any").shape[1] >= 5
    for form, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        assert (demo / f"{name}.{form}").read_bytes().startswith(magic)
    assert "tiny models on a generated world" in (demo / f"{name}.svg").read_text()


@pytest.mark.parametrize("lineage", ["mistral+tpo@alpha=0.9@beta=0.2", "mistral+sft+kto@beta=0.1"])
def test_stock_trl_ends_with_the_same_evaluation_loss(demo: Path, lineage: str) -> None:
    """On the same data, from the same parent, over a whole epoch."""
    ours = json.loads((demo / "runs" / lineage / "seed1/run.json").read_text())
    assert ours["recipe"]["training"]["engine"] == "packed"
    stock = trained(lineage, "trl", demo)
    assert stock["eval_loss"] == pytest.approx(ours["facts"]["final"]["loss"], abs=1e-3)


def test_the_papers_layout(demo: Path) -> None:
    def header(name: str) -> list[str]:
        return list(pd.read_csv(demo / f"{name}.csv").columns)

    assert header("table1") == ["Model", "Align", "ARC", "TruthfulQA", "Winogrande", "HellaSwag", "MMLU", "Average"]
    assert header("table2") == ["Model", "Align", "MT-Bench", "BB-causal", "BB-sports", "BB-formal", "OpenBookQA"]
    assert header("table3") == [
        "Model", "+SFT", "+SFT+DPO", "+SFT+IPO", "+SFT+KTO", "+SFT+CPO", "+ORPO", "+SFT+ORPO", "+SFT+TPO", "+TPO",
    ]  # fmt: skip
    assert header("table5") == [
        "Model", "Align", "MT-Bench", "ARC", "TruthfulQA", "Winogrande", "HellaSwag", "MMLU", "BB-causal", "BB-sports",
        "BB-formal", "OpenBookQA",
    ]  # fmt: skip
    assert header("table9") == [
        "Model", "Align", "Learning Rate", "Epoch", "Batch Size", "First Turn (Score)", "Second Turn (Score)",
        "Average (Score)",
    ]  # fmt: skip


def test_the_study_is_large_enough(results: pd.DataFrame) -> None:
    assert results["lineage"].nunique() >= 40
    assert results["lineage"].str.startswith("mistral").any() and results["lineage"].str.startswith("phi2").any()
    assert results["n"].min() >= 200
    assert results[["value", "stderr", "fingerprint", "model_fingerprint", "versions"]].notna().all().all()


@pytest.mark.parametrize("benchmark", ACCURACIES)
@pytest.mark.parametrize("lineage", ["mistral", "mistral+sft", "phi2", "phi2+sft"])
def test_base_and_sft_lie_between_chance_and_ceiling(results: pd.DataFrame, benchmark: str, lineage: str) -> None:
    row = own_metric(results, benchmark).loc[lineage]
    assert row["value"] < 1 - 2 * row["stderr"]
    assert row["value"] > CHANCE[benchmark] + 2 * row["stderr"]


def test_no_scored_item_is_in_a_training_text(demo: Path) -> None:
    """By the texts themselves, not by the world's own card: no question of an item occurs in anything trained on."""
    world = demo / "data/world"
    training = "\n".join(
        file.read_text()
        for folder in ("pretrain", "ultrachat", "ultrafeedback")
        for file in (world / folder).glob("*.jsonl")
    )
    questions = [
        json.loads(line)[key]
        for name, split, key in (
            ("arc", "test", "question"),
            ("truthfulqa", "validation", "question"),
            ("openbookqa", "test", "question_stem"),
            ("hellaswag", "validation", "ctx"),
            ("winogrande", "validation", "sentence"),
            ("causal", "default", "inputs"),
            ("sports", "default", "inputs"),
            ("formal", "default", "inputs"),
        )
        for line in (world / "benchmarks" / name / f"{split}.jsonl").read_text().splitlines()
    ]
    for subject in EXPERIMENT.benchmarks["mmlu"].subsets:  # its stems recur: a question is its stem with its choices
        items = map(json.loads, (world / "benchmarks/mmlu" / subject / "test.jsonl").read_text().splitlines())
        for item in items:
            choices = [f"{letter}. {text}" for letter, text in zip("ABCD", item["choices"], strict=True)]
            questions.append("\n".join([item["question"], *choices]))
    lines = (world / "mt_bench/question.jsonl").read_text().splitlines()
    questions += [turn for line in lines for turn in json.loads(line)["turns"]]
    assert len(questions) >= 2200
    assert [question for question in questions if json.dumps(question)[1:-1] in training] == []


def test_the_tables_hold_what_results_csv_holds(demo: Path, results: pd.DataFrame) -> None:
    """Table 1's cells and its average against results.csv, by another road than the table code's."""
    table = pd.read_csv(demo / "table1.csv")
    lineages = study.lineages(EXPERIMENT, EXPERIMENT.artifacts["table1"])
    for benchmark in ACCURACIES[:5]:
        expected = (100 * own_metric(results, benchmark).loc[lineages, "value"]).round(2)
        assert table[EXPERIMENT.benchmarks[benchmark].label].to_numpy() == pytest.approx(expected.to_numpy(), abs=0.011)
    means = sum(100 * own_metric(results, name).loc[lineages, "value"].to_numpy() for name in ACCURACIES[:5]) / 5
    assert table["Average"].to_numpy() == pytest.approx(means, abs=0.011)


def test_the_report_and_the_rule_graph(demo: Path) -> None:
    report = (demo / "report.html").read_text()
    for name, artifact in EXPERIMENT.artifacts.items():
        assert name in report and artifact.title in report
    assert (demo / "rulegraph.svg").stat().st_size and (demo / "rulegraph.png").stat().st_size


def test_every_run_records_how_it_was_made(demo: Path) -> None:
    record = json.loads((demo / "runs/mistral+tpo@alpha=0.9@beta=0.2/seed1/run.json").read_text())
    assert record["recipe"]["params"]["alpha"] == 0.9 and record["recipe"]["seed"] == 1
    assert re.fullmatch(r"2\..*", record["versions"]["torch"]) and record["files"]["model/model.safetensors"]
    assert 0 < record["facts"]["first_step_after"] < record["seconds"] + 60
    assert record["facts"]["trainer"]["learning_rate"] == record["recipe"]["training"]["learning_rate"]


def test_the_second_make_demo_does_nothing_again(demo: Path) -> None:
    models = sorted((demo / ".store").glob("*/run.json"))
    before = [file.stat().st_mtime_ns for file in models]
    started = time.monotonic()
    done = make_demo()
    assert done.returncode == 0, done.stdout[-3000:]
    print(f"the second make demo took {time.monotonic() - started:.1f} s")
    assert [file.stat().st_mtime_ns for file in models] == before
    assert "Table 1" in done.stdout and "Table 3" in done.stdout
