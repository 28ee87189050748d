"""Ratings out of a judge's words: written-out texts, and real judgments with known means."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from trialign.errors import UserError
from trialign.evaluation.ratings import check, count, parse

REAL = os.environ.get("TRIALIGN_REAL_DATA")


@pytest.mark.parametrize(
    ("text", "status", "score"),
    [
        ("Rating: [[8]]", "ok", 8.0),
        ("Rating: [[8.5]]", "ok", 8.5),
        ("I rate it [7].", "ok", 7.0),
        ("See [1] and [2]. Rating: [[9]]", "ok", 9.0),
        ("[[6]] ... so, again: [[6.0]]", "ok", 6.0),
        ("[[1]]", "ok", 1.0),
        ("[[10]]", "ok", 10.0),
        ("[[3]] or rather [[4]]", "conflicting", None),
        ("[3] or rather [4]", "conflicting", None),
        ("[[0]]", "out_of_scale", None),
        ("[[11]]", "out_of_scale", None),
        ("[[-2]]", "out_of_scale", None),
        ("Rating: [[True:]]", "no_rating", None),
        ("Rating: 8", "no_rating", None),
        ("", "no_rating", None),
        ("$ERROR$", "error", None),
    ],
)
def test_rating_and_status(text, status, score):
    rating = parse(text)
    assert (rating.status, rating.score) == (status, score)


def test_an_empty_answer_counts_as_such_only_if_the_judge_gave_no_rating():
    assert parse("There is nothing to rate.", answer=" \n").status == "empty_answer"
    assert parse("Nothing there. [[1]]", answer="").score == 1.0


def test_components_are_read_where_the_judge_names_them():
    rating = parse("By the rubric: correct: 1, format: 0.5, polite: 0, concise: 1. Rating: [[8]]")
    assert rating.components == {"correct": 1.0, "format": 0.5, "polite": 0.0, "concise": 1.0}
    assert parse("Correctness: high. incorrect: 3 [[4]]").components == {}


def test_counts_name_every_status_and_the_share_of_unjudged_is_bounded():
    counts = count([parse("[[8]]")] * 19 + [parse("none")])
    assert counts == {"ok": 19, "no_rating": 1, "conflicting": 0, "out_of_scale": 0, "error": 0, "empty_answer": 0}
    check(counts, 0.05, "here")
    with pytest.raises(UserError, match=r"here: 1 of 20 .*no_rating: 1.*max_unjudged = 0\.04"):
        check(counts, 0.04, "here")
    with pytest.raises(UserError, match="1 of 1"):
        check(count([parse("$ERROR$")]), 1.0, "here")


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="TRIALIGN_REAL_DATA is not set")
def test_real_judgments_have_fastchats_ratings_and_means():
    path = Path(REAL) / "mt_bench_judgments/gpt-4_two_llama3.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    scores, errors = defaultdict(list), Counter()
    for row in rows:
        rating = parse(row["judgment"])
        assert (-1 if rating.score is None else rating.score) == row["score"]
        if rating.status == "ok":
            scores[row["model"]].append(rating.score)
        else:
            errors[row["model"], rating.status] += 1
    # FastChat's show_result.py: -1 left out, reruns (10 of the second model's rows) averaged with the rest
    normal, griffin = "Meta-Llama-3-8B-Instruct-Normal", "Meta-Llama-3-8B-Instruct-Griffin"
    assert len(scores[griffin]) == 160
    assert sum(scores[griffin]) / 160 == pytest.approx(2.7)
    assert len(scores[normal]) == 166
    assert sum(scores[normal]) / 166 == pytest.approx(7.8434, abs=5e-5)
    assert errors == {(normal, "error"): 4}


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="TRIALIGN_REAL_DATA is not set")
def test_real_judgments_without_a_rating_are_all_found_out():
    path = Path(REAL) / "mt_bench_judgments/local_judge_unparseable.jsonl"
    counts = count(parse(json.loads(line)["judgment"]) for line in path.read_text().splitlines())
    assert counts["ok"] == 0
    assert sum(counts.values()) == 69
