"""Judging: storage before parsing, items, counts, resuming. Responses of other judges are planted in the storage."""

from __future__ import annotations

import json
import time

import pandas as pd
import pytest
from evaluation_helpers import read_lines, start_again, write_lines
from scipy import stats

from trialign.errors import UserError
from trialign.evaluation import judge as judging
from trialign.evaluation.judge import judge
from trialign.recipes import JudgeRecipe
from trialign.settings import JudgeSettings

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
    return JudgeRecipe(judge=JudgeSettings(**{"name": "rubric", "kind": "rubric", **changes}))


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
    assert results["subsets"] == {"math": {"value": 6.0, "n": 2}, "stem": {"value": 5.0, "n": 2}}
    assert json.loads((step.out / "card.json").read_text())["empty_answers"] == 1


def test_judgments_are_in_fastchats_format(inputs, make_step):
    step = make_step(recipe(), inputs)
    judge(step)
    rows = read_lines(step.out / "judgments.jsonl")
    fastchat = {"question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"}
    assert all(row.keys() == fastchat for row in rows)
    assert [(row["question_id"], row["turn"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert "And 2 + 2?" in rows[1]["user_prompt"]
    assert "It is 2. Thank you!" in rows[1]["user_prompt"]
    assert "[[2]]" in rows[1]["judgment"]


def plant(scratch, texts):
    """Store raw responses as another judge would have given them."""
    keys = [(question, turn) for question in (1, 2) for turn in (1, 2)]
    rows = [{"question_id": q, "turn": t, "judgment": text} for (q, t), text in zip(keys, texts, strict=False)]
    write_lines(scratch / "responses.jsonl", rows)
    return scratch


def test_what_has_no_rating_is_counted_and_not_averaged(inputs, make_step, tmp_path):
    scratch = plant(tmp_path / "planted", ["[[4]]", "[[3]] [[7]]", "[[6]]", "no words"])
    step = make_step(recipe(max_unjudged=0.5), inputs, scratch)
    results = judge(step)["benchmarks"]["mtbench"]
    assert (results["value"], results["n"]) == (5.0, 2)
    assert {status: n for status, n in results["statuses"].items() if n} == {
        "ok": 2,
        "conflicting": 1,
        "empty_answer": 1,
    }
    card = json.loads((step.out / "card.json").read_text())
    assert (card["rows_in"], card["rows"]["judged"], card["dropped"]["conflicting"]) == (4, 2, 1)
    assert [row["score"] for row in read_lines(step.out / "judgments.jsonl")] == [4.0, -1, 6.0, -1]


def test_too_much_without_a_rating_is_an_error_that_names_the_counts(inputs, make_step, tmp_path):
    scratch = plant(tmp_path / "planted", ["[[4]]", "$ERROR$", "[[12]]", "[[5]]"])
    with pytest.raises(UserError, match=r"2 of 4 .*out_of_scale: 1, error: 1"):
        judge(make_step(recipe(max_unjudged=0.25), inputs, scratch))


def test_a_restart_keeps_what_was_stored_and_asks_for_the_rest(inputs, make_step, tmp_path):
    whole = make_step(recipe(), inputs)
    judge(whole)
    scratch = plant(tmp_path / "planted", ["[[7]]"])
    with (scratch / "responses.jsonl").open("a") as file:
        file.write('{"question_id": 1, "turn": 2, "judg')  # killed while writing
    step = make_step(recipe(), inputs, scratch)
    judge(step)
    rest = {item: score for item, score in values(whole.out, "score").items() if item != "1/1"}
    assert values(step.out, "score") == {"1/1": 7.0, **rest}


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
    assert rated == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert (tmp_path / "killed/responses.jsonl").read_bytes() == (whole.scratch / "responses.jsonl").read_bytes()


def test_an_endpoint_is_refused_until_it_is_built(inputs, make_step):
    with pytest.raises(UserError, match="not built yet"):
        judge(make_step(recipe(kind="openai", model="gpt-4"), inputs))


def test_a_missing_answer_is_an_error(inputs, make_step):
    path = inputs["answers"] / "answers.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"no answer to question 2 \(1 missing of 2\)"):
        judge(make_step(recipe(), inputs))
