"""Conversations in the schema of HuggingFaceH4/ultrachat_200k: one to three exchanges in a so-so style.

Most answers are right and few are well put, so that alignment has something to teach.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

from trialign.demo.facts import Facts
from trialign.demo.questions import CATEGORIES, Turn, answer, draw

RIGHT = 0.92
STYLES = {"bare": 0.3, "loose": 0.3, "plain": 0.25, "wordy": 0.1, "polite": 0.05}


def exchanges(facts: Facts, rng: random.Random) -> list[tuple[Turn, str]]:
    """Draw one to three exchanges of one conversation: requests of the train pool and the assistant's answers."""
    turns: list[Turn] = []
    for _ in range(rng.choice((1, 1, 2))):
        turns += draw(facts, rng, "train", rng.choice(list(CATEGORIES))).turns
    turns = turns[: rng.choice((1, 2, 2, 3))]
    (style,) = rng.choices(list(STYLES), list(STYLES.values()))
    return [(turn, answer(rng, turn, rng.random() < RIGHT, style)) for turn in turns]


def make(facts: Facts, seed: int, split: str, rows: int) -> list[dict[str, Any]]:
    """Return `rows` conversations of one split: prompt, prompt_id (a hash, unique), messages."""
    rng = random.Random(f"{seed}/conversations/{split}")
    made: dict[str, dict[str, Any]] = {}
    while len(made) < rows:
        messages: list[dict[str, str]] = []
        for turn, text in exchanges(facts, rng):
            messages += [{"content": turn.text, "role": "user"}, {"content": text, "role": "assistant"}]
        identity = hashlib.sha256("\n".join(m["content"] for m in messages).encode()).hexdigest()
        made.setdefault(identity, {"prompt": messages[0]["content"], "prompt_id": identity, "messages": messages})
    return list(made.values())
