"""Samples follow content and seed, never position."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trialign.data.sampling import Spool, digest, prompt_hash


def fill(path: Path, rows: list[str], seed: int) -> list[str]:
    with Spool(path) as spool:
        for row in rows:
            spool.add(digest(seed, row), digest(row), {"row": row})
        return [out["row"] for out in spool.rows(spool.order(one_per_group=False))]


def test_order_is_that_of_the_keys_and_not_that_of_the_rows(tmp_path: Path) -> None:
    rows = [f"row {i}\n\u2028é" for i in range(300)]
    expected = sorted(rows, key=lambda row: digest(7, row))
    shuffled = random.Random(1).sample(rows, len(rows))
    assert fill(tmp_path / "a", rows, 7) == fill(tmp_path / "b", shuffled, 7) == expected
    assert fill(tmp_path / "c", rows, 8) != expected


def test_one_per_group_keeps_the_smallest_within(tmp_path: Path) -> None:
    with Spool(tmp_path / "s") as spool:
        for group in "ab":
            for within in (3, 1, 2):
                spool.add(digest(group), bytes([within]) * 32, [group, within])
        kept = list(spool.rows(spool.order(one_per_group=True)))
    assert sorted(kept) == [["a", 1], ["b", 1]]


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_different_parts_have_different_digests(left: list[str], right: list[str]) -> None:
    assert (digest(*left) == digest(*right)) == (left == right)


def test_prompt_hash_is_the_sha256_of_the_text() -> None:
    assert prompt_hash("naïve") == hashlib.sha256("naïve".encode()).hexdigest()
