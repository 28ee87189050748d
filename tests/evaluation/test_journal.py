"""The journal: what is appended is there at the next start, what a kill or a dead host spoilt is not."""

from __future__ import annotations

import math

import pytest

from trialign.evaluation.journal import Journal

RECORDS = [{"n": 1, "text": "größer\r\n\u2028"}, {"n": 2, "values": [[-0.1, True], [-math.inf, False]]}, {"n": 3}]


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(RECORDS[:1])
    journal.append(RECORDS[1:])
    return tmp_path / "journal.jsonl"


def test_what_was_appended_is_there_again(path):
    assert Journal(path).records == RECORDS


@pytest.mark.parametrize("cut", [1, 2, 6])
def test_a_torn_last_line_is_dropped_and_the_next_record_stands_on_a_line_of_its_own(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    journal = Journal(path)
    assert journal.records == RECORDS[:2]
    journal.append(RECORDS[2:])
    assert path.read_bytes() == whole


def test_bytes_that_never_reached_the_disk_end_the_journal(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * (len(lines[1]) - 1) + b"\n" + lines[2])
    assert Journal(path).records == RECORDS[:1]
    assert path.read_bytes() == lines[0]


def test_numbers_come_back_bit_for_bit(tmp_path):
    values = [0.1 + 0.2, -1e-310, -0.0, math.nan, 1 / 3]
    Journal(tmp_path / "j").append([{"values": values}])
    (record,) = Journal(tmp_path / "j").records
    assert list(map(float.hex, record["values"])) == list(map(float.hex, values))
