"""What judging will take: requests counted from answers that are there, less what is stored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from endpoint_room import serving
from judge_room import run, write_questions

from tests.conftest import REPOSITORY
from trialign import config
from trialign.evaluation.forecast import forecast
from trialign.evaluation.judge import requests_of
from trialign.evaluation.questions import read_questions
from trialign.evaluation.requests import Prompt
from trialign.plan import Dag, Job

QUESTIONS = 8
RUNS = ("mistral+sft", "mistral+sft+dpo@beta=0.1")


@pytest.fixture
def study(tmp_path):
    """A results tree in which one of two runs is answered, and the DAG that judges both."""
    write_questions(tmp_path, QUESTIONS)
    raw = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    raw |= {"results_dir": str(tmp_path / "root"), "published": None, "judges": {"gpt": {
        "kind": "openai", "model": "gpt-test",
        "endpoint": {"base_url": "http://nowhere/v1", "price_in": 10, "price_out": 30, "max_cost": 0.02},
    }}}  # fmt: skip
    raw["sources"]["mt_bench"] = {"kind": "local", "path": str(tmp_path / "questions")}
    raw["benchmarks"]["mtbench"]["judge"] = "gpt"
    raw["expect"]["answers"]["questions"] = QUESTIONS
    answers = tmp_path / "root/runs/mistral+sft/seed42/mtbench/answers"
    answers.mkdir(parents=True)
    shutil.copyfile(tmp_path / "answers.jsonl", answers / "answers.jsonl")
    jobs = tuple(
        Job(id=i, rule="judge", wildcards={"lineage": run, "seed": "42", "judge": "gpt"}, output=("x",), log=(),
            there=False, needed=True, reason="", after=(), threads=1, resources={})
        for i, run in enumerate(RUNS)
    )  # fmt: skip
    return Dag(config.load(raw), jobs, 1, "")


def texts(folder: Path) -> int:
    prompt, questions = Prompt(folder / "questions"), read_questions(folder / "questions")
    asked = requests_of(questions, folder / "answers.jsonl", 1)
    return sum(len(message["content"].encode()) for request in asked for message in prompt.messages(request))


def test_requests_are_counted_from_answers_and_assumed_for_those_to_come(study, tmp_path):
    (judge,) = forecast(study)["judges"]
    here, to_come = judge["runs"]
    assert (here["answered"], here["requests"], here["stored"]) == (True, 16, 0)
    assert here["tokens_in"] == round(texts(tmp_path) / 4) and here["tokens_out"] == 16 * 200
    assert (to_come["answered"], to_come["requests"]) == (False, 16)
    assert (to_come["tokens_in"], to_come["tokens_out"]) == (16 * 1100, 16 * 200)
    assert judge["usd"] == pytest.approx((10 * judge["tokens_in"] + 30 * judge["tokens_out"]) / 1e6, abs=0.01)
    assert judge["within_budget"] is False and judge["spent_usd"] == 0


def test_what_is_stored_costs_nothing_and_tells_the_tokens_of_the_rest(study, tmp_path):
    with serving(tmp_path / "server") as server:
        assert run(tmp_path, server.url) == (0, "")
        tokens = [line["tokens"] for line in server.lines("answered")]
    (judge,) = forecast(study)["judges"]
    here, to_come = judge["runs"]
    assert (here["stored"], here["tokens_in"], here["tokens_out"]) == (16, 0, 0)
    assert judge["spent_tokens"] == sum(tokens) and judge["tokens_measured"]
    assert to_come["tokens_out"] == 16 * 7  # as the stored responses have
