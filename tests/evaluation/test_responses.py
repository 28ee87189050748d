"""The shared file of responses: claims of threads, processes and the dead; budgets that count what may be paid."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading

import pytest

from trialign.errors import UserError
from trialign.evaluation.responses import Limits, OverBudget, Responses, Stored, Tokens

BOUND = Tokens(100, 50)
FREE = Limits()
CLAIM_AND_DIE = """
import os, sys
from pathlib import Path
from trialign.evaluation.responses import Limits, Responses, Tokens
assert Responses(Path(sys.argv[1])).claim("a", "j", Tokens(100, 50), Limits()).granted
os._exit(0)
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "responses.sqlite"


def test_a_response_is_there_for_whoever_asks_next(file):
    first, second = Responses(file), Responses(file)
    assert first.claim("a", "j", BOUND, FREE).granted
    assert not second.claim("a", "j", BOUND, FREE).granted  # under way
    first.keep("a", "j", {"x": 1}, 10, Stored("text", Tokens(40, 5)))
    assert second.claim("a", "j", BOUND, FREE).stored == Stored("text", Tokens(40, 5)) == second.get("a")
    assert second.spent("j").paid == Tokens(40, 5) and second.spent("other").paid == Tokens()
    assert second.rates("j") == (4.0, 5.0) and second.rates("other") == (None, None)


def test_of_many_threads_one_is_granted(file):
    stored, granted = Responses(file), []
    threads = [
        threading.Thread(target=lambda: granted.append(stored.claim("a", "j", BOUND, FREE).granted)) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(granted) == [False] * 19 + [True]


def test_a_claim_that_is_given_back_costs_nothing_and_one_that_broke_off_its_bound(file):
    stored = Responses(file)
    stored.claim("a", "j", BOUND, FREE)
    assert stored.spent("j").claimed == BOUND
    stored.release("a")
    assert stored.spent("j").most == Tokens()
    stored.claim("a", "j", BOUND, FREE)
    stored.lose("a")
    assert stored.spent("j").lost == BOUND == stored.spent("j").most
    assert stored.claim("a", "j", BOUND, FREE).granted


def test_what_a_dead_process_had_claimed_is_lost_and_asked_for_again(file):
    subprocess.run([sys.executable, "-c", CLAIM_AND_DIE, str(file)], check=True)
    stored = Responses(file)
    assert stored.spent("j").claimed == BOUND
    assert stored.claim("a", "j", BOUND, FREE).granted
    assert stored.spent("j").lost == BOUND == stored.spent("j").claimed


def test_a_claim_of_another_host_is_one_line(file):
    stored = Responses(file)
    holder = json.dumps({"host": "elsewhere", "pid": 7, "birth": "1", "job": None})
    with sqlite3.connect(file) as connection:
        connection.execute("INSERT INTO claims VALUES ('a', 'j', ?, 1, 1)", (holder,))
    connection.close()
    with pytest.raises(UserError, match="process 7 on host elsewhere, and whether it lives cannot be told"):
        stored.claim("a", "j", BOUND, FREE)


@pytest.mark.parametrize(
    "limits",
    [Limits(max_tokens=320), Limits(price_in=1e4, price_out=2e4, max_cost=4.2)],  # two requests at most: 2 USD each
)
def test_a_budget_waits_for_what_is_under_way_and_ends_where_nothing_is(file, limits):
    stored = Responses(file)
    assert stored.claim("a", "j", BOUND, limits).granted
    assert stored.claim("b", "j", BOUND, limits).granted
    third = stored.claim("c", "j", BOUND, limits)
    assert not third.granted and not third.stored  # the first two may take less than they could
    stored.keep("a", "j", {}, 1, Stored("", Tokens(10, 5)))
    assert stored.claim("c", "j", BOUND, limits).granted
    stored.keep("b", "j", {}, 1, Stored("", BOUND))
    stored.keep("c", "j", {}, 1, Stored("", BOUND))
    with pytest.raises(OverBudget):
        stored.claim("d", "j", BOUND, limits)
    assert stored.claim("d", "another", BOUND, limits).granted  # each judge has its own


def test_a_dead_claim_does_not_keep_a_budget_waiting(file):
    subprocess.run([sys.executable, "-c", CLAIM_AND_DIE, str(file)], check=True)
    with pytest.raises(OverBudget):
        Responses(file).claim("b", "j", BOUND, Limits(max_tokens=200))


def test_a_file_that_is_no_database_is_one_line(file):
    file.write_text("not a database, but long enough to look at" * 100)
    with pytest.raises(UserError, match="stored responses cannot be opened"):
        Responses(file)
