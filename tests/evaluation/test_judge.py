"""Judging by the demo's rubric: items, counts, choices, resuming."""

from __future__ import annotations

import json
import time

import pandas as pd
import pytest
from evaluation_helpers import read_lines, start_again, write_lines
from scipy import stats

from trialign import progress
from trialign.errors import UserError
from trialign.evaluation import judge as judging
from trialign.evaluation.judge import judge
from trialign.recipes import JudgeRecipe
from trialign.settings import JudgeRules

QUESTIONS = [
    {"question_id": 1, "category": "math", "turns": ["What is 1 + 1?", "And 2 + 2?"]},
    {"question_id": 2, "category": "stem", "turns": ["What is the sky?", "And the sea?"]},
]
RUBRICS = [
    {"question_id": 1, "turns": [{"accept": ["2"], "reject": []}, {"accept": ["4"], "reject": ["5"]}]},
    {"question_id": 2, "turns": [{"accept": ["blue"], "reject": []}, {"accept": ["wet"], "reject": []}]},
]
ANSWERS = {1: ["It is 2. Thank you!", "five"], 2: ["The sky is blue.", ""]}


@pytest.fixture
def inputs(tmp_path):
    write_lines(tmp_path / "q/question.jsonl", QUESTIONS)
    write_lines(tmp_path / "q/rubric.jsonl", RUBRICS)
    rows = [
        {"question_id": i, "answer_id": "x", "model_id": "m", "choices": [{"index": 0, "turns": turns}], "tstamp": 0.0}
        for i, turns in ANSWERS.items()
    ]
    write_lines(tmp_path / "a/answers.jsonl", rows)
    return {"questions": tmp_path / "q", "answers": tmp_path / "a"}


def recipe(**changes):
    return JudgeRecipe(name="rubric", benchmark="mtbench", judge=JudgeRules(**{"kind": "rubric", **changes}))


def values(out, metric):
    frame = pd.read_parquet(out / "items.parquet")
    frame = frame[frame["metric"] == metric]
    return dict(zip(frame["item"], frame["value"], strict=True))


def test_items_follow_the_rubric(inputs, make_step):
    step = make_step(recipe(), inputs)
    results = judge(step)["benchmarks"]["mtbench"]
    # by the rubric's rule, 1 + 5 correct + 2 format + polite + concise, worked out by hand
    expected = {"1/1": 10.0, "1/2": 2.0, "2/1": 9.0, "2/2": 1.0}
    assert values(step.out, "score") == expected
    assert values(step.out, "first_turn") == {"1/1": 10.0, "2/1": 9.0}
    assert values(step.out, "second_turn") == {"1/2": 2.0, "2/2": 1.0}
    assert values(step.out, "correct") == {"1/1": 1.0, "1/2": 0.0, "2/1": 1.0, "2/2": 0.0}
    assert results["value"] == pytest.approx(22 / 4)
    # two questions of two turns: the error of the mean of two question means
    assert results["stderr"] == pytest.approx(stats.sem([6.0, 5.0]))
    assert {name: part["mean"] for name, part in results["strict"]["categories"].items()} == {"math": 6.0, "stem": 5.0}
    assert results["fastchat"]["mean"] == results["strict"]["mean"] == 5.5
    assert json.loads((step.out / "card.json").read_text())["empty_answers"] == 1
    told = progress.read(step.scratch.parent)
    assert told["done"] == told["of"] == 4 and told["unit"] == "judgments"


def test_judgments_are_in_fastchats_format(inputs, make_step):
    step = make_step(recipe(), inputs)
    judge(step)
    rows = read_lines(step.out / "judgments.jsonl")
    fastchat = {"question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"}
    assert all(row.keys() == fastchat | {"choice", "repeat", "served"} for row in rows)
    assert [(row["question_id"], row["turn"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert "And 2 + 2?" in rows[1]["user_prompt"]
    assert "It is 2. Thank you!" in rows[1]["user_prompt"]
    assert "[[2]]" in rows[1]["judgment"]


def texts(monkeypatch, *responses):
    """Let the rubric's judge say these in turn."""
    said = iter(responses)
    monkeypatch.setattr(judging.rubric_judge, "rate", lambda *_: next(said))


def test_what_has_no_rating_is_counted_and_not_averaged(inputs, make_step, monkeypatch):
    texts(monkeypatch, "[[4]]", "[[3]] [[7]]", "[[6]]", "no words")
    step = make_step(recipe(max_unjudged=0.5), inputs)
    results = judge(step)["benchmarks"]["mtbench"]
    assert (results["value"], results["strict"]["n"]) == (5.0, 2)
    assert (results["fastchat"]["mean"], results["fastchat"]["n"]) == (pytest.approx(13 / 3), 3)  # it takes the [[3]]
    assert {status: n for status, n in results["statuses"].items() if n} == {
        "ok": 2,
        "conflicting": 1,
        "empty_answer": 1,
    }
    card = json.loads((step.out / "card.json").read_text())
    assert (card["rows_in"], card["rows"]["judged"], card["dropped"]["conflicting"]) == (4, 2, 1)
    assert [row["score"] for row in read_lines(step.out / "judgments.jsonl")] == [4.0, 3.0, 6.0, -1]
    assert values(step.out, "fastchat") == {"1/1": 4.0, "1/2": 3.0, "2/1": 6.0}


def test_too_much_without_a_rating_is_an_error_that_names_the_counts(inputs, make_step, monkeypatch):
    texts(monkeypatch, "[[4]]", "$ERROR$", "[[12]]", "[[5]]")
    with pytest.raises(UserError, match=r"2 of 4 .*(out_of_scale: 1, error: 1|error: 1, out_of_scale: 1)"):
        judge(make_step(recipe(max_unjudged=0.25), inputs))


def test_choices_are_judged_each_and_averaged_into_one_item(inputs, make_step):
    rows = read_lines(inputs["answers"] / "answers.jsonl")
    for row in rows:
        row["choices"].append({"index": 1, "turns": ["The sky is blue and 2, thank you!", "4, wet."]})
    write_lines(inputs["answers"] / "answers.jsonl", rows)
    step = make_step(recipe(), inputs)
    judge(step)
    # by the rubric: 10 and 10, 2 and 8 (1 + 5 correct + 1 for the closing mark + 1 concise), 9 and 10, 1 and 8
    assert values(step.out, "score") == {"1/1": 10.0, "1/2": 5.0, "2/1": 9.5, "2/2": 4.5}
    assert [(row["choice"], row["turn"]) for row in read_lines(step.out / "judgments.jsonl")] == 2 * [
        (0, 1), (0, 2), (1, 1), (1, 2),
    ]  # fmt: skip


def test_a_file_of_another_tools_answers_is_judged(inputs, make_step):
    whole, file = make_step(recipe(), inputs), inputs["answers"] / "answers.jsonl"
    judge(whole)
    step = make_step(recipe(), {**inputs, "answers": file.rename(file.with_name("their-model.jsonl"))})
    judge(step)
    assert (step.out / "items.parquet").read_bytes() == (whole.out / "items.parquet").read_bytes()


def test_judging_ends_before_its_job_and_goes_on_in_the_next(inputs, make_step, tmp_path, monkeypatch, one_second_job):
    whole, rated, rate = make_step(recipe(), inputs), [], judging.rubric_judge.rate
    judge(whole)

    def slow(question, turn, answer, rubric):
        rated.append((question["question_id"], turn))
        time.sleep(0.4)
        return rate(question, turn, answer, rubric)

    monkeypatch.setattr(judging.rubric_judge, "rate", slow)
    _, starts = start_again(lambda: judge(make_step(recipe(), inputs, tmp_path / "killed")))
    assert starts > 1
    assert rated == [(1, 1), (1, 2), (2, 1), (2, 2)]  # none twice: what was said is stored
    last = max((folder for folder in tmp_path.glob("out*")), key=lambda folder: folder.stat().st_mtime)
    assert (last / "judgments.jsonl").read_bytes() == (whole.out / "judgments.jsonl").read_bytes()


def test_a_missing_answer_is_an_error(inputs, make_step):
    path = inputs["answers"] / "answers.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"no answer to question 2 \(1 missing of 2\)"):
        judge(make_step(recipe(), inputs))
