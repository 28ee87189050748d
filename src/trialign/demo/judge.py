"""The rubric judge: rates an answer of the demo world from 1 to 10, in prose, as a model judge would.

Rating = 1 + 5 correct + 2 format + polite + concise: half of the scale is correctness, so style alone ends at 5.

- correct (0 or 1): holds an accepted phrase and no rejected one, as whole words, whatever the case;
- format (0, 0.5, 1): half for starting with a capital and having at least three words, half for a closing mark;
- polite (0 or 1): thanks or an offer;
- concise (0 or 1): at most 14 words, and no three words said twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST = 14
_POLITE = re.compile(r"\b(thank you|thanks|glad to|happy to|let me know|you are welcome)\b", re.IGNORECASE)


def components(answer: str, accept: Sequence[str], reject: Sequence[str]) -> dict[str, float]:
    """Return the components, each from 0 to 1, of one answer."""
    text = " ".join(answer.split())
    words = text.split()
    triples = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    capital = text[:1].isupper() and len(words) >= 3
    closed = text.endswith((".", "!"))
    return {
        "correct": float(any(_holds(text, p) for p in accept) and not any(_holds(text, p) for p in reject)),
        "format": 0.5 * capital + 0.5 * closed,
        "polite": float(bool(_POLITE.search(text))),
        "concise": float(0 < len(words) <= LONGEST and len(set(triples)) == len(triples)),
    }


def rating(parts: Mapping[str, float]) -> int:
    """Return the rating from 1 to 10 of an answer with these components."""
    return int(1 + 5 * parts["correct"] + 2 * parts["format"] + parts["polite"] + parts["concise"])


def rate(question: Mapping[str, Any], turn: int, answer: str, rubric: Mapping[str, Any]) -> str:
    """Return the raw text of a judgment; `turn` is 1 or 2, `rubric` the line of rubric.jsonl of this question.

    The text names the components (`correct: 1, format: 0.5, ...`) and ends with `Rating: [[7]]`.
    """
    entry = rubric["turns"][turn - 1]
    parts = components(answer, entry["accept"], entry["reject"])
    verdict = "answers the request" if parts["correct"] else "does not answer the request"
    named = ", ".join(f"{name}: {value:g}" for name, value in parts.items())
    return (
        f"The assistant {verdict} in turn {turn} of question {question['question_id']}. "
        f"By the rubric: {named}. Rating: [[{rating(parts)}]]"
    )


def _holds(text: str, phrase: str) -> bool:
    """Whether `text` holds `phrase` as whole words."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None
