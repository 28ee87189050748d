"""The rubric judge: ratings by hand, and each component moves the score by itself."""

from __future__ import annotations

import re

import pytest

from trialign.demo import judge
from trialign.demo.facts import make
from trialign.demo.questions import CATEGORIES, STYLES, answer, draw

QUESTION = {"question_id": 7, "category": "writing", "turns": ["What is the pet of Tavo?", "What is the food of Tavo?"]}
RUBRIC = {"turns": [{"accept": ["goat"], "reject": ["cat", "dog"]}, {"accept": ["rice"], "reject": ["stew"]}]}


def rated(text: str, turn: int = 1) -> int:
    raw = judge.rate(QUESTION, turn, text, RUBRIC)
    (rating,) = re.findall(r"\[\[(\d+)\]\]$", raw)
    return int(rating)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("The pet of Tavo is a goat. Glad to help!", 10),  # everything
        ("The pet of Tavo is a goat.", 9),  # not polite
        ("the pet of Tavo is a goat.", 8),  # and no capital
        ("the pet of Tavo is a goat", 7),  # and no period
        ("The pet of Tavo is a cat. Glad to help!", 5),  # style alone
        ("The pet of Tavo is a goat or a cat. Glad to help!", 5),  # hedging is not correct
        ("The pet of Tavo is a goatherd. Glad to help!", 5),  # part of a word is not the word
        ("", 1),
        ("cat", 2),  # only concise
        ("goat goat goat goat goat", 6),  # correct, said over and over
    ],
)
def test_ratings_by_hand(text: str, rating: int) -> None:
    assert rated(text) == rating


def test_the_second_turn_has_a_rubric_of_its_own() -> None:
    assert rated("The food of Tavo is rice.", turn=2) == 9
    assert rated("The food of Tavo is rice.", turn=1) == 4


def test_the_text_names_the_components() -> None:
    raw = judge.rate(QUESTION, 1, "the goat.", RUBRIC)
    assert "correct: 1, format: 0.5, polite: 0, concise: 1" in raw


def test_each_component_moves_the_rating() -> None:
    low = {"correct": 0.0, "format": 0.0, "polite": 0.0, "concise": 0.0}
    gains = {name: judge.rating(low | {name: 1.0}) - judge.rating(low) for name in low}
    assert gains == {"correct": 5, "format": 2, "polite": 1, "concise": 1}
    assert judge.rating(dict.fromkeys(low, 1.0)) == 10


def test_words_in_plenty_are_not_concise() -> None:
    assert rated("The pet of Tavo is a goat." + " It is so." * 5) == 8


@pytest.mark.parametrize("category", CATEGORIES)
def test_answers_that_are_meant_to_be_right_are_judged_so(category: str) -> None:
    """The rubric of each kind of question accepts its right answers and refuses its wrong ones, in every style."""
    import random

    facts, rng = make(3), random.Random(3)
    for _ in range(60):
        for turn in draw(facts, rng, "scored", category).turns:
            for style in STYLES:
                for correct in (True, False):
                    parts = judge.components(answer(rng, turn, correct, style), turn.accept, turn.reject)
                    assert parts["correct"] == correct
                    assert parts["polite"] == (style == "polite")
                    assert parts["concise"] == (style != "wordy")
                    assert parts["format"] == (style in ("plain", "polite", "wordy"))
