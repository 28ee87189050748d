"""Stored judgments, read again: FastChat's files (`model_judgment/*.jsonl`) and our own, reported and compared.

Each text is read anew; only the mean by FastChat's convention takes the scores that the files hold, as FastChat would.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trialign.errors import UserError
from trialign.evaluation import ratings, scores
from trialign.evaluation.judged import JUDGMENTS
from trialign.evaluation.questions import QUESTIONS, TURNS, place, read_lines

_NEEDED = ("question_id", "model", "judge", "judgment")
_SEED = re.compile(r"(?P<lineage>.+)/seed(?P<seed>\d+)")
# where the answer stands in FastChat's prompts
_ANSWERS = (
    re.compile(r"\[The Start of Assistant's Answer\]\n(.*)\n\[The End of Assistant's Answer\]", re.DOTALL),
    re.compile(r".*### Assistant A:\n(.*)\n\n<\|The End of Assistant A's Conversation with User\|>", re.DOTALL),
)
# asked: the prompt's text, None where the file has none; reading: what FastChat reads of the text
COLUMNS = ("model", "judge", "prompt", "asked", "reading", *scores.Row._fields)


def read(paths: Sequence[Path], categories: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of files of single-answer judgments, or of folders that hold `judgments.jsonl`, in order.

    categories: question -> category. UserError for what is no such file, naming the judgment.
    """
    rows = []
    for path in paths:
        file = path / JUDGMENTS if path.is_dir() else path
        records = read_lines(file)
        if not records:
            raise UserError(f"{file}: no judgment is in it")
        rows += [
            _row(record, f"{file}, judgment {number}", categories) for number, record in enumerate(records, start=1)
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def categories_of(path: Path | None) -> dict[str, str]:
    """Return question -> category of a file of questions, or of the folder that holds it; nothing of no path."""
    if path is None:
        return {}
    file = place(path) / QUESTIONS if path.is_dir() else path
    found = {}
    for number, question in enumerate(read_lines(file), start=1):
        if "question_id" not in question:
            raise UserError(f"{file}, question {number}: no 'question_id'")
        found[_name(question, "question_id", f"{file}, question {number}")] = str(question.get("category", ""))
    return found


def report(table: pd.DataFrame, max_unjudged: float) -> dict[str, Any]:
    """Return what the judgments of each model by each judge say, and how the scores of a lineage's seeds scatter."""
    groups = [
        {"model": model, "judge": judge, **_of_model(part, max_unjudged)}
        for (model, judge), part in table.groupby(["model", "judge"], sort=False)
    ]
    return {"rows": len(table), "models": groups, "seeds": _of_seeds(table)}


def agreement(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Any]:
    """Compare two judges' ratings of the same answers, each read from its own files.

    `exact` and `within_one` are shares of the pairs, `difference` is first less second, `spearman` and `kendall`
    (tau-b) are over the pairs; `models` compares the models' means the same way; `preferences` is the share of pairs of
    models on one question and turn that both judges put into the same order, ties included (Zheng et al. 2023, 4.2).
    UserError where a side holds several judges, or where no answer is rated by both.
    """
    sides = [_rated(table, name) for table, name in ((first, "A"), (second, "B"))]
    key = ["model", "question", "turn", "choice"]
    both = sides[0].merge(sides[1], on=key, suffixes=("_a", "_b"))
    other = (
        both["asked_a"].notna()
        & both["asked_b"].notna()
        & (both["prompt_a"] == both["prompt_b"])
        & (both["asked_a"] != both["asked_b"])
    )
    pairs = both[~other]
    if pairs.empty:
        raise UserError("no answer has a usable rating by both judges: give two judgments of the same models' answers")
    difference = pairs["score_a"] - pairs["score_b"]
    clusters = difference.groupby(pairs["question"]).agg(["sum", "count"])
    low, high = scores.interval(clusters["sum"].to_numpy(), clusters["count"].to_numpy(dtype=float))
    means = pairs.groupby("model")[["score_a", "score_b"]].mean()
    return {
        "judges": [str(side["judge"].iloc[0]) for side in sides],
        "pairs": len(pairs),
        "only_one_rated": len(sides[0]) + len(sides[1]) - 2 * len(both),
        "other_answers": int(other.sum()),
        "exact": float((difference == 0).mean()),
        "within_one": float((difference.abs() <= 1).mean()),
        "difference": {"mean": float(difference.mean()), "interval": [low, high]},
        **_ranks(pairs["score_a"], pairs["score_b"]),
        "preferences": _preferences(pairs),
        "models": {"n": len(means), **_ranks(means["score_a"], means["score_b"])},
    }


def _row(record: Mapping[str, Any], where: str, categories: Mapping[str, str]) -> tuple[Any, ...]:
    if "g1_winner" in record or "model_1" in record:
        raise UserError(f"{where}: compares two models; single-answer judgments are wanted (*_single.jsonl)")
    if missing := [name for name in _NEEDED if name not in record]:
        raise UserError(f"{where}: no '{missing[0]}'; FastChat's judgments have {', '.join(_NEEDED)}, score and turn")
    if not isinstance(record["judgment"], str):
        raise UserError(f"{where}: 'judgment' is the judge's text, this is a {type(record['judgment']).__name__}")
    judge, prompt = _judge(record["judge"], where)
    text, asked, question = record["judgment"], record.get("user_prompt"), _name(record, "question_id", where)
    rating, reading = ratings.parse(text, _answer(asked)), ratings.fastchat(text)
    return (
        _name(record, "model", where), judge, prompt, asked if isinstance(asked, str) else None, reading,
        question, _turn(record, prompt, where), _index(record, "choice", where), _index(record, "repeat", where),
        categories.get(question, ""), rating.status, rating.score, _stored(record.get("score"), reading, where),
    )  # fmt: skip


def _name(record: Mapping[str, Any], key: str, where: str) -> str:
    """Return a name or a number as text; 81.0, as a table writes 81, is 81."""
    value = record[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{where}: {key} is {value!r}; a name or a number is wanted")
    return str(value)


def _judge(value: Any, where: str) -> tuple[str, str]:
    """Return the judge's model and the prompt's name, as FastChat's pair has them, or a model alone."""
    pair = [*value, ""][:2] if isinstance(value, list) and value else [value, ""]
    if not isinstance(pair[0], str) or not pair[0] or not isinstance(pair[1], str):
        raise UserError(
            f"{where}: judge is {value!r}; a model and a prompt's name are wanted, as in ['gpt-4', 'single-v1']"
        )
    return pair[0], pair[1]


def _turn(record: Mapping[str, Any], prompt: str, where: str) -> int:
    """Return the turn; where there is none, the prompt's name says it."""
    turn = record.get("turn")
    if turn is None:
        return 2 if prompt.endswith("-multi-turn") else 1
    if turn not in (*TURNS, *map(str, TURNS)):
        raise UserError(f"{where}: turn is {turn!r}; it is 1 or 2")
    return int(turn)


def _index(record: Mapping[str, Any], key: str, where: str) -> int:
    value = record.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{where}: {key} is {value!r}; a whole number is wanted")
    return value


def _stored(score: Any, reading: float, where: str) -> float:
    """Return the score that the file holds; without one, what FastChat reads of the text."""
    try:
        number = reading if score is None else float(score)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: score is {score!r}; a number is wanted, -1 where there is no rating")
    return number


def _answer(asked: Any) -> str:
    """Return the judged answer out of a prompt's text; something where it is not FastChat's, so that none is empty."""
    for pattern in _ANSWERS:
        if found := pattern.search(asked if isinstance(asked, str) else ""):
            return found[1]
    return "..."


def _of_model(part: pd.DataFrame, max_unjudged: float) -> dict[str, Any]:
    """Return one model's report; its `scores` are None and `error` says why where too much is unjudged."""
    rows = _frame(part)
    answers = scores.per_answer(rows)
    judgments = sum(answers.values())
    unjudged = judgments - answers.get("ok", 0)
    error = None
    try:
        ratings.check(answers, max_unjudged, f"{part['model'].iloc[0]}, judged by {part['judge'].iloc[0]}")
    except UserError as reason:
        error = str(reason)
    return {
        "prompts": sorted(set(part["prompt"])),
        "rows": len(part),
        "questions": int(part["question"].nunique()),
        "judgments": judgments,
        "reruns": len(part) - judgments,
        "statuses": scores.statuses(rows),
        "unjudged": unjudged,
        "unjudged_share": round(unjudged / judgments, 6),
        "scores_read_otherwise": int((part["reading"] != part["fastchat"]).sum()),
        "scores": None if error else scores.summary(rows),
        "error": error,
    }


def _of_seeds(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the split of the variance for each lineage of which several seeds were judged (`<lineage>/seed<k>`)."""
    found = table["model"].str.extract(_SEED)
    found.columns = ["lineage", "seed"]
    known = pd.concat([table, found], axis=1).dropna(subset=["lineage"])
    splits = []
    for (lineage, judge), part in known.groupby(["lineage", "judge"], sort=False):
        if part["seed"].nunique() > 1:
            rated = [scores.ratings_of(_frame(each), seed) for seed, each in part.groupby("seed")]
            split = scores.components(pd.concat(rated))
            splits.append({"lineage": lineage, "judge": judge, "seeds": len(rated), "variance": split})
    return splits


def _frame(part: pd.DataFrame) -> pd.DataFrame:
    rows = part[list(scores.Row._fields)].astype({"score": object})
    return scores.frame(scores.Row(*row) for row in rows.itertuples(index=False))


def _rated(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the strict rating of each answer and turn by the one judge of a table."""
    if len(judges := sorted(set(table["judge"]))) > 1:
        raise UserError(f"{name}: holds judgments by {', '.join(judges)}: give the files of one judge")
    rows = table.assign(counts=False)
    for _, part in table.groupby("model", sort=False):
        rows.loc[part.index, "counts"] = _frame(part)["counts"].to_numpy()
    rated = rows[rows["counts"]].astype({"score": float})
    keys = ["model", "question", "turn", "choice"]
    first = rated.drop_duplicates(keys)[[*keys, "judge", "prompt", "asked"]]
    return first.merge(rated.groupby(keys, sort=False)["score"].mean().reset_index(), on=keys)


def _ranks(first: pd.Series, second: pd.Series) -> dict[str, float | None]:
    """Return rank correlations; None where a side does not vary or there are fewer than three."""
    from scipy import stats

    if len(first) < 3 or first.nunique() < 2 or second.nunique() < 2:
        return {"spearman": None, "kendall": None}
    return {
        "spearman": float(stats.spearmanr(first, second).statistic),
        "kendall": float(stats.kendalltau(first, second).statistic),
    }


def _preferences(pairs: pd.DataFrame) -> float | None:
    """Return the share of pairs of models, on one question, turn and choice, that both judges order alike."""
    two = pairs.merge(pairs, on=["question", "turn", "choice"], suffixes=("", "_other"))
    two = two[two["model"] < two["model_other"]]
    if two.empty:
        return None
    orders = [np.sign(two[f"score_{side}"] - two[f"score_{side}_other"]) for side in ("a", "b")]
    return float((orders[0] == orders[1]).mean())
