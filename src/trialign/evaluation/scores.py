"""Judged answers to numbers: two means, intervals that resample questions, and where the scatter comes from.

`fastchat` is the mean of FastChat's show_result.py: of all rows, reruns among them, but those of -1. `strict` is ours:
one rating for each answer and turn, the first usable one. Both take the two turns of a question as two scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from trialign.evaluation.ratings import STATUSES, UNRATED

RESAMPLES = 10_000
SEED = 0  # of the resampling, so that a report says the same each time
CONFIDENCE = 0.95
RERUN = "rerun"  # the status of a usable row where an earlier one counts


class Row(NamedTuple):
    """One response of a judge. score: the usable rating, None without one; fastchat: what FastChat writes down."""

    question: str
    turn: int
    choice: int
    repeat: int
    category: str
    status: str
    score: float | None
    fastchat: float


ANSWER = ["question", "turn", "choice", "repeat"]  # what is rated once


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Return rows as a table, in which `counts` marks the first usable one of each answer, the others are reruns."""
    table = pd.DataFrame(list(rows), columns=list(Row._fields))
    usable = table["score"].notna()
    table["counts"] = usable & ~table[usable].duplicated(ANSWER).reindex(table.index, fill_value=False)
    table.loc[usable & ~table["counts"], "status"] = RERUN
    return table


def statuses(table: pd.DataFrame) -> dict[str, int]:
    """Return how many responses have each status, all statuses named."""
    found = table["status"].value_counts()
    return {status: int(found.get(status, 0)) for status in (*STATUSES, RERUN)}


def per_answer(table: pd.DataFrame) -> dict[str, int]:
    """Return how many answers are `ok`, and how many have which status at last where no response counts."""
    rated = table[table["counts"]].assign(status="ok")
    last = pd.concat([table[~table["counts"]], rated]).drop_duplicates(ANSWER, keep="last")
    return {str(status): int(n) for status, n in last["status"].value_counts().items()}


def of_turns(table: pd.DataFrame) -> pd.DataFrame:
    """Return the strict score of each question and turn: the mean over choices of the mean over repeats."""
    rated = table[table["counts"]]
    choices = rated.groupby(["question", "category", "turn", "choice"], sort=False)["score"].mean()
    return choices.groupby(level=["question", "category", "turn"], sort=False).mean().reset_index()


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Return both means with their parts, and the split of the variance where answers or judgments are repeated."""
    turns = of_turns(table)
    counted = table[table["fastchat"] != UNRATED]
    return {
        "fastchat": {
            "mean": _mean(counted["fastchat"]),
            "n": len(counted),
            "turns": {str(turn): _mean(part["fastchat"]) for turn, part in counted.groupby("turn")},
        },
        "strict": {
            **estimate(turns),
            "turns": {str(turn): estimate(part) for turn, part in turns.groupby("turn")},
            "categories": {str(name): estimate(part) for name, part in turns.groupby("category") if name},
        },
        "variance": components(ratings_of(table)),
    }


def estimate(turns: pd.DataFrame) -> dict[str, Any]:
    """Return the mean of scores of questions and turns, its 95% interval and the numbers of scores and questions.

    The interval is the percentile bootstrap's that resamples questions, both turns together (Efron and Tibshirani 1993,
    chapter 13), of the ratio of sums; None for a single question.
    """
    questions = turns.groupby("question", sort=False)["score"].agg(["sum", "count"])
    low, high = interval(questions["sum"].to_numpy(), questions["count"].to_numpy(dtype=float))
    return {"mean": _mean(turns["score"]), "interval": [low, high], "n": len(turns), "questions": len(questions)}


def interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float | None, float | None]:
    """Return the percentile interval of sum(sums) / sum(counts) over resampled clusters. sums, counts: [clusters]."""
    if len(sums) < 2:
        return None, None
    weights = _weights(len(sums))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile((weights @ sums) / (weights @ counts), [tail, 100 - tail])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _weights(clusters: int) -> np.ndarray:
    """Return how often each cluster is drawn in each resample: [resamples, clusters]."""
    return np.random.default_rng(SEED).multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES)


def ratings_of(table: pd.DataFrame, seed: Any = 0) -> pd.DataFrame:
    """Return all usable ratings as (seed, turn, question, choice, value): repeats, and reruns, which are such, too."""
    usable = table[table["score"].notna()]
    return usable[["turn", "question", "choice"]].assign(seed=seed, value=usable["score"].astype(float))


def components(rated: pd.DataFrame) -> dict[str, float | None] | None:
    """Split the variance of a rating into seed, question, seed x question, generation and judge: means over the turns.

    rated: seed, turn, question, choice (a generation), value; several rows of one answer are judgments of it. None for
    what is not repeated: its variance is in the next level above. None altogether where nothing is repeated.
    """
    splits = [split for _, part in rated.groupby("turn") if (split := _components(part))]
    found = {
        name: [value for split in splits if (value := split[name]) is not None]
        for name in (splits[0] if splits else ())
    }
    return {name: sum(values) / len(values) if values else None for name, values in found.items()} or None


def _components(runs: pd.DataFrame) -> dict[str, float | None] | None:
    """Split the variance of one turn's ratings, by moments of the nested and crossed analysis of variance.

    (Searle, Casella and McCulloch 1992, chapters 3 to 5.) Each is the variance of means less what the levels below put
    into it, 0 where that is negative.
    """
    judged = runs.groupby(["seed", "question", "choice"])["value"].agg(["mean", "var", "count"])
    judge = _pooled(judged)
    noise = (judge or 0.0) / judged["count"]
    generated = judged.assign(noise=noise).groupby(level=["seed", "question"]).agg(
        mean=("mean", "mean"), var=("mean", "var"), count=("mean", "count"), noise=("noise", "mean")
    )  # fmt: skip
    between = _pooled(generated)
    generation = None if between is None else max(0.0, between - _weighted(generated))
    seeds = runs["seed"].nunique()
    if judge is None and generation is None and seeds < 2:
        return None
    below = (generation or 0.0) / generated["count"] + generated["noise"] / generated["count"]
    means = generated["mean"].unstack("seed").dropna()
    rest = float(below.mean())
    by_question = means.mean(axis=1)
    if seeds < 2 or len(means) < 2:
        question = max(0.0, float(by_question.var()) - rest) if len(means) > 1 else None
        alone = {"seed": None, "question": question, "seed x question": None}
        return {**alone, "generation": generation, "judge": judge}
    by_seed = means.mean(axis=0)
    residual = means.sub(by_question, axis=0).sub(by_seed, axis=1) + by_question.mean()
    error = float((residual**2).to_numpy().sum() / ((len(means) - 1) * (seeds - 1)))
    return {
        "seed": max(0.0, float(by_seed.var()) - error / len(means)),
        "question": max(0.0, float(by_question.var()) - error / seeds),
        "seed x question": max(0.0, error - rest),
        "generation": generation,
        "judge": judge,
    }


def _pooled(groups: pd.DataFrame) -> float | None:
    """Return the variance within groups, pooled by their degrees of freedom; None where no group has two."""
    several = groups[groups["count"] > 1]
    if several.empty:
        return None
    freedom = several["count"] - 1
    return float((several["var"] * freedom).sum() / freedom.sum())


def _weighted(groups: pd.DataFrame) -> float:
    """Return the mean noise of the groups that a pooled variance is made of, weighted as that is."""
    several = groups[groups["count"] > 1]
    freedom = several["count"] - 1
    return float((several["noise"] * freedom).sum() / freedom.sum())


def _mean(values: Any) -> float | None:
    return float(values.mean()) if len(values) else None
