"""Requests to a judge against FastChat's construction: written out, and the prompts that real judgments carry."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from evaluation_helpers import read_lines, write_lines
from judge_room import PROMPTS, write_questions

from trialign.errors import UserError
from trialign.evaluation import requests
from trialign.evaluation.judge import requests_of
from trialign.evaluation.questions import read_questions
from trialign.evaluation.requests import Prompt
from trialign.settings import JudgeRules

REAL = os.environ.get("TRIALIGN_REAL_DATA")
RULES = JudgeRules(kind="openai", model="gpt-4")


def expected(question, turns, reference, prompts):
    """FastChat's two bodies for one question, by its rules (gen_judgment.py, common.py), written out anew."""
    based = question["category"] in ("math", "reasoning", "coding")
    bodies = []
    for multi in (False, True):
        prompt = prompts[f"single-{'math-' if based else ''}v1{'-multi-turn' if multi else ''}"]
        text = prompt["prompt_template"]
        fields = {"question": question["turns"][0], "answer": turns[0]}
        if multi:
            fields = {f"question_{i + 1}": question["turns"][i] for i in (0, 1)}
            fields |= {f"answer_{i + 1}": turns[i] for i in (0, 1)}
        if based:
            fields |= {f"ref_answer_{i + 1}": reference[i] for i in (0, 1)}
        # all at once, so that a field's own braces stay
        text = re.sub(r"\{(\w+)\}", lambda found, fields=fields: fields[found[1]], text)
        messages = [{"role": "system", "content": prompt["system_prompt"]}, {"role": "user", "content": text}]
        bodies.append({"model": "gpt-4", "messages": messages, "n": 1, "temperature": 0, "max_tokens": 2048})
    return bodies


def golden(folder, answers):
    questions = read_lines(folder / "mt_bench/question.jsonl")
    prompts = {row["name"]: row for row in read_lines(folder / "judge_prompts.jsonl")}
    references = {row["question_id"]: row for row in read_lines(folder / "mt_bench/reference_answer/gpt-4.jsonl")}
    said = {row["question_id"]: row["choices"][0]["turns"] for row in read_lines(answers)}
    nothing = {"choices": [{"turns": ["", ""]}]}
    return [
        body
        for question in questions
        for key in [question["question_id"]]
        for body in expected(question, said[key], references.get(key, nothing)["choices"][0]["turns"], prompts)
    ]


def built(folder, answers, rules=RULES):
    prompt = Prompt(folder)
    asked = requests_of(read_questions(folder), answers, 1)
    return [requests.body(rules, prompt.messages(request)) for request in asked]


def test_bodies_are_fastchats(tmp_path):
    write_questions(tmp_path, 8)
    bodies = built(tmp_path / "questions", tmp_path / "answers.jsonl")
    assert bodies == golden(tmp_path / "questions", tmp_path / "answers.jsonl")
    assert len(bodies) == 16
    assert any("{0} {answer}" in body["messages"][1]["content"] for body in bodies)


def test_the_config_adds_to_a_body_and_leaves_out():
    rules = JudgeRules(
        kind="openai", model="o9", leave_out=("n", "temperature", "max_tokens"), body={"max_completion_tokens": 9}
    )
    assert requests.body(rules, []) == {"model": "o9", "messages": [], "max_completion_tokens": 9}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "[[5]]"}, "[[5]]"),
        ({"content": None, "refusal": "no"}, ""),
        (None, ""),
        ({"content": [{"type": "text", "text": "[["}, {"type": "text", "text": "5]]"}, {"type": "image"}]}, "[[5]]"),
        ({"content": "half \ud83d"}, "half ?"),
    ],
)
def test_whatever_a_server_says_is_text(message, text):
    assert requests.content({"choices": [{"message": message}]}) == text


def test_a_key_is_of_all_that_is_asked():
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": 0}
    keys = {
        requests.key("j", body, (0, 0, 0)),
        requests.key("k", body, (0, 0, 0)),
        requests.key("j", body, (1, 0, 0)),
        requests.key("j", body, (0, 1, 0)),
        requests.key("j", body | {"temperature": 1}, (0, 0, 0)),
        requests.key("j", body | {"messages": [{"role": "user", "content": "b"}]}, (0, 0, 0)),
    }
    assert len(keys) == 6
    assert requests.key("j", dict(reversed(body.items())), (0, 0, 0)) in keys


def test_the_digest_follows_prompts_and_references(tmp_path):
    write_questions(tmp_path, 4)
    folder = tmp_path / "questions"
    before = Prompt(folder).digest
    path = folder / "mt_bench/reference_answer/gpt-4.jsonl"
    path.write_text(path.read_text().replace("ref two", "ref three"))
    after = Prompt(folder).digest
    rows = read_lines(folder / "judge_prompts.jsonl")
    rows[0]["system_prompt"] = "Be strict."
    write_lines(folder / "judge_prompts.jsonl", rows)
    assert len({before, after, Prompt(folder).digest}) == 3


def test_what_is_missing_is_named(tmp_path):
    write_questions(tmp_path, 4)
    folder = tmp_path / "questions"
    references = folder / "mt_bench/reference_answer/gpt-4.jsonl"
    write_lines(references, [row for row in read_lines(references) if row["question_id"] != 2])
    with pytest.raises(UserError, match="no reference answer to question 2, which its category needs"):
        built(folder, tmp_path / "answers.jsonl")
    rows = [row for row in read_lines(folder / "judge_prompts.jsonl") if row["name"] != "single-math-v1"]
    write_lines(folder / "judge_prompts.jsonl", rows)
    with pytest.raises(UserError, match=f"no prompt 'single-math-v1'; FastChat's file has .*{list(PROMPTS)[3]}"):
        Prompt(folder)
    (folder / "judge_prompts.jsonl").unlink()
    with pytest.raises(UserError, match=r"judge_prompts\.jsonl: no such file; a judge behind an endpoint needs"):
        Prompt(folder)


@pytest.fixture
def real(tmp_path):
    """FastChat's data folder, of the real files."""
    source, folder = Path(REAL) / "mt_bench", tmp_path / "data"
    (folder / "mt_bench/reference_answer").mkdir(parents=True)
    shutil.copyfile(source / "judge_prompts.jsonl", folder / "judge_prompts.jsonl")
    shutil.copyfile(source / "question.jsonl", folder / "mt_bench/question.jsonl")
    shutil.copyfile(source / "reference_answer_gpt-4.jsonl", folder / "mt_bench/reference_answer/gpt-4.jsonl")
    return folder


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="TRIALIGN_REAL_DATA is not set")
def test_all_real_questions_give_fastchats_bodies(real):
    answers = Path(REAL) / "mt_bench_answers/mistral-orpo-trl.jsonl"
    bodies = built(real, answers)
    assert len(bodies) == 160
    assert bodies == golden(real, answers)


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="TRIALIGN_REAL_DATA is not set")
def test_real_judgments_carry_the_prompts_that_are_built(real, tmp_path):
    """Answers are cut out of the prompts that FastChat stored; put into ours, they give those prompts back."""
    rows = [json.loads(line) for line in (Path(REAL) / "mt_bench_judgments/gpt-4_two_llama3.jsonl").open()]
    stored = {(row["model"], row["question_id"], row["turn"]): row for row in rows}
    for model in sorted({row["model"] for row in rows}):
        answers = []
        for question in read_questions(real):
            number = question["question_id"]
            one, two = (stored[model, number, turn]["user_prompt"] for turn in (1, 2))
            first = one.split("[The Start of Assistant's Answer]\n")[1].rsplit("\n[The End of Assistant's Answer]")[0]
            start = f"### Assistant A:\n{first}\n\n### User:\n{question['turns'][1]}\n\n### Assistant A:\n"
            second = two.split(start)[1].rsplit("\n\n<|The End of Assistant A's Conversation with User|>")[0]
            answers.append({"question_id": number, "model_id": model, "choices": [{"turns": [first, second]}]})
        write_lines(tmp_path / "answers.jsonl", answers)
        prompt = Prompt(real)
        for request in requests_of(read_questions(real), tmp_path / "answers.jsonl", 1):
            row = stored[model, request.question["question_id"], request.turn]
            assert row["judge"][1] == prompt.name(request)
            assert row["user_prompt"] == prompt.messages(request)[1]["content"]
