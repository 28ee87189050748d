"""What a step tells of itself: at most every few seconds, whole, the first word and the last at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from trialign import progress
from trialign.progress import Progress


def test_words_are_written_at_most_every_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    one = Progress(tmp_path)
    seen = []
    for done in range(11):  # a unit each second
        one.tell(done, 10, "steps", loss=1.0 / (done + 1))
        told = progress.read(tmp_path)
        assert told["loss"] == 1.0 / (told["done"] + 1)
        seen.append(told["done"])
        now += 1.0
    assert seen == [0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 10]
    assert [path.name for path in tmp_path.iterdir()] == [progress.FILE]


def test_nothing_fails_where_nothing_can_be_written_or_read(tmp_path: Path) -> None:
    Progress(tmp_path / "absent").tell(1, 2, "steps")
    assert progress.read(tmp_path / "absent") == {}
    (tmp_path / progress.FILE).write_text('{"done": 1, "o')
    assert progress.read(tmp_path) == {}
