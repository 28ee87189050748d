"""The plan: its sums are those of what `snakemake -n` prints, its schedule is one that can be drawn by hand."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import BY_TRL, TEST_CONFIG, command
from trialign import config, known, plan
from trialign.plan import Dag, Job

TEST_FILES = ["--configfile", "config/demo.yaml", "--configfile", "config/test.yaml"]


def planned(*arguments: str) -> dict:
    done = command("trialign", "plan", "--json", *arguments)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout)


def printed(*arguments: str) -> Counter[str]:
    """Sum the resources that `snakemake -n` prints, and count its jobs but `all`, by rule and all together."""
    done = command("snakemake", "-n", *arguments)
    assert done.returncode == 0, done.stdout
    sums: Counter[str] = Counter()
    for block in re.split(r"\n(?=(?:local)?rule )", done.stdout)[1:]:
        rule = re.match(r"(?:local)?rule (\w+)", block)[1]
        if rule != "all":
            sums.update([rule, "jobs"])
            text = re.search(r"^    resources: (.*)$", block, flags=re.MULTILINE)[1]
            sums.update({name: int(value) for name, value in re.findall(r"(\w+)=(\d+)(?=,|$)", text)})
    return sums


@pytest.mark.parametrize("target", ["all", "results/table3.csv"])
def test_the_plan_is_the_sum_of_what_snakemake_prints(target: str) -> None:
    found, sums = planned(target), printed(target)
    assert sums["gpu_minutes"] > 0 and sums["judge_tokens_in"] > 0
    assert found["jobs"] == sums["jobs"]
    assert found["runs"] == sum(sums[rule] for rule in ("train", "choose", "import_model") if rule in sums)
    assert found["gpu_hours"] == pytest.approx(sums["gpu_minutes"] / 60, abs=0.01)
    assert found["disk_rest_gb"] == pytest.approx(sums["disk_mb"] / 1000, abs=0.1)
    tokens = sums["judge_tokens_in"], sums["judge_tokens_out"]
    assert (found["judge_tokens_in"], found["judge_tokens_out"]) == tokens
    assert found["judge_usd"] == pytest.approx((30 * tokens[0] + 60 * tokens[1]) / 1e6)
    assert found["gpu_usd"] == pytest.approx(2 * found["gpu_hours"], abs=0.01)
    assert sum(row["gpu_hours"] for row in found["by_stage"]) == pytest.approx(found["gpu_hours"], abs=0.2)
    assert found["done"] == {"jobs": 0, "runs": 0, "gpu_hours": 0} and found["redone"] == []


def test_what_artifacts_share_is_counted_once() -> None:
    """Table 6 and Figure 2 share nearly all runs of TPO."""
    table, figure = planned("results/table6.csv"), planned("results/figure2.csv")
    both = planned("results/table6.csv", "results/figure2.csv")
    rows = {row["artifact"]: row for row in both["by_artifact"]}
    assert rows["table6"]["gpu_hours"] == table["gpu_hours"] and rows["figure2"]["gpu_hours"] == figure["gpu_hours"]
    assert max(table["gpu_hours"], figure["gpu_hours"]) < both["gpu_hours"] < table["gpu_hours"] + figure["gpu_hours"]
    shared = table["gpu_hours"] + figure["gpu_hours"] - both["gpu_hours"]
    assert rows["table6"]["only_its_gpu_hours"] == pytest.approx(table["gpu_hours"] - shared, abs=0.05)
    assert rows["figure2"]["only_its_gpu_hours"] == pytest.approx(figure["gpu_hours"] - shared, abs=0.05)


def test_more_jobs_at_a_time_take_less_time_down_to_the_critical_path() -> None:
    one, many = (planned("results/table2.csv", "--jobs", number) for number in ("1", "1000"))
    assert many["wall_hours"] == many["critical_path_hours"] == one["critical_path_hours"] < one["wall_hours"]
    assert one["wall_hours"] == pytest.approx(sum(row["hours"] for row in one["by_stage"]), abs=0.1)
    assert planned("results/table2.csv", "--profile", "slurm")["jobs_at_a_time"] == 200
    assert planned("results/table2.csv", "--rate", "3.5")["gpu_usd"] == pytest.approx(3.5 * one["gpu_hours"], abs=0.01)


def test_training_that_does_not_fit_is_said_with_what_would(tmp_path: Path) -> None:
    """All fits the declared GPUs; by stock TRL, what keeps to one of them is never told to take more."""
    assert not [note for note in planned("all")["notes"] if note.startswith("training ")]
    overlay = tmp_path / "trl.yaml"
    overlay.write_text(BY_TRL)
    stock = planned("all", "--configfile", str(overlay))
    notes = [note for note in stock["notes"] if note.startswith("training ")]
    assert [note.split()[1] for note in notes] == ["mistral", "phi2"]
    for note in notes:
        assert " on one GPU, of 80: TRL's loss of " in note and "resources.train.gpus" not in note
        assert "set training.engine: packed, which trains it on several" in note
    assert notes[0].endswith(": weights and optimiser alone take 159 GB")
    assert notes[1].endswith(", or with a batch of 8 or data.triples.max_length: 576")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/tabel1.csv"], "no artifact makes 'results/tabel1.csv' (did you mean 'results/table1.csv'?)"),
        (["nothing"], "nothing makes 'nothing': targets are all, or files such as results/table2.csv"),
        (["table2"], "nothing makes 'table2' (did you mean 'results/table2.csv'?)"),
        (["tabel2.csv"], "nothing makes 'tabel2.csv' (did you mean 'results/table2.csv'?)"),
        (["results/table2"], "no artifact makes 'results/table2' (did you mean 'results/table2.csv'?)"),
        ([""], "'' is no target: name files such as results/table2.csv"),
        (["all", "--configfile", "absent.yaml"], "absent.yaml: there is no such config file"),
        (["all", "--config", "seeds=none"], "config: seeds: 'none' is not allowed"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments: list[str], message: str) -> None:
    done = command("trialign", "plan", *arguments)
    assert done.returncode == 2 and message in done.stdout
    assert done.stdout.startswith("trialign: ") and done.stdout.count("\n") == 1, done.stdout


def test_torch_is_not_imported() -> None:
    code = (
        "import sys\nfrom trialign import plan\n"
        "plan.summary(plan.dry_run(['results/table4.csv']), ['results/table4.csv'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert command(sys.executable, "-c", code).returncode == 0
    snakefile = command(sys.executable, "-X", "importtime", "-m", "snakemake", "-n", "--quiet", "rules", "--", "all")
    assert snakefile.returncode == 0 and not re.search(r"\| +torch$", snakefile.stdout, flags=re.MULTILINE)


# --- a finished study -------------------------------------------------------------------------------------------------


def test_what_is_done_costs_nothing_and_what_is_made_again_says_why(finished_study: Path, tmp_path: Path) -> None:
    tree = ["--config", f"results_dir={finished_study}"]
    found = planned(*TEST_FILES, *tree)
    assert (found["jobs"], found["wall_hours"], found["done"]["runs"]) == (0, 0, 4)
    overlay = tmp_path / "row.yaml"
    overlay.write_text("artifacts: {table1: {rows: [mistral+sft, mistral+sft+ipo], columns: [arc]}}\n")
    found = planned(*TEST_FILES, "--configfile", str(overlay), *tree)
    assert {row["stage"]: row["jobs"] for row in found["by_stage"]} == {
        "train ipo": 1, "evaluate leaderboard": 1, "table": 1, "claims": 1, "results": 1, "index": 1,
    }  # fmt: skip
    reasons = {row["job"]: row["reason"] for row in found["redone"]}
    assert reasons.keys() == {"table table1", "claims claims", "results", "index"}
    # what claims are not run changes with what is asked for, so theirs begins otherwise
    assert reasons.pop("claims claims").startswith("Params have changed since last execution")
    assert all("Input files updated by another job" in reason for reason in reasons.values())


def test_measured_times_replace_what_was_assumed(finished_study: Path, tmp_path: Path) -> None:
    """A training that took ten times as long lets the next of its kind be planned ten times as long."""
    results = tmp_path / "study"
    shutil.copytree(finished_study, results)
    overlay = tmp_path / "row.yaml"
    row = "mistral+sft+dpo@beta=0.5"
    overlay.write_text(f"artifacts: {{table1: {{rows: [{row}], columns: [arc]}}}}\n")
    arguments = [str(results / "runs" / row / "seed1/model"), *TEST_FILES, "--configfile", str(overlay)]
    arguments += ["--config", f"results_dir={results}"]

    def training() -> tuple[float, dict]:
        dag = plan.dry_run(arguments[:1], [*TEST_FILES[1::2], str(overlay)], settings=[f"results_dir={results}"])
        found = planned(*arguments)
        errors = {row["work"]: row for row in found["past_error"]}
        return sum(job.seconds for job in dag.needed), errors["train mistral dpo"]

    file = results / "runs" / "mistral+sft+dpo@beta=0.1" / "seed1" / "run.json"
    record = json.loads(file.read_text())
    expected, errors = training()
    assert expected == round(record["seconds"])
    assert errors["measured_seconds"] == pytest.approx(record["seconds"], abs=0.1) and errors["runs"] == 1
    file.unlink()
    file.write_text(json.dumps(record | {"seconds": 10 * record["seconds"]}))
    slower, later = training()
    assert slower == round(10 * record["seconds"])
    assert later["estimated_seconds"] == errors["estimated_seconds"]
    assert later["measured_over_estimated"] == pytest.approx(10 * errors["measured_over_estimated"], rel=0.01)
    # a run that was resumed tells only of its last part
    file.write_text(json.dumps(record | {"facts": record["facts"] | {"resumed_at": 3}}))
    assert "train mistral dpo" not in {row["work"] for row in planned(*arguments)["past_error"]}


def test_the_demo_keeps_its_resources() -> None:
    sums = printed(*TEST_CONFIG)
    assert sums["gpu"] == sums["gpu_minutes"] == 0
    assert sums["mem_mb"] <= 1500 * sums["jobs"] and sums["runtime"] == 10 * sums["jobs"]


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_a_sample_of_the_data_costs_its_share(tmp_path: Path) -> None:
    """`expect` declares all of UltraChat, 207,865 rows; twice as many rows of a sample cost twice as much."""

    def seconds(rows: int) -> float:
        more = tmp_path / "more.yaml"
        more.write_text(f"data: {{ultrachat: {{train_rows: {rows}}}}}")
        experiment = config.load_files([Path("config/config.yaml"), Path("config/small.yaml"), more])
        return known.estimate(experiment, "train", {"lineage": "smollm2+sft", "seed": "42"}).seconds

    few, many = seconds(8_000), seconds(16_000)
    assert few < seconds(207_865) / 20
    assert many / few == pytest.approx(2, rel=0.1)


def job(number: int, seconds: int, *after: int, disk: int = 0, scratch: int = 0) -> Job:
    resources = {"seconds": seconds, "disk_mb": disk, "scratch_mb": scratch}
    return Job(number, "train", {}, (str(number),), (), False, True, "", after, 1, resources)


def length(*jobs: Job, at_a_time: int) -> float:
    return plan.schedule(Dag(None, jobs, at_a_time, "").needed, at_a_time).seconds


def test_a_schedule_by_hand() -> None:
    chain = [job(0, 5), job(1, 7, 0), job(2, 3, 1)]
    assert length(*chain, at_a_time=1) == length(*chain, at_a_time=9) == 15
    parallel = [job(number, 10) for number in range(5)]
    assert [length(*parallel, at_a_time=n) for n in (1, 2, 3, 5, 9)] == [50, 30, 20, 10, 10]
    # the long chain must start at once: two workers then need 10; begun last it would need 12
    diamond = [job(0, 2), job(1, 2), job(2, 4), job(3, 6, 2)]
    assert length(*diamond, at_a_time=2) == 10


def test_disk_holds_what_stays_and_at_its_peak_what_running_jobs_hold() -> None:
    jobs = [job(number, 10, disk=3, scratch=20) for number in range(4)]
    dag = Dag(None, tuple(jobs), 1, "")
    peaks = [plan.schedule(dag.needed, n).peak_mb for n in (1, 2, 4)]
    # the last of four alone: all results and its scratch; all four at once: four times both
    assert peaks == [4 * 3 + 20, 4 * 3 + 2 * 20, 4 * 3 + 4 * 20]
    assert plan.schedule(dag.needed, 2).rest_mb == 12
