"""The DAG, by real Snakemake: what targets need, restarts, remote jobs, determinism, failures."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from lxml import html

from tests.conftest import TEST_CONFIG, command, test_study
from trialign import config, study

LINEAGE = "mistral+tpo@alpha=0.9@beta=0.2"


def planned(output: str) -> dict[str, int]:
    """Read Snakemake's table of job counts."""
    table = output.rsplit("Job stats", maxsplit=1)[-1]
    return {name: int(count) for name, count in re.findall(r"^\s*([a-z_]+)\s+(\d+)\s*$", table, flags=re.MULTILINE)}


def weights(results: Path, lineage: str, seed: int = 1) -> str:
    file = results / "runs" / lineage / f"seed{seed}" / "model" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_papers_table_2_lists_the_papers_runs() -> None:
    done = command("snakemake", "-n", "results/table2.csv")
    assert done.returncode == 0, done.stdout
    trained = set(re.findall(r"output: results/runs/([^/]+)/seed42/model", done.stdout))
    methods = {f"mistral+sft+{method}@beta=0.1" for method in ("dpo", "ipo", "kto", "cpo")}
    assert trained == methods | {
        "mistral", "mistral+sft", "mistral+orpo@beta=0.1", "mistral+sft+tpo@alpha=1@beta=0.1",
        "mistral+tpo@alpha=1@beta=0.1", "mistral+tpo@alpha=0.9@beta=0.2",
    }  # fmt: skip
    counts = planned(done.stdout)
    assert counts["train"] == 8 and counts["import_model"] == 2  # the published SFT is imported
    assert counts["answer"] == counts["judge"] == counts["evaluate"] == 9


def test_the_target_for_a_transfer_node_downloads_what_all_needs_and_does_nothing_else() -> None:
    everything, alone = (planned(command("snakemake", "-n", target).stdout) for target in ("all", "downloads"))
    assert alone == {"fetch": everything["fetch"], "downloads": 1, "total": everything["fetch"] + 1}
    small = config.load_files([Path("config/config.yaml"), Path("config/small.yaml")])
    done = command("snakemake", "-n", "--configfile", "config/small.yaml", "--", "all")
    fetched = set(re.findall(r"output: \S+/data/source/(\w+)", done.stdout))
    assert fetched == set(study.downloads_needed(small))


def test_one_table_of_the_demo_needs_only_its_runs(tmp_path: Path) -> None:
    done = command(
        "snakemake", "--workflow-profile", "none", "--configfile", "config/demo.yaml", "--config", f"results_dir={tmp_path}",
        "-n", "--", f"{tmp_path}/table3.csv",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    counts = planned(done.stdout)
    assert counts["train"] == counts["answer"] == counts["judge"] == 9
    assert "evaluate" not in counts and counts["pretrain"] == 1
    assert "runs/mistral" not in done.stdout


@pytest.mark.parametrize(("profile", "target"), [("slurm", "all"), ("profiles/demo", "all")])
def test_the_documented_targets_resolve(profile: str, target: str) -> None:
    done = command("snakemake", "--profile", profile, "-n", target)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/demo/table3.csv"], "'results/demo/table3.csv' is not in this experiment's results ('results'): if you mean experiment 'demo', add --profile profiles/demo"),
        (["--config", "seeds=none", "--", "all"], "config: seeds: 'none' is not allowed"),
        (["results/runs/mistral+sft+dpo/seed42/model"], "'mistral+sft+dpo' is not the canonical name of this run: ask for 'mistral+sft+dpo@beta=0.1'"),
        (["results/tabel1.csv"], "no artifact makes 'results/tabel1.csv' (did you mean 'results/table1.csv'?)"),
        (["results/runs/mistral+sft+dpoo@beta=0.1/seed42/model"], "there is no stage 'dpoo' (did you mean 'dpo'?)"),
    ],
)  # fmt: skip
def test_mistakes_stop_before_any_job(arguments: list[str], message: str) -> None:
    done = command("snakemake", "-n", *arguments)
    assert done.returncode != 0
    assert message in done.stdout
    assert "Traceback" not in done.stdout and "Building DAG" not in done.stdout


@pytest.mark.parametrize("preflight", ["on", "off"])
def test_no_run_of_the_paper_starts_with_sources_that_can_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preflight: str
) -> None:
    monkeypatch.setenv("TRIALIGN_PREFLIGHT", preflight)
    done = command(
        "snakemake", "--cores", "1", "--nolock", "--config", f"results_dir={tmp_path}/study", "--", f"{tmp_path}/study/table2.csv",
    )  # fmt: skip
    assert done.returncode != 0 and not (tmp_path / "study").exists()
    told = re.search(r"config: sources: (.*): not locked, .*: run `trialign lock`", done.stdout)
    named = set(told[1].split(", "))
    assert {"mistral_base", "openbookqa"} <= named and "mt_bench" not in named  # whose hashes the config has
    assert "ultrafeedback" not in told[1], "its commit is in the config"
    assert "phi2_base" not in told[1] and "arc" not in told[1], "this table reads neither"


def test_a_tree_of_another_experiment_is_refused(finished_study: Path) -> None:
    done = command("snakemake", "-n", "--config", f"results_dir={finished_study}")
    assert done.returncode != 0 and "holds the results of experiment 'test', not of 'paper'" in done.stdout


def test_a_second_run_has_nothing_to_do(finished_study: Path) -> None:
    done = test_study(finished_study, "all")
    assert done.returncode == 0 and "Nothing to be done" in done.stdout


def test_every_artifact_is_there_in_every_form(finished_study: Path) -> None:
    for name in ("table1", "table2"):
        assert all((finished_study / f"{name}.{form}").stat().st_size for form in ("csv", "md", "tex", "html"))
    for name in ("figure2", "forest_leaderboard", "curves", "distributions"):
        assert all((finished_study / f"{name}.{form}").stat().st_size for form in ("csv", "png", "svg", "pdf"))
    results = pd.read_csv(finished_study / "results.csv")
    assert set(results["lineage"]) == {"mistral+sft", "mistral+sft+dpo@beta=0.1", LINEAGE}
    assert results[["value", "n", "fingerprint"]].notna().all().all()


def test_figures_of_training_and_data_show_what_the_study_made(finished_study: Path) -> None:
    curves = pd.read_csv(finished_study / "curves.csv").set_index(["lineage", "split", "step", "quantity"])["value"]
    for lineage in (LINEAGE, "mistral+sft+dpo@beta=0.1"):
        final = json.loads((finished_study / "runs" / lineage / "seed1/run.json").read_text())["facts"]["final"]
        assert curves[lineage, "train", 5, "loss"] == final["train_loss"]
        assert curves[lineage, "eval", 5, "margin"] == final["margins"]
    data = pd.read_csv(finished_study / "distributions.csv")
    card = json.loads((finished_study / "data/tokens/mistral/triples/card.json").read_text())["lengths"]["train"]
    for series in ("prompt", "reference", "chosen", "rejected"):
        own = data[(data["data"] == "triples") & (data["panel"] == "length") & (data["series"] == series)]
        assert (own["value"].min(), own["value"].max()) == (card[series]["min"], card[series]["max"])
        assert own["value"].repeat(own["rows"]).median() == card[series]["p50"]


def test_the_curves_of_the_paper_need_runs_and_the_figure_of_its_data_none() -> None:
    done = command("snakemake", "-n", "results/curves.csv")
    trained = set(re.findall(r"output: results/runs/([^/]+)/seed42/model", done.stdout))
    assert "mistral+orpo@beta=0.1" in trained and not {"answer", "judge", "evaluate"} & planned(done.stdout).keys()
    done = command("snakemake", "-n", "results/distributions.csv")
    assert set(re.findall(r"output: results/data/source/(\w+)", done.stdout)) == {
        "mistral_base",
        "ultrachat",
        "ultrafeedback",
    }
    counts = planned(done.stdout)
    assert counts["prepare"] == counts["tokens"] == 2 and "train" not in counts and counts["figure"] == 1


def test_seen_and_unseen_items_are_told_apart_without_training_again(finished_study: Path, tmp_path: Path) -> None:
    # before the tests that change models in the finished study: their times would ask for more than the split
    results, overlay = tmp_path / "study", tmp_path / "split.yaml"
    shutil.copytree(finished_study, results)
    overlay.write_text(
        "artifacts:\n  split:\n    kind: table\n    title: Split\n    caption: By what was seen.\n"
        f"    rows: [mistral+sft, {LINEAGE}]\n    columns:\n      - mtbench\n      - arc\n"
        "      - {label: ARC (seen), benchmark: arc, items: seen}\n"
        "      - {label: ARC (unseen), benchmark: arc, items: unseen}\n"
        "      - {label: MT-Bench (unseen), benchmark: mtbench, items: unseen}\n"
    )
    arguments = [*TEST_CONFIG, str(overlay), "--config", f"results_dir={results}", "--cores", "2", "--nolock"]
    plan = command("snakemake", *arguments, "-n", "--", f"{results}/table1.csv")
    assert "Nothing to be done" in plan.stdout, plan.stdout
    plan = command("snakemake", *arguments, "-n", "--", f"{results}/split.csv")
    assert planned(plan.stdout) == {"overlap": 2, "table": 1, "total": 3}
    done = command("snakemake", *arguments, "--", f"{results}/split.csv")
    assert done.returncode == 0, done.stdout
    for data in ("triples", "ultrachat"):
        page = (results / "data" / "overlap" / data / "card.html").read_text()
        assert '<td class="text">truthfulqa</td>' in page and "<h2>Lengths</h2>" in page
    table = pd.read_csv(results / "split.csv")
    assert table["ARC (seen)"].isna().all()  # no training text of the world holds a scored question
    assert (table["ARC (unseen)"] == table["ARC"]).all() and (table["MT-Bench (unseen)"] == table["MT-Bench"]).all()
    assert "–: no such item." in (results / "split.md").read_text()


def test_the_packed_engine_reads_the_parents_log_probabilities_once(finished_study: Path, tmp_path: Path) -> None:
    """The file of the study's own DPO serves all betas of two methods; KTO has one with mismatches; TPO needs none."""
    results, overlay = tmp_path / "study", tmp_path / "packed.yaml"
    shutil.copytree(finished_study, results)
    (results / "table1.csv").unlink()
    stages = ["dpo@beta=0.2", "dpo@beta=0.3", "ipo@beta=0.1", "kto@beta=0.1", "tpo@alpha=0.5@beta=0.5"]
    rows = [f"mistral+sft+{stage}" for stage in stages]
    overlay.write_text(
        f"artifacts: {{table1: {{rows: {json.dumps(rows)}, columns: [arc]}}, table2: null, figure2: null}}\n"
    )
    arguments = [*TEST_CONFIG, str(overlay), "--config", f"results_dir={results}", "--cores", "2", "--nolock"]
    plan = command("snakemake", *arguments, "-n", "--", f"{results}/table1.csv")
    assert planned(plan.stdout) == {"reference": 1, "train": 5, "evaluate": 5, "table": 1, "total": 12}, plan.stdout
    done = command("snakemake", *arguments, "--", f"{results}/table1.csv")
    assert done.returncode == 0, done.stdout
    facts = [json.loads((results / "runs" / row / "seed1/run.json").read_text())["facts"] for row in rows]
    assert [bool(each["reference"]) for each in facts] == [True] * 4 + [False]
    assert {each["attention"] for each in facts} == {"trialign_segments"}
    assert len(pd.read_csv(results / "table1.csv")) == 5


def test_deleted_outputs_come_back_from_the_store(finished_study: Path) -> None:
    """Snakemake deletes the outputs of interrupted jobs; a finished model must not be trained again for it."""
    before = weights(finished_study, "mistral+sft")
    shutil.rmtree(finished_study / "runs/mistral+sft/seed1/model")
    (finished_study / "runs/mistral+sft/seed1/run.json").unlink()
    done = test_study(finished_study, f"{finished_study}/runs/mistral+sft/seed1/model")
    assert done.returncode == 0, done.stdout
    assert weights(finished_study, "mistral+sft") == before
    assert "restored" in (finished_study / "logs/train/mistral+sft/seed1.log").read_text()


def test_a_lineage_with_hyperparameters_goes_through_the_remote_job_path(finished_study: Path) -> None:
    """What a SLURM job runs inside its allocation: `--target-jobs` with the lineage as a wildcard, from nothing."""
    folder = finished_study / "runs" / LINEAGE / "seed1"
    before, record = weights(finished_study, LINEAGE), json.loads((folder / "run.json").read_text())
    shutil.rmtree(finished_study / ".store" / record["fingerprint"])
    shutil.rmtree(folder / "model")
    (folder / "run.json").unlink()
    done = command(
        "snakemake", *TEST_CONFIG, "--config", f"results_dir={finished_study}", "--cores", "1", "--nolock",
        "--mode", "remote", "--force", "--allowed-rules", "train", "--target-jobs", f"train:lineage={LINEAGE},seed=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    made = json.loads((folder / "run.json").read_text())["recipe"]
    assert (made["method"], made["params"]["alpha"], made["params"]["beta"]) == ("tpo", 0.9, 0.2)
    assert "made" in (finished_study / f"logs/train/{LINEAGE}/seed1.log").read_text()
    assert weights(finished_study, LINEAGE) == before


def test_the_same_config_gives_the_same_bits_and_another_seed_others(finished_study: Path, tmp_path: Path) -> None:
    done = test_study(tmp_path, f"{tmp_path}/table1.csv", f"{tmp_path}/table2.csv")
    assert done.returncode == 0, done.stdout
    for lineage in ("mistral", "mistral+sft", "mistral+sft+dpo@beta=0.1", LINEAGE):
        assert weights(tmp_path, lineage) == weights(finished_study, lineage)
    for table in ("table1", "table2"):
        for form in ("csv", "md", "tex", "html"):
            assert (tmp_path / f"{table}.{form}").read_bytes() == (finished_study / f"{table}.{form}").read_bytes()
    other = [f"{tmp_path}/runs/{lineage}/seed2/model" for lineage in ("mistral+sft", LINEAGE)]
    assert test_study(tmp_path, *other).returncode == 0
    for lineage in ("mistral", "mistral+sft", LINEAGE):
        assert weights(tmp_path, lineage, 2) != weights(tmp_path, lineage, 1)


def test_a_run_that_diverges_leaves_a_cell_without_a_score(finished_study: Path, tmp_path: Path) -> None:
    """As the paper's Table 9 has it for a learning rate of 2e-5."""
    results, wild = tmp_path / "study", "mistral+sft+dpo@beta=0.1@learning_rate=1e30"
    shutil.copytree(finished_study, results)
    for file in results.glob("*.csv"):
        file.unlink()
    overlay = tmp_path / "wild.yaml"
    overlay.write_text(
        f"artifacts:\n  table1: {{rows: [mistral+sft, {wild}], columns: [arc]}}\n"
        f"  table2: {{rows: [mistral+sft, {wild}], columns: [mtbench]}}\n"
    )
    done = command(
        "snakemake", *TEST_CONFIG, str(overlay), "--config", f"results_dir={results}", "--cores", "2", "--nolock", "--",
        *(f"{results}/{name}" for name in ("table1.csv", "table2.csv", "results.csv", "index.html")),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for name in ("table1", "table2"):
        before, after = (pd.read_csv(root / f"{name}.csv") for root in (finished_study, results))
        assert after.iloc[0, -1] == before.iloc[0, -1] and pd.isna(after.iloc[1, -1])
        assert "–: training diverged." in (results / f"{name}.md").read_text()
    rows = pd.read_csv(results / "results.csv").query("lineage == @wild")
    assert sorted(rows["suite"]) == ["leaderboard", "mtbench"]
    assert rows["value"].isna().all() and (rows["n"] == 0).all() and rows["fingerprint"].notna().all()
    assert not list((results / "runs" / wild).rglob("*.safetensors"))
    run = html.parse(results / "index.html").getroot().get_element_by_id(f"run/{wild}/seed1")
    assert run.xpath("./p[@class='notice']")[0].text.startswith("Training diverged at step ")
    assert not run.xpath(".//h4[text()='Scores']")


def test_a_failing_job_says_which_run_why_and_how_to_repeat_it(finished_study: Path) -> None:
    done = command(
        "snakemake", *TEST_CONFIG, "--config", f"results_dir={finished_study}",
        "judges={absent: {kind: openai, model: x, endpoint: {base_url: 'http://127.0.0.1:9/v1'}}}", "benchmarks={mtbench: {judge: absent}}",
        "--cores", "1", "--nolock", "--", f"{finished_study}/runs/mistral+sft/seed1/mtbench/absent",
    )  # fmt: skip
    assert done.returncode != 0
    assert f"judge {finished_study}/runs/mistral+sft/seed1/mtbench/absent failed: " in done.stdout
    script = re.search(r"repeat it alone: sh (\S+)", done.stdout).group(1)
    again = command("sh", script)
    assert again.returncode == 1 and "failed: " in again.stdout


def test_answers_of_another_tool_are_judged_by_a_judge_of_the_config(finished_study: Path, tmp_path: Path) -> None:
    suite = finished_study / "runs/mistral+sft/seed1/mtbench"
    shutil.copyfile(suite / "answers/answers.jsonl", tmp_path / "their-model.jsonl")
    configs = [word for file in ("config/demo.yaml", "config/test.yaml") for word in ("--configfile", file)]
    settings = ["--config", f"results_dir={finished_study}", "--profile", "none"]
    judging = ["trialign", "judge", "answers", f"{tmp_path}/their-model.jsonl", "--output", f"{tmp_path}/judged"]
    done = command(*judging, "--judge", "rubric", *configs, *settings)
    assert done.returncode == 0, done.stdout
    for name in ("items.parquet", "judgments.jsonl", "results.json"):
        assert (tmp_path / "judged" / name).read_bytes() == (suite / "rubric" / name).read_bytes()
    done = command(*judging, "--judge", "rubic", *configs, *settings)
    assert done.returncode == 2 and "no benchmark is judged by 'rubic' (did you mean 'rubric'?): rubric" in done.stdout
