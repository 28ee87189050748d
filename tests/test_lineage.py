"""Lineages: canonical spelling, parse and print inverse, what is refused."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trialign.errors import UserError
from trialign.lineage import MAX_BYTES, Lineage, Stage, read, spell

names = st.from_regex(r"[a-z][a-z0-9_]{0,11}", fullmatch=True)
words = st.from_regex(r"[a-z][a-z0-9_-]{0,11}", fullmatch=True).filter(lambda word: word not in ("true", "false"))
values = st.one_of(
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    words,
)
stages = st.builds(
    lambda name, params: Stage(name, tuple(sorted(params.items()))), names, st.dictionaries(names, values, max_size=3)
)
lineages = st.builds(lambda base, stages: Lineage(base, tuple(stages)), names, st.lists(stages, max_size=3)).filter(
    lambda lineage: len(str(lineage).encode()) <= MAX_BYTES
)


@given(lineages)
def test_parse_and_print_are_inverse(lineage: Lineage) -> None:
    text = str(lineage)
    assert Lineage.parse(text) == lineage
    assert str(Lineage.parse(text)) == text


@given(lineages)
def test_a_lineage_is_a_safe_path_segment(lineage: Lineage) -> None:
    assert not set(str(lineage)) & set(",/ \t\n'\"$&;|<>*?{}\\")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_spelled_exactly_and_shortest(number: float) -> None:
    text = spell(number)
    assert float(text) == number
    plain = f"{Decimal(repr(number)):f}"
    assert len(text) <= min(len(plain), len(repr(number)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (1, "1"),
        (0.1, "0.1"),
        (5e-7, "5e-7"),
        (2e-5, "2e-5"),
        (0.0001, "1e-4"),
        (16, "16"),
        (1000, "1e3"),
        (True, "true"),
    ],
)
def test_canonical_spelling(value: object, text: str) -> None:
    assert spell(value) == text
    assert read(text) == value


def test_many_spellings_have_one_name() -> None:
    spellings = [
        "m+tpo@alpha=1@beta=0.2",
        "m+tpo@beta=0.2@alpha=1.0",
        "m+tpo@beta=2e-1@alpha=1",
        "m+tpo@beta=0.20@alpha=1.00",
    ]
    assert {str(Lineage.parse(text)) for text in spellings} == {"m+tpo@alpha=1@beta=0.2"}


def test_the_parent_is_the_lineage_less_its_last_stage() -> None:
    lineage = Lineage.parse("mistral+sft+tpo@alpha=0.9@beta=0.2")
    assert str(lineage.parent) == "mistral+sft"
    assert str(lineage.parent.parent) == "mistral"
    assert lineage.parent.parent.parent is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+sft",
        "mistral+",
        "Mistral+sft",
        "mistral sft",
        "mistral+tpo@alpha",
        "mistral+tpo@alpha=",
        "mistral+tpo@=1",
        "mistral+tpo@alpha=1,beta=2",
        "mistral+tpo@alpha=1@alpha=2",
        "mistral+tpo@alpha=0x1",
        "../mistral",
        "m+s@a=" + "b" * 300,
    ],
)
def test_what_is_not_a_lineage_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as refusal:
        Lineage.parse(text)
    assert "\n" not in str(refusal.value)
