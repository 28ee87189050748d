"""Preferences in the schema of openbmb/UltraFeedback: four completions of graded quality with their annotations.

The scores come from the same qualities that the rubric judge rates, with noise. The blemishes of the real data set are
here too, each in a stated share of the rows, and counted.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from trialign.demo import judge
from trialign.demo.facts import Facts
from trialign.demo.questions import CATEGORIES, Turn, answer, draw

# Share of right answers, and how often each style (bare, loose, plain, polite, wordy) is chosen.
MODELS: dict[str, tuple[float, tuple[int, ...]]] = {
    "heron-13b": (0.90, (1, 1, 4, 8, 1)),
    "otter-7b": (0.80, (2, 2, 5, 3, 3)),
    "badger-3b": (0.60, (4, 3, 3, 1, 4)),
    "wombat-3b": (0.50, (2, 3, 2, 3, 6)),
    "lemming-1b": (0.30, (5, 4, 2, 1, 2)),
    "newt-350m": (0.15, (4, 4, 2, 1, 3)),
}
BLEMISHES = {"na": 0.03, "fewer": 0.02, "empty": 0.01, "identical": 0.02, "ten_for_one": 0.01, "repeated": 0.01}
SOURCES = ("evol_instruct", "false_qa", "flan_v2_niv2", "flan_v2_cot", "sharegpt", "ultrachat")
ASPECTS = {
    "instruction_following": ("format", "concise"),
    "honesty": ("correct",),
    "truthfulness": ("correct",),
    "helpfulness": ("correct", "polite"),
}


def _annotations(rng: random.Random, parts: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return the four annotations with ratings from "1" to "5" that follow the components, with noise."""
    annotations: dict[str, dict[str, Any]] = {}
    for aspect, names in ASPECTS.items():
        quality = sum(parts[name] for name in names) / len(names)
        value = min(5, max(1, round(1 + 4 * quality + rng.choice((-1, 0, 0, 0, 1)))))
        annotations[aspect] = {"Rating": str(value), "Rationale": f"The {aspect.replace('_', ' ')} is at {value}."}
        if aspect in ("truthfulness", "helpfulness"):
            annotations[aspect] |= {"Type": ["1"], "Rationale For Rating": f"Rated {value} of 5."}
    return annotations


def _mean(annotations: dict[str, dict[str, Any]]) -> float:
    """Return the mean of the ratings that are numbers."""
    ratings = [int(a["Rating"]) for a in annotations.values() if a["Rating"] != "N/A"]
    return sum(ratings) / len(ratings)


def _completion(rng: random.Random, turn: Turn, model: str) -> dict[str, Any]:
    share, styles = MODELS[model]
    style = rng.choices(("bare", "loose", "plain", "polite", "wordy"), styles)[0]
    response = answer(rng, turn, rng.random() < share, style)
    parts = judge.components(response, turn.accept, turn.reject)
    annotations = _annotations(rng, parts)
    score = judge.rating(parts) + rng.choice((-1.0, -0.5, 0.0, 0.0, 0.5, 1.0))
    return {
        "annotations": annotations,
        "custom_system_prompt": "You are a helpful assistant.",
        "model": model,
        "principle": "helpfulness",
        "response": response,
        "critique": f"The answer earns {judge.rating(parts)} of 10.",
        "overall_score": min(10.0, max(1.0, score)),
        "fine-grained_score": _mean(annotations),
    }


def _blemish(rng: random.Random, name: str, completions: list[dict[str, Any]]) -> None:
    """Give the completions of one row the blemish `name`, in place."""
    if name == "na":
        spoiled = rng.choice(completions)
        spoiled["annotations"][rng.choice(("truthfulness", "honesty"))]["Rating"] = "N/A"
        spoiled["fine-grained_score"] = _mean(spoiled["annotations"])
    elif name == "fewer":
        del completions[rng.randint(1, 3) :]
    elif name == "empty":
        rng.choice(completions)["response"] = ""
    elif name == "identical":
        first, second = rng.sample(completions, 2)
        second["response"] = first["response"]
    elif name == "ten_for_one":
        worst = min(completions, key=lambda c: c["fine-grained_score"])
        worst["overall_score"] = 10.0


def make(facts: Facts, seed: int, rows: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return `rows` rows and how many of them have which blemish (`ties`: two equal overall scores)."""
    rng = random.Random(f"{seed}/preferences")
    made: list[dict[str, Any]] = []
    counts: Counter[str] = Counter(dict.fromkeys([*BLEMISHES, "ties"], 0))
    asked: dict[str, Turn] = {}
    while len(made) < rows:
        (blemish,) = rng.choices([*BLEMISHES, ""], [*BLEMISHES.values(), 1 - sum(BLEMISHES.values())])
        if blemish == "repeated" and asked:
            turn = rng.choice(list(asked.values()))
        else:
            turn = draw(facts, rng, "train", rng.choice(list(CATEGORIES))).turns[rng.randrange(2)]
            if turn.text in asked:
                continue
            asked[turn.text] = turn
        models = rng.sample(list(MODELS), 4)
        completions = [_completion(rng, turn, model) for model in models]
        _blemish(rng, blemish, completions)
        if blemish:
            counts[blemish] += 1
        scores = [completion["overall_score"] for completion in completions]
        counts["ties"] += len(set(scores)) < len(scores)
        made.append(
            {
                "source": rng.choice(SOURCES),
                "instruction": turn.text,
                "models": [completion["model"] for completion in completions],
                "completions": completions,
                "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            }
        )
    return made, dict(counts)
