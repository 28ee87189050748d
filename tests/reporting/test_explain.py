"""The chain behind a cell, on a finished study: every step of it, in the words of the records; what is gone is said."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import command
from trialign import artifacts, config, steps
from trialign import study as study_of
from trialign.errors import UserError
from trialign.prune import MODEL_STEPS
from trialign.reporting import explain

DPO, TPO = "mistral+sft+dpo@beta=0.1", "mistral+tpo@alpha=0.9@beta=0.2"
ROW = "Mistral (demo)+SFT DPO"


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> Path:
    """A copy with hard links of its own, as steps publish."""
    subprocess.run(["cp", "-a", str(finished_study), str(tmp_path / "study")], check=True)
    return tmp_path / "study"


def recorded(study: Path, place: str) -> str:
    return json.loads((study / place / "run.json").read_text())["fingerprint"]


def places(chain: explain.Chain) -> set[str]:
    return {made.where for made in chain.steps.values()}


# what a judged cell of a model trained by DPO after SFT stands on, from the workflow's rules
BEHIND_DPO = {
    f"runs/{DPO}/seed1/mtbench/rubric", f"runs/{DPO}/seed1/mtbench/answers", f"runs/{DPO}/seed1",
    "runs/mistral+sft/seed1", "runs/mistral/seed1", "data/reference/mistral+sft/seed1/triples/chosen-rejected.fp32",
    "data/tokens/mistral/triples", "data/tokens/mistral/ultrachat", "data/prepared/triples", "data/prepared/ultrachat",
    "data/tokenizer/mistral", "data/world",
}  # fmt: skip


def test_a_judged_cell_stands_on_all_that_the_workflow_made_for_it(finished_study: Path) -> None:
    chain = explain.explain(finished_study / "table2.csv", ROW, "MT-Bench")
    assert places(chain) == BEHIND_DPO | {"provenance/table2.json"}
    (cell,) = chain.cells
    table = pd.read_csv(finished_study / "table2.csv", dtype=str)
    assert cell.shown == table.set_index("Align").loc["DPO", "MT-Bench"] and cell.lineage == DPO
    folder = finished_study / "runs" / DPO / "seed1/mtbench/rubric"
    lines = (folder / "judgments.jsonl").read_text().splitlines()
    (part,) = cell.parts
    assert (part.n, part.suite) == (len(lines), recorded(finished_study, f"runs/{DPO}/seed1/mtbench/rubric"))


def test_an_accuracy_stands_on_no_judge(finished_study: Path) -> None:
    chain = explain.explain(finished_study / "table1.csv", DPO, "arc")
    gone = {f"runs/{DPO}/seed1/mtbench/rubric", f"runs/{DPO}/seed1/mtbench/answers"}
    assert places(chain) == BEHIND_DPO - gone | {f"runs/{DPO}/seed1/leaderboard", "provenance/table1.json"}
    items = pd.read_parquet(finished_study / "runs" / DPO / "seed1/leaderboard/items.parquet")
    assert chain.cells[0].parts[0].n == items.loc[items["metric"] == "acc_norm", "item"].nunique()


def test_a_whole_artifact_stands_on_all_of_its_rows(finished_study: Path) -> None:
    chain = explain.explain(finished_study / "table2.md")
    assert chain.cells == () and places(chain) > BEHIND_DPO
    assert {f"runs/{TPO}/seed1", f"runs/{TPO}/seed1/mtbench/rubric"} < places(chain)


@pytest.mark.parametrize("row", [ROW, "mistral (demo)+sft  dpo", DPO])
@pytest.mark.parametrize("column", ["MT-Bench", "mtbench", None])
def test_rows_and_columns_have_several_names(finished_study: Path, row: str, column: str | None) -> None:
    (cell,) = explain.explain(finished_study / "table2.csv", row, column).cells
    assert (cell.row, cell.column, cell.lineage) == (ROW, "MT-Bench", DPO)


def test_artifacts_of_every_kind_have_chains(finished_study: Path) -> None:
    """Those without rows too; the study's page stands on all others, whose files it reads."""
    names = {file.stem for file in (finished_study / "provenance").glob("*.json")}
    for name in names:
        chain = explain.explain(finished_study / name)
        assert not chain.missing and "data/world" in places(chain), name
        assert {each.given for each in chain.local.values()} <= {"paper/claims.csv"}, name
        done = command("trialign", "explain", str(finished_study / name), "--check")
        assert done.returncode == 0, done.stdout
    below = places(explain.explain(finished_study / "index.html"))
    assert below >= {f"provenance/{name}.json" for name in names}


@pytest.mark.parametrize("row", ["0.9,0.2", "alpha=0.9, beta=0.2", "α=0.9, β=0.2", TPO])
def test_points_of_a_figure_are_its_cells(finished_study: Path, row: str) -> None:
    (cell,) = explain.explain(finished_study / "figure2.svg", row, "MT-Bench").cells
    points = pd.read_csv(finished_study / "figure2.csv")
    assert float(cell.shown) == points.loc[points["alpha"] == 0.9, "value"].item()
    assert cell.lineage == TPO and cell.parts[0].n == points.loc[points["alpha"] == 0.9, "n"].item()


def test_a_difference_of_a_forest_plot_stands_on_both_of_its_models(finished_study: Path) -> None:
    chain = explain.explain(finished_study / "forest_leaderboard.pdf", TPO, "ARC")
    (cell,) = chain.cells
    frame = pd.read_csv(finished_study / "forest_leaderboard.csv")
    assert float(cell.shown) == frame.loc[frame["lineage"] == TPO, "difference"].item()
    suites = [f"runs/{lineage}/seed1/leaderboard" for lineage in (TPO, "mistral+sft")]
    assert [part.suite for part in cell.parts] == [recorded(finished_study, suite) for suite in suites]
    assert set(suites) < places(chain) and f"runs/{DPO}/seed1/leaderboard" not in places(chain)


def test_a_lineage_without_its_parameters_gets_those_that_are_there(finished_study: Path) -> None:
    with pytest.raises(UserError, match=rf"no row 'mistral\+tpo' \(did you mean '{re.escape(TPO)}'\?\)"):
        explain.explain(finished_study / "table1.csv", "mistral+tpo")


def test_every_row_of_results_csv_is_a_cell(finished_study: Path) -> None:
    frame = pd.read_csv(finished_study / "results.csv")
    for lineage, rows in frame.groupby("lineage"):
        assert len(explain.explain(finished_study / "results.csv", lineage).cells) == rows["benchmark"].nunique()
    (cell,) = explain.explain(finished_study / "results.csv", TPO, "arc").cells
    there = frame[(frame["lineage"] == TPO) & (frame["metric"] == "acc_norm")]
    assert (float(cell.shown), cell.parts[0].n) == (there["value"].item(), there["n"].item())


@pytest.mark.parametrize(
    ("place", "made_by"),
    [
        (f"runs/{DPO}/seed1", f"runs/{DPO}/seed1"),
        (f"runs/{DPO}/seed1/model/model.safetensors", f"runs/{DPO}/seed1"),
        (f"runs/{DPO}/seed1/mtbench/answers/answers.jsonl", f"runs/{DPO}/seed1/mtbench/answers"),
        ("data/prepared/triples", "data/prepared/triples"),
        ("data/world/benchmarks/arc", "data/world"),
    ],
)
def test_runs_and_data_have_chains_of_their_own(finished_study: Path, place: str, made_by: str) -> None:
    chain = explain.explain(finished_study / place)
    assert chain.top == recorded(finished_study, made_by)
    assert not chain.missing and "data/world" in places(chain)


def test_the_parent_goes_back_to_the_base(finished_study: Path) -> None:
    chain = explain.explain(finished_study / "runs" / DPO / "seed1")
    line, made = [], chain.steps[chain.top]
    while made.step == "train":
        line.append((made.record["recipe"]["method"], made.where))
        (parent,) = [each.fingerprint for each in made.inputs if each.name == "parent"]
        made = chain.steps[parent]
    assert line == [("dpo", f"runs/{DPO}/seed1"), ("sft", "runs/mistral+sft/seed1")] and made.step == "pretrain"


@pytest.mark.parametrize(
    ("file", "row", "column", "message"),
    [
        ("table2.csv", "Mistral (demo)+SFT DPQ", None, "no row .* .did you mean 'Mistral .demo.[+]SFT DPO'"),
        ("table2.csv", "zzz", None, "no row 'zzz'; there are: 'Mistral .demo. SFT', "),
        ("table2.csv", ROW, "MT-Bensh", "no column 'MT-Bensh' .did you mean 'MT-Bench'"),
        ("table3.csv", None, None, "table3.csv: not there, and no artifact .* .did you mean .*table2.csv"),
        ("runs/mistral+sft/seed1/mtbench", None, None, "no step made this folder; there are records in .*answers"),
        ("logs", None, None, "no record in the tree names this"),
        (f"runs/{DPO}/seed1", "x", None, "made by a step 'train', which has no rows and columns"),
    ],
)
def test_what_is_not_there_is_one_line(
    finished_study: Path, file: str, row: str | None, column: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        explain.explain(finished_study / file, row, column)
    assert "\n" not in str(caught.value)


def test_a_path_outside_of_any_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in no results tree"):
        explain.explain(tmp_path / "table1.csv")


def test_what_prune_removed_is_said_and_the_chain_holds(study: Path) -> None:
    files = ["--configfile", "config/demo.yaml", "--configfile", "config/test.yaml"]
    done = command("trialign", "prune", *files, "--config", f"results_dir={study}", "--yes")
    assert done.returncode == 0, done.stdout
    chain = explain.explain(study / "table2.csv", ROW, "MT-Bench")
    assert places(chain) == BEHIND_DPO | {"provenance/table2.json"} and not chain.missing
    assert [made.where for made in chain.steps.values() if made.pruned] == [f"runs/{DPO}/seed1"]
    said = command("trialign", "explain", str(study / "table2.csv"), "--row", ROW)
    assert said.returncode == 0 and "its files were removed by trialign prune" in said.stdout
    checked = command("trialign", "explain", str(study / "table2.csv"), "--row", ROW, "--check")
    assert checked.returncode == 0 and "model/model.safetensors: removed by trialign prune" in checked.stdout


def test_a_record_that_is_gone_breaks_the_chain_there_and_no_further(study: Path) -> None:
    gone = recorded(study, "runs/mistral+sft/seed1")
    shutil.rmtree(study / ".store" / gone)
    (study / "runs/mistral+sft/seed1/run.json").unlink()
    chain = explain.explain(study / "table2.csv", ROW, "MT-Bench")
    assert [made.fingerprint for made in chain.missing] == [gone]
    assert places(chain) >= {f"runs/{DPO}/seed1", "data/prepared/triples", "data/world"}
    said = command("trialign", "explain", str(study / "table2.csv"), "--row", ROW)
    assert said.returncode == 0 and f"the chain breaks at {gone}" in said.stdout
    checked = command("trialign", "explain", str(study / "table2.csv"), "--row", ROW, "--check")
    assert checked.returncode == 1 and f"does not fit  {gone}" in checked.stdout


def test_results_that_were_made_anew_are_told_from_those_that_the_table_shows(study: Path) -> None:
    """The path that the table's step was given says whose results its input was; their place holds another's now."""
    folder = study / "runs" / DPO / "seed1/mtbench/rubric"
    shutil.rmtree(folder)
    shutil.copytree(study / "runs/mistral+sft/seed1/mtbench/rubric", folder)
    (cell,) = explain.explain(study / "table2.csv", ROW, "MT-Bench").cells
    record = json.loads((study / "provenance/table2.json").read_text())
    assert cell.parts[0].suite in {text.partition("/")[0] for text in record["inputs"]["results"]}
    assert cell.parts[0].suite != recorded(study, f"runs/{DPO}/seed1/mtbench/rubric")
    said = command("trialign", "explain", str(study / "table2.csv"), "--row", ROW, "--check")
    assert (
        said.returncode == 1 and "no declared place has the record of this result of step judge any more" in said.stdout
    )


def test_seen_and_unseen_items_stand_on_the_overlap(study: Path, tmp_path: Path) -> None:
    """Three questions are planted in training data, as three prompts."""
    shutil.copytree(study / "data/prepared/triples", data := tmp_path / "planted")
    (data / "run.json").unlink()
    rows = pd.read_parquet(data / "train.parquet")
    lines = (study / "data/world/benchmarks/arc/test.jsonl").read_text().splitlines()
    rows.loc[:2, "prompt"] = [json.loads(line)["question"] for line in lines[:3]]
    rows.to_parquet(data / "train.parquet")

    experiment = config.load_files([Path(f"config/{name}.yaml") for name in ("config", "demo", "test")])
    searched = study_of.overlap_recipe(experiment, "triples")
    searched = searched.model_copy(update={"harness": {"arc": searched.harness["arc"]}, "judged": ()})
    inputs = {"data": (data,), "data.arc": (study / "data/world/benchmarks/arc",)}
    steps.run(searched, inputs, study, overlap := study / "data/overlap/triples")
    table = artifacts.artifact_recipe(experiment, "table1")
    parts = [table.columns[0].model_copy(update={"label": items, "items": items}) for items in ("seen", "unseen")]
    table = table.model_copy(update={"name": "parts", "rows": table.rows[:1], "columns": (*table.columns, *parts)})
    inputs = {"results": (study / "runs/mistral+sft/seed1/leaderboard",), "overlap": (overlap,)}
    steps.run(table, inputs, study, study)

    whole, seen, unseen = explain.explain(study / "parts.csv", "mistral+sft").cells
    assert (whole.parts[0].n, seen.parts[0].n, unseen.parts[0].n) == (20, 3, 17)
    assert "data/overlap/triples" in places(explain.explain(study / "parts.csv", "mistral+sft", "unseen"))
    assert "data/overlap/triples" not in places(explain.explain(study / "parts.csv", "mistral+sft", "ARC"))


def test_the_tree_on_the_terminal_and_as_json(finished_study: Path) -> None:
    asked = ["trialign", "explain", str(finished_study / "table2.csv"), "--row", ROW, "--column", "MT-Bench"]
    printed = command(*asked).stdout
    for words in ("80 items", "judgments by rubric", "80 answers", "dpo (beta 0.1) on chosen-rejected", "pretrain",
                  "80 train of 250 rows", "1 duplicate_prompt", "the demo's world, seed 1", "0 GPU-hours",
                  "training.learning_rate=0.0003", "torch 2.", f"runs/{DPO}/seed1"):  # fmt: skip
        assert words in printed, words
    assert printed.count("the demo's world, seed 1") == 1 and "told above" in printed
    found = json.loads(command(*asked, "--json").stdout)
    record = json.loads((finished_study / "runs" / DPO / "seed1/run.json").read_text())
    assert found["steps"][record["fingerprint"]]["record"] == record
    assert found["totals"]["steps"] == len(found["steps"]) == len(BEHIND_DPO) + 1


def test_gpu_hours_are_known_or_said_not_to_be() -> None:
    record = {"seconds": 1800, "versions": {"torch": "2.13.0"}}
    assert explain.gpu_hours(record | {"gpus": 4}) == 2.0
    assert explain.gpu_hours(record) is None  # of a record that does not say
    assert explain.gpu_hours(record | {"versions": {"torch": "2.13.0+cpu"}}) == 0.0


@pytest.mark.demo
@pytest.mark.parametrize("table", ["table1", "table2", "table3"])
def test_every_cell_of_the_demo_has_its_full_chain(demo: Path, table: str) -> None:
    """To the world, from which all of the demo comes, through the base model and every stage of the cell's lineage."""
    shown = pd.read_csv(demo / f"{table}.csv", dtype=str)
    texts = 1 if table == "table3" else 2
    for (_, line), column in itertools.product(shown.iterrows(), shown.columns[texts:]):
        chain = explain.explain(demo / f"{table}.csv", " ".join(line.iloc[:texts]), column)
        (cell,) = chain.cells
        assert cell.shown == line[column]
        assert not chain.missing and not chain.local
        assert all(part.suite and part.n for part in cell.parts)
        # each lineage's own folders, worked out from its name
        stages = cell.lineage.split("+")
        runs = {f"runs/{'+'.join(stages[:end])}/seed1" for end in range(1, len(stages) + 1)}
        models = [made for made in chain.steps.values() if made.step in MODEL_STEPS]
        assert len(models) == len(runs)
        assert runs <= {place.folder.as_posix() for made in models for place in made.places}  # two names may be one run
        assert {made.step for made in chain.steps.values() if not made.inputs} == {"world"}
        judged = {made.step for made in chain.steps.values()} >= {"judge", "answer"}
        assert judged == (table == "table3" or column == "MT-Bench")
