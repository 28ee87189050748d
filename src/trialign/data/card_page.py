"""A card as a page: what `card.json` holds, in tables that a person can read. One renderer for the cards of all steps.

Known parts come first, in one order: rows, what was dropped and why, blemishes, overlap with benchmarks, lengths, score
gaps, ties, sources. Whatever else a card holds follows as it is, so that no fact of a card is missing on its page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trialign import pages

TITLES = {
    "triples": "Triples",
    "chat": "Conversations",
    "answers": "Answers",
    "judgments": "Judgments",
}
QUANTILES = ("min", "p5", "p50", "mean", "p95", "p99", "max")
# what the names of counts mean; a name that says it all has no line here
MEANINGS = {
    "excluded_source": "its source is left out by the config (exclude_sources)",
    "no_prompt": "the prompt is missing, blank or not Unicode",
    "fewer_than_three_usable": "fewer than three different responses with text and score",
    "all_scores_equal": "the best score is not above the worst",
    "fewer_completions_than_models": "the authors' builder fails on such a row",
    "no_score_or_no_text": "the authors' builder fails on such a row",
    "duplicate_prompt": "another row with this prompt was kept",
    "not_sampled": "usable, beyond the rows asked for",
    "no_messages": "there is no turn",
    "roles": "turns do not alternate between user and assistant, from user",
    "no_text": "a text is missing, blank or not Unicode",
    "ends_with_user": "an odd number of turns: the last one has no answer",
    "duplicate": "another row with this prompt id, or this very conversation, was kept",
    "special_token_text": "a text spells a special token of the tokenizer",
    "prompt_too_long": "the prompt is longer than max_prompt_length",
    "too_long": "prompt and longest response are longer than max_length",
    "no_answer_within_max_length": "nothing to train on within max_length",
    "ten_for_one": "completions: a score of 10 beside a mean rating of at most 2 (see rules)",
    "ten_in_doubt": "completions: a score of 10 beside a mean rating above 2 and up to 4; left as it is",
    "ten_without_ratings": "completions: a score of 10 that no rating can confirm; left as it is",
    "no_score": "completions whose score is no number",
    "same_text": "completions that repeat another's text: counted once, with their mean score",
    "system_turn": "conversations that open with a system turn",
    "empty_system_turn": "of these, with nothing in it",
    "prompt_is_not_first_turn": "the row's `prompt` is not what its first user turn says",
    "no_rating": "no [[rating]] and no [rating] in the judge's response",
    "conflicting": "two different ratings in one response",
    "out_of_scale": "a rating below 1 or above 10",
    "error": "the endpoint refused this request",
    "empty_answer": "no rating, and the answer that was judged is empty",
    "rerun": "a usable rating of an answer that has one already",
}


@dataclass(frozen=True)
class Bar:
    """A distribution as a bar: p5 to p95 and the median, in percent of the width of its group."""

    left: float
    width: float
    median: float


@dataclass(frozen=True)
class Section:
    """A table of a page. `texts` is how many columns at the left are text."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str | Bar, ...]]
    note: str = ""
    texts: int = 1


def render(card: Mapping[str, Any]) -> str:
    """Return the page of a card (see `cards`)."""
    return pages.render("data/card.html.jinja", title=title(card), sections=sections(card))


def title(card: Mapping[str, Any]) -> str:
    """Return what a card is the card of."""
    kind = TITLES.get(card["kind"], card["kind"])
    return kind + (" as tokens" if "tokenizer_sha256" in card else " and benchmarks" if "overlap" in card else "")


def sections(card: Mapping[str, Any]) -> list[Section]:
    """Return the tables of a card's page."""
    rest = {name: value for name, value in card.items() if name != "kind"}
    known = [section for name, part in _PARTS.items() if name in rest for section in part(rest, rest.pop(name))]
    return [*known, *_remaining(rest)]


def _rows(rest: dict[str, Any], rows: Mapping[str, int]) -> Iterator[Section]:
    came = rest.pop("rows_in")
    kept = [(name, _text(count), _share(count, came)) for name, count in rows.items()]
    dropped = sum(rest.get("dropped", {}).values())
    ends = [("dropped", _text(dropped), _share(dropped, came)), ("came in", _text(came), "")]
    yield Section("Rows", ("", "rows", "of those that came in"), [*kept, *ends])


def _counts(title: str, note: str = "") -> Any:
    def part(_: dict[str, Any], counts: Mapping[str, int]) -> Iterator[Section]:
        if counts:
            ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            rows = [(_words(name), MEANINGS.get(name, ""), _text(count)) for name, count in ordered]
            yield Section(title, ("", "meaning", "count"), rows, note, texts=2)

    return part


def _overlap(_: dict[str, Any], overlap: Mapping[str, Any]) -> Iterator[Section]:
    splits = list(overlap["rows"])
    rows = [
        (
            name,
            *(_text(found[key]) for key in ("items", "seen")),
            _share(found["seen"], found["items"]),
            _text(found["short"]),
            *(_text(found["rows"][split]) for split in splits),
        )
        for name, found in overlap["benchmarks"].items()
    ]
    headings = ("benchmark", "items", "seen", "share", "short", *(f"{split} rows that hold some" for split in splits))
    yield Section("Overlap with benchmarks", headings, rows, overlap["rule"])
    held = overlap["sources"]
    if held:
        names = sorted({name for split in held.values() for name in split})
        by_source = [(name, *(_text(held[split].get(name, 0)) for split in splits)) for name in names]
        yield Section("Rows that hold benchmark questions, by source", ("source", *splits), by_source)


def _distributions(title: str) -> Any:
    def part(_: dict[str, Any], values: Mapping[str, Any]) -> Iterator[Section]:
        note = f"In {values['unit']}. " if "unit" in values else ""
        found = list(_leaves(values))
        if not found:
            return
        low = min(0.0, *(q["min"] for _, q in found))
        span = (max(q["p99"] for _, q in found) - low) or 1.0
        rows = [(path, *(_text(q[name]) for name in QUANTILES), _bar(q, low, span)) for path, q in found]
        headings = ("", *QUANTILES, "p5 to p95, median")
        yield Section(title, headings, rows, f"{note}Bars end at the greatest p99.")

    return part


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield (name, quantiles) of every distribution in nested maps."""
    for name, value in values.items():
        if isinstance(value, Mapping) and "p50" in value:
            yield ", ".join((*path, name)), value
        elif isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))


def _bar(quantiles: Mapping[str, float], low: float, span: float) -> Bar:
    left, middle, right = (min(100 * (quantiles[name] - low) / span, 100.0) for name in ("p5", "p50", "p95"))
    return Bar(round(left, 2), round(right - left, 2), round(middle, 2))


def _matrix(title: str) -> Any:
    def part(_: dict[str, Any], columns: Mapping[str, Mapping[str, int]]) -> Iterator[Section]:
        names = sorted({name for column in columns.values() for name in column})
        rows = [(name, *(_text(column.get(name, 0)) for column in columns.values())) for name in names]
        yield Section(title, ("", *columns), rows)

    return part


def _origin(_: dict[str, Any], source: Mapping[str, Any] | None) -> Iterator[Section]:
    if source:
        yield _facts("Source", source)


_PARTS = {
    "rows": _rows,
    "dropped": _counts("Dropped", "Each row that came in and is in no split, by the reason."),
    "blemishes": _counts("Blemishes", "Found on the way, in rows that were kept and in others."),
    "overlap": _overlap,
    "lengths": _distributions("Lengths"),
    "answers": _distributions("Answers of a conversation"),
    "score_gaps": _distributions("Score gaps"),
    "ties": _matrix("Ties"),
    "sources": _matrix("Sources"),
    "source": _origin,
}


def _remaining(rest: Mapping[str, Any]) -> Iterator[Section]:
    """Yield what no part above shows: maps as tables of their own, the others together."""
    single = {name: value for name, value in rest.items() if not isinstance(value, Mapping)}
    if single:
        yield _facts("More", single)
    for name, value in sorted(rest.items()):
        if isinstance(value, Mapping) and value:
            yield _facts(_words(name).capitalize(), value)


def _facts(title: str, values: Mapping[str, Any]) -> Section:
    told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in sorted(values.items())}
    return Section(title, ("", ""), [(_words(name), text) for name, text in told.items()], texts=2)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else ""


def _text(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"
