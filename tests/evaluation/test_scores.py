"""Scores of judged answers: written-out means, intervals against scipy, variance components of a known simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from trialign.evaluation import scores
from trialign.evaluation.scores import Row, components, estimate, frame, interval, per_answer, summary


def row(question, turn=1, score=5.0, status="ok", fastchat=None, choice=0, repeat=0, category="math"):
    fastchat = (-1.0 if score is None else score) if fastchat is None else fastchat
    return Row(str(question), turn, choice, repeat, category, status, score, fastchat)


def test_the_first_usable_row_counts_and_fastchat_takes_all_but_minus_one():
    table = frame([
        row(1, score=None, status="error"), row(1, score=8.0), row(1, score=4.0), row(1, 2, score=6.0),
        row(2, score=None, status="conflicting", fastchat=3.0),
        row(2, 2, score=None, status="out_of_scale", fastchat=12.0),
        row(2, 2, score=10.0),
    ])  # fmt: skip
    assert table["counts"].tolist() == [False, True, False, True, False, False, True]
    assert table["status"].tolist() == ["error", "ok", "rerun", "ok", "conflicting", "out_of_scale", "ok"]
    assert per_answer(table) == {"ok": 3, "conflicting": 1}
    found = summary(table)
    assert found["strict"]["mean"] == 8.0 and found["strict"]["n"] == 3  # 8, 6 and 10
    assert found["fastchat"] == {"mean": pytest.approx(43 / 6), "n": 6, "turns": {"1": 5.0, "2": pytest.approx(28 / 3)}}
    assert found["strict"]["turns"]["2"]["mean"] == 8.0
    assert found["variance"]["judge"] == 8.0  # 8 and 4 of one answer


def test_choices_and_repeats_weigh_alike_whatever_their_number():
    table = frame([row(1, score=1.0), row(1, score=3.0, repeat=1), row(1, score=8.0, choice=1), row(2, score=6.0)])
    assert scores.of_turns(table)["score"].tolist() == [5.0, 6.0]  # (2 + 8) / 2, and 6


def test_the_interval_is_scipys_percentile_bootstrap_of_questions():
    rng = np.random.default_rng(0)
    values = rng.normal(6, 2, 80)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", vectorized=True, rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval(values, np.ones(80)) == pytest.approx(tuple(theirs), abs=0.03)


def test_turns_of_a_question_are_resampled_together():
    """Equal turns double the scores and say nothing new: the interval stays that of the questions."""
    rng = np.random.default_rng(2)
    values = rng.normal(6, 2, 60)
    one = estimate(pd.DataFrame({"question": range(60), "score": values}))
    two = estimate(pd.DataFrame({"question": [*range(60)] * 2, "score": [*values, *values]}))
    assert two["interval"] == pytest.approx(one["interval"])
    assert (one["n"], two["n"], two["questions"]) == (60, 120, 60)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng, hits = np.random.default_rng(3), 0
    for _ in range(400):
        question = rng.normal(0, 1.5, 80)
        sums = (6 + question + rng.normal(0, 1, (2, 80))).sum(axis=0)
        low, high = interval(sums, np.full(80, 2.0))
        hits += low <= 6 <= high
    assert 0.92 <= hits / 400 <= 0.975  # 95% within three standard errors


def test_one_question_has_no_interval():
    assert estimate(pd.DataFrame({"question": [1, 1], "score": [3.0, 5.0]}))["interval"] == [None, None]
    assert estimate(pd.DataFrame({"question": [], "score": []})) == {
        "mean": None, "interval": [None, None], "n": 0, "questions": 0,
    }  # fmt: skip


def simulated(rng, *, seeds, questions, choices, repeats, sd, missing=0.0):
    """Ratings of which each part is drawn with a standard deviation of its own."""
    seed = rng.normal(0, sd["seed"], seeds)
    question = rng.normal(0, sd["question"], questions)
    both = rng.normal(0, sd["seed x question"], (seeds, questions))
    generation = rng.normal(0, sd["generation"], (seeds, questions, choices))
    rows = [
        (s, 1, str(q), c, 5 + seed[s] + question[q] + both[s, q] + generation[s, q, c] + rng.normal(0, sd["judge"]))
        for s in range(seeds)
        for q in range(questions)
        for c in range(choices)
        for _ in range(repeats)
        if rng.random() >= missing
    ]
    return pd.DataFrame(rows, columns=["seed", "turn", "question", "choice", "value"])


SD = {"seed": 0.5, "question": 1.5, "seed x question": 0.6, "generation": 0.8, "judge": 0.4}


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_variance_is_split_into_what_it_was_made_of(missing):
    rng = np.random.default_rng(4)
    shape = {"seeds": 4, "questions": 60, "choices": 3, "repeats": 2}
    splits = pd.DataFrame([components(simulated(rng, **shape, sd=SD, missing=missing)) for _ in range(60)])
    for name, sd in SD.items():
        error = splits[name].std() / np.sqrt(len(splits))
        assert splits[name].mean() == pytest.approx(sd**2, abs=4 * error + 0.01), name


def test_what_is_not_repeated_is_not_split():
    rng = np.random.default_rng(5)
    once = simulated(rng, seeds=1, questions=50, choices=1, repeats=1, sd=SD)
    assert components(once) is None
    judged = components(simulated(rng, seeds=1, questions=400, choices=1, repeats=3, sd=SD))
    assert judged["generation"] is None and judged["seed"] is None
    assert judged["judge"] == pytest.approx(SD["judge"] ** 2, rel=0.15)
    # one generation: its scatter is a question's
    whole = sum(SD[name] ** 2 for name in ("question", "seed x question", "generation"))
    assert judged["question"] == pytest.approx(whole, rel=0.2)


def test_components_are_those_of_the_analysis_of_variance():
    """A balanced case by the textbook's mean squares, of numbers small enough to work out."""
    values = {("1", 0): [4.0, 6.0], ("1", 1): [8.0, 8.0], ("2", 0): [2.0, 2.0], ("2", 1): [3.0, 5.0]}
    rows = [(0, 1, q, c, value) for (q, c), pair in values.items() for value in pair]
    found = components(pd.DataFrame(rows, columns=["seed", "turn", "question", "choice", "value"]))
    within = (2 + 0 + 0 + 2) / 4  # mean of the pairs' variances: judge
    between = ((5 - 6.5) ** 2 * 2 + (2 - 3) ** 2 * 2) / 2  # variance of the choices' means in a question, pooled
    assert found["judge"] == within
    assert found["generation"] == pytest.approx(between - within / 2)
    assert found["question"] == pytest.approx((6.5 - 3) ** 2 / 2 - between / 2)
