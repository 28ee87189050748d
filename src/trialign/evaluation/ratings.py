"""Reading a judge's words: the rating, the components it names, and what is wrong where there is no rating.

The patterns are FastChat's (fastchat/llm_judge/common.py: `[[8]]`, else `[8]`), but two different ratings in one text
conflict, where FastChat takes the first, and a rating must lie on the scale. What is not `ok` is counted by reason and
never averaged in. `fastchat` reads a text as FastChat does, for means by its convention: -1 (`UNRATED`) where there is
no rating.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from trialign.errors import UserError

Status = Literal["ok", "no_rating", "conflicting", "out_of_scale", "error", "empty_answer"]
STATUSES: tuple[str, ...] = get_args(Status)
COMPONENTS = ("correct", "format", "polite", "concise")
SCALE = (1.0, 10.0)
ERROR = "$ERROR$"  # what FastChat writes down in place of a response when the judge's endpoint fails
UNRATED = -1.0

_RATING = re.compile(r"\[\[(-?\d+\.?\d*)\]\]")
_FALLBACK = re.compile(r"\[(-?\d+\.?\d*)\]")
_COMPONENT = re.compile(rf"\b({'|'.join(COMPONENTS)}): (\d+(?:\.\d+)?)")


class Rating(NamedTuple):
    """What a judge's text says. `score` is None unless `status` is ok."""

    status: Status
    score: float | None = None
    components: Mapping[str, float] = {}


def parse(text: str, answer: str = "...") -> Rating:
    """Read the raw text of a judgment of `answer`.

    `empty_answer`: there is no rating, and there was nothing to rate. An empty answer that the judge does rate has that
    rating: leaving it out would reward silence.
    """
    if text.strip() == ERROR:
        return Rating("error")
    ratings = {float(number) for number in _RATING.findall(text) or _FALLBACK.findall(text)}
    if not ratings:
        return Rating("no_rating" if answer.strip() else "empty_answer")
    if len(ratings) > 1:
        return Rating("conflicting")
    (score,) = ratings
    if not SCALE[0] <= score <= SCALE[1]:
        return Rating("out_of_scale")
    return Rating("ok", score, {name: float(number) for name, number in _COMPONENT.findall(text)})


def fastchat(text: str) -> float:
    """Return the rating that FastChat reads (common.py:run_judge_single): the first, on the scale or not, or -1."""
    for pattern in (_RATING, _FALLBACK):
        if found := [number for number in pattern.findall(text) if not number.startswith("-")]:
            return float(found[0])
    return UNRATED


def count(ratings: Iterable[Rating]) -> dict[str, int]:
    """Return how many ratings have each status, all statuses named."""
    counts = Counter(rating.status for rating in ratings)
    return {status: counts[status] for status in STATUSES}


def check(counts: Mapping[str, int], max_unjudged: float, where: Any) -> None:
    """Raise UserError, naming the counts, if too large a share is unjudged for a score, or nothing is judged."""
    total, judged = sum(counts.values()), counts.get("ok", 0)
    unjudged = total - judged
    if not judged or unjudged > max_unjudged * total:
        reasons = ", ".join(f"{status}: {n}" for status, n in counts.items() if n and status != "ok")
        raise UserError(
            f"{where}: {unjudged} of {total} judgments have no usable rating ({reasons}), more than max_unjudged = "
            f"{max_unjudged:g} allows: no score; mend the judge, or raise max_unjudged"
        )
