"""A judge behind a server that speaks the real protocol, fails in every way, and counts what it was asked and paid."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from endpoint_room import KEY, MODEL, serving
from judge_room import published, run, start, write_questions

from trialign import steps
from trialign.evaluation.endpoint import Endpoint, _retry_after
from trialign.evaluation.responses import Responses
from trialign.recipes import JudgeRecipe
from trialign.reporting import explain, verify
from trialign.settings import EndpointSettings, JudgeRules

QUESTIONS = 20
REQUESTS = 2 * QUESTIONS


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """What an undisturbed run publishes, and the hashes of the requests it made."""
    folder = tmp_path_factory.mktemp("clean")
    write_questions(folder, QUESTIONS)
    with serving(folder / "server") as server:
        assert run(folder, server.url) == (0, "")
        answered = [line["body"] for line in server.lines("answered")]
    assert len(answered) == len(set(answered)) == REQUESTS
    return published(folder), set(answered)


@pytest.fixture
def folder(tmp_path):
    write_questions(tmp_path, QUESTIONS)
    return tmp_path


def test_the_models_name_and_its_tokens_are_kept(clean):
    results, card = json.loads(clean[0]["results.json"]), json.loads(clean[0]["card.json"])
    assert results["judge"]["served"] == [MODEL]
    assert card["served"] == {MODEL: REQUESTS}
    assert card["tokens_out"] == 7 * REQUESTS and card["tokens_in"] > 0
    rows = [json.loads(line) for line in clean[0]["judgments.jsonl"].splitlines()]
    assert {row["served"] for row in rows} == {MODEL}
    assert {tuple(row["judge"]) for row in rows if row["turn"] == 2} == {
        ("gpt-test", "single-v1-multi-turn"), ("gpt-test", "single-math-v1-multi-turn"),
    }  # fmt: skip


def test_three_requests_of_ten_fail_in_every_way_and_the_table_is_that_of_a_clean_run(clean, folder):
    with serving(folder / "server", faults=0.3, hang=3, seed=4) as server:
        status, said = run(folder, server.url)
        assert status == 0, said
        failed = {line["what"] for line in server.lines("failed")}
        assert len(failed) >= 6, failed
        assert Counter(line["body"] for line in server.lines("answered")) == Counter(clean[1])
    assert published(folder) == clean[0]


def test_two_that_are_killed_ten_times_pay_for_nothing_that_had_arrived(clean, folder):
    """Two processes on one file of responses, three requests of ten fail, SIGKILL at random moments."""
    chance, killed = random.Random(3), []
    with serving(folder / "server", faults=0.3, latency=0.1, hang=2, seed=1) as server:

        def begin(number):
            return start(folder, server.url, f"judged{number}", {"max_unjudged": 0.05 + number / 100}, concurrency=3)

        running = {number: begin(number) for number in (0, 1)}
        while len(killed) < 10:
            came, end = len(server.lines("came")), time.monotonic() + 60
            while len(server.lines("came")) < came + 2 and time.monotonic() < end:
                time.sleep(0.01)  # they are past their imports
            time.sleep(chance.uniform(0, 0.3))
            victim = chance.choice([0, 1])
            if running[victim].poll() is not None:
                break  # it has finished already
            running[victim].kill()
            killed.append(time.time())
            running[victim].communicate()
            running[victim] = begin(victim)
        assert len(killed) >= 5
        said = [process.communicate(timeout=180)[0] for process in running.values()]
        assert [process.returncode for process in running.values()] == [0, 0], said
        seen: dict[str, list[float]] = {}
        for line in server.lines("answered"):
            seen.setdefault(line["body"], []).append(line["at"])
    assert set(seen) == clean[1]
    for times in seen.values():  # answered again only where the response was on its way as its process was killed
        for before in times[:-1]:
            assert any(-1.0 < kill - before < 1.0 for kill in killed)
    for number in (0, 1):
        assert (
            published(folder, f"judged{number}").items()
            >= {name: clean[0][name] for name in ("items.parquet", "judgments.jsonl", "card.json")}.items()
        )


def test_two_processes_on_one_file_of_responses_ask_once(clean, folder):
    with serving(folder / "server", faults=0.2, latency=0.1, hang=2, seed=2) as server:
        both = [start(folder, server.url, f"judged{i}", {"max_unjudged": 0.05 + i / 100}) for i in (0, 1)]
        said = [process.communicate(timeout=180)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert Counter(line["body"] for line in server.lines("answered")) == Counter(clean[1])
    for i in (0, 1):
        found = published(folder, f"judged{i}")
        assert {name: found[name] for name in ("items.parquet", "judgments.jsonl", "card.json")} == {
            name: clean[0][name] for name in ("items.parquet", "judgments.jsonl", "card.json")
        }


def test_a_second_run_needs_neither_server_nor_key(clean, folder, monkeypatch):
    with serving(folder / "server") as server:
        assert run(folder, server.url)[0] == 0
    for path in (folder / "root/.store").iterdir():
        path.rename(folder / "gone")
    assert run(folder, "http://127.0.0.1:9/v1", "again", key="NO_SUCH_VARIABLE") == (0, "")
    assert published(folder, "again") == clean[0]


def test_the_key_is_in_no_file_and_in_no_word(folder):
    with serving(folder / "server", faults=0.3, hang=2) as server:
        assert run(folder, server.url)[0] == 0
    with serving(folder / "refusing", refuse="400") as server:  # this one says the key back
        status, said = run(folder, server.url, "refused", {"temperature": 0.5})
    assert status == 1 and "[key]" in said and KEY not in said
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "responses.sqlite" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_budget_in_tokens_stops_before_it_is_passed_and_keeps_what_was_judged(clean, folder):
    needed = sum(json.loads(clean[0]["card.json"])[name] for name in ("tokens_in", "tokens_out"))
    rules = {"max_tokens": 20}
    with serving(folder / "server") as server:
        status, said = run(folder, server.url, rules=rules, max_tokens=needed // 2)
        assert status == 1 and f"could pass endpoint.max_tokens = {needed // 2}" in said
        paid = sum(line["tokens"] for line in server.lines("answered"))
        assert 0 < paid <= needed // 2
        status, said = run(folder, server.url, rules=rules, max_tokens=10 * needed)
        assert status == 0, said
        assert len(server.lines("answered")) == REQUESTS


def test_a_budget_in_money_counts_both_prices_and_what_broke_off(folder):
    prices = {"price_in": 30.0, "price_out": 60.0}
    with serving(folder / "server", faults=0.4, hang=2, seed=5) as server:
        status, said = run(folder, server.url, max_cost=0.3, concurrency=4, **prices)
        assert status == 1 and "could pass endpoint.max_cost = 0.3" in said
        tokens = [line["tokens"] for line in server.lines("answered")]
    assert tokens
    assert sum(30 * (each - 7) + 60 * 7 for each in tokens) / 1e6 < 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refuse": "401"}, "refuses every request (401: "),
        ({"refuse": "404"}, "refuses every request (404: "),
        ({"refuse": "429", "code": "insufficient_quota"}, "refuses every request (429: "),
        ({"faults": 1.0, "hang": 0}, "failed 2 times on one request, at last: "),
    ],
)
def test_an_endpoint_that_answers_nothing_is_one_line(folder, settings, message):
    with serving(folder / "server", **settings) as server:
        status, said = run(folder, server.url, attempts=2)
    lines = [line for line in said.splitlines() if line.startswith("refused: ")]
    assert status == 1 and len(lines) == 1 and message in lines[0] and "what was judged is kept" in lines[0]


def test_without_a_key_nothing_is_asked(folder):
    with serving(folder / "server") as server:
        status, said = run(folder, server.url, key="NO_SUCH_VARIABLE")
        assert not server.lines()
    assert status == 1 and "the environment variable NO_SUCH_VARIABLE is not set" in said


def test_a_request_that_is_refused_is_an_error_of_its_own_and_says_why(folder):
    with serving(folder / "server", refuse="400") as server:
        status, said = run(folder, server.url)
        assert len(server.lines("refused 400")) == REQUESTS  # once each
    assert status == 1 and f"{REQUESTS} of {REQUESTS} judgments have no usable rating (error: {REQUESTS})" in said
    assert "the endpoint refused one: " in said and "no: Bearer [key]" in said


def test_what_was_refused_is_asked_for_by_the_next_start(clean, folder):
    with serving(folder / "server", refuse="400") as server:
        assert run(folder, server.url)[0] == 1
    with serving(folder / "mended") as server:
        assert run(folder, server.url) == (0, "")
    assert published(folder) == clean[0]


@pytest.mark.parametrize("key", ["two\nlines", "with space", "curly\u2019s"])
def test_what_is_no_key_is_not_repeated(folder, monkeypatch, key):
    monkeypatch.setenv("ODD_KEY", key)
    with serving(folder / "server") as server:
        status, said = run(folder, server.url, key="ODD_KEY")
        assert not server.lines()
    assert status == 1 and "the environment variable ODD_KEY holds no key" in said
    assert "two" not in said and "curly" not in said


def test_openais_address_is_openais_whatever_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-any")
    rules = JudgeRules(kind="openai", model="gpt-4-0613")
    endpoint = Endpoint("j", rules, EndpointSettings(), Responses(tmp_path / "r.sqlite"))
    assert str(endpoint._client.base_url) == "https://api.openai.com/v1/"


def test_an_endpoint_that_takes_one_request_at_a_time_is_waited_for(clean, folder):
    """Ordinary rate limiting, far below the concurrency: no request runs out of its attempts."""
    with serving(folder / "server", interval=0.05) as server:
        assert run(folder, server.url, attempts=2)[0] == 0
        assert len(server.lines("failed interval")) > 5
    assert published(folder) == clean[0]


def test_a_response_without_a_rating_is_asked_for_again_as_often_as_the_rule_says(clean, folder):
    with serving(folder / "server", unrated=1) as server:
        status, said = run(folder, server.url)
        assert status == 0, said
        assert len(server.lines("answered")) == 2 * REQUESTS
        found = published(folder)
        status, said = run(folder, server.url, "strict", {"reasks": 0})  # the first responses are stored
        assert len(server.lines("answered")) == 2 * REQUESTS
    assert status == 1 and f"no_rating: {REQUESTS - 1}" in said and "empty_answer: 1" in said
    card = json.loads(found["card.json"])
    assert (card["rows_in"], card["rows"]["judged"], card["dropped"]["no_rating"]) == (80, 40, 39)
    results = json.loads(found["results.json"])["benchmarks"]["mtbench"]
    assert results["value"] == json.loads(clean[0]["results.json"])["benchmarks"]["mtbench"]["value"]


def test_judgments_that_are_repeated_are_requests_of_their_own(folder):
    with serving(folder / "server") as server:
        assert run(folder, server.url, rules={"repeats": 3}) == (0, "")
        assert len(server.lines("answered")) == 3 * REQUESTS
    found = published(folder)
    assert len(found["judgments.jsonl"].splitlines()) == 3 * REQUESTS
    variance = json.loads(found["results.json"])["benchmarks"]["mtbench"]["variance"]
    assert variance["judge"] == 0.0 and variance["question"] > 0  # this judge says the same each time


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read(headers, seconds):
    assert _retry_after(headers) == seconds


def test_retry_after_may_be_a_date():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert _retry_after({"retry-after": date}) == pytest.approx(98, abs=3)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_all_wait_as_long_as_the_endpoint_asks_one_of_them_to(folder, concurrency):
    with serving(folder / "server", pause=2.5, latency=0.3) as server:
        assert run(folder, server.url, concurrency=concurrency)[0] == 0
        refused = server.lines("failed pause")[0]["at"]
        later = [line["at"] - refused for line in server.lines("came") if line["at"] > refused + 0.2]
    assert min(later) > 2.4  # those that were under way already came before


def test_published_judgments_are_held_to_what_the_judge_responded(folder):
    """By `explain --check`: a changed response, or a judgment that was rewritten with its hash, is named."""
    tree, place = folder / "root", "root/runs/m/seed1/mtbench/gpt"
    with serving(folder / "server", unrated=1) as endpoint:  # the first response to each request has no rating
        status, said = run(folder, endpoint.url)
    assert status == 0, said
    recipe = JudgeRecipe(name="gpt", benchmark="mtbench", judge=JudgeRules(kind="openai", model="gpt-test"))
    inputs = {"answers": (folder / "answers.jsonl",), "questions": (folder / "questions",)}
    assert steps.run(recipe, inputs, tree, folder / place) == "restored"
    (tree / "experiment.json").write_text('{"name": "mine"}')
    report = verify.check(explain.explain(folder / place))
    assert report.problems == [] and report.unchecked == []
    judgments, record = folder / place / "judgments.jsonl", folder / place / "run.json"
    lines = judgments.read_text().splitlines()
    changed = json.loads(lines[1])
    changed["judgment"] += "!"
    with judgments.open("w") as file:  # in place: under the store's name too
        file.write("\n".join([lines[0], json.dumps(changed), *lines[2:]]) + "\n")
    told = json.loads(record.read_text())
    told["files"]["judgments.jsonl"] = hashlib.sha256(judgments.read_bytes()).hexdigest()
    with record.open("w") as file:
        json.dump(told, file)
    where = f"question {changed['question_id']}, turn {changed['turn']}"
    (problem,) = verify.check(explain.explain(folder / place)).problems
    assert problem == f"runs/m/seed1/mtbench/gpt/judgments.jsonl: {where}: not what the judge responded"
    (tree / ".shared/responses.sqlite").unlink()
    report = verify.check(explain.explain(folder / place))
    assert report.problems == [] and "no stored responses" in report.unchecked[0]
