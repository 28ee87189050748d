"""Answers: against a greedy loop written out in torch, batched and alone, sampled, resumed and killed."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from evaluation_helpers import TEMPLATE, read_lines, save_model, start_again, write_lines
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from trialign import progress
from trialign.errors import UserError
from trialign.evaluation.mtbench import Noise, Prompt, Writer, answer, model_id
from trialign.recipes import AnswerRecipe
from trialign.settings import AnswerSettings

ROOM = 12
QUESTIONS = [
    {"question_id": i, "category": "math" if i % 2 else "stem", "turns": [f"Say {'so ' * i}{i}?", f"And {i}?"]}
    for i in range(1, 8)
]


@pytest.fixture
def questions(tmp_path):
    write_lines(tmp_path / "questions/question.jsonl", QUESTIONS)
    return tmp_path / "questions"


def recipe(batch_size=4, room=ROOM, bos=False, seed=1, choices=1, server=None, **temperatures):
    settings = AnswerSettings(
        max_new_tokens=room, batch_size=batch_size, temperatures=temperatures, choices=choices, server=server
    )
    return AnswerRecipe(answers=settings, bos=bos, seed=seed)


def texts(step):
    return {row["question_id"]: row["choices"][0]["turns"] for row in read_lines(step.out / "answers.jsonl")}


def by_hand(folder, question, room, *, bos=False, stops=(1,)):
    """Answer both turns greedily, token by token, without cache, padding or generation code."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    ids, said = ([0] if bos else []), []
    for turn, request in enumerate(question["turns"]):
        # the template: "U: {request}\nA:"; an answer is closed by EOS and a newline
        before = "</s>\n" if turn else ""
        ids = ids + tokenizer.encode(f"{before}U: {request}\nA:", add_special_tokens=False)
        new = []
        for _ in range(room):
            with torch.no_grad():
                new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] in stops:
                new.pop()
                break
        said.append(tokenizer.decode(new, skip_special_tokens=True).strip())
        ids = ids + tokenizer.encode(f" {said[-1]}", add_special_tokens=False)
    return said


@pytest.mark.parametrize(("batch_size", "bos"), [(1, False), (4, False), (3, True)])
def test_answers_are_those_of_a_plain_greedy_loop(model_folder, questions, make_step, batch_size, bos):
    step = make_step(recipe(batch_size, bos=bos), {"model": model_folder, "questions": questions})
    card = answer(step)
    said = texts(step)
    assert said == {question["question_id"]: by_hand(model_folder, question, ROOM, bos=bos) for question in QUESTIONS}
    assert len({tuple(turns) for turns in said.values()}) > 1
    assert (card["rows_in"], card["rows"]) == (14, {"turn 1": 7, "turn 2": 7})


def test_left_padding_does_not_move_a_phi_either(questions, make_step, tmp_path):
    folder = save_model(tmp_path / "phi", phi=True)
    step = make_step(recipe(), {"model": folder, "questions": questions})
    answer(step)
    assert texts(step) == {question["question_id"]: by_hand(folder, question, ROOM) for question in QUESTIONS}


def test_an_answer_stops_at_each_token_that_the_model_folder_names(model_folder, questions, make_step, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    letter = next(c for turns in (by_hand(folder, q, ROOM) for q in QUESTIONS) for c in turns[0][2:] if c.isascii())
    stop = tokenizer.encode(letter, add_special_tokens=False)[0]
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, stop]}))
    step = make_step(recipe(), {"model": folder, "questions": questions})
    card = answer(step)
    assert texts(step) == {q["question_id"]: by_hand(folder, q, ROOM, stops=(1, stop)) for q in QUESTIONS}
    assert card["ends"]["eos"] >= 1


def test_what_does_not_fit_the_context_is_counted(questions, make_step, tmp_path):
    folder = save_model(tmp_path / "model", context=30)
    step = make_step(recipe(), {"model": folder, "questions": questions})
    card = answer(step)
    # bytes: the prompt of question i is "U: Say " + 3 i + 2 + "\nA:" = 12 + 3 i tokens
    room = {i: min(ROOM, 30 - (12 + 3 * i)) for i in range(1, 8)}
    said = texts(step)
    for question in QUESTIONS:
        first = by_hand(folder, question, max(room[question["question_id"]], 0))[0]
        assert said[question["question_id"]][0] == first
    assert card["ends"]["no_room"] >= sum(value <= 0 for value in room.values()) == 2
    assert card["empty"] >= 2


def test_a_sample_depends_on_its_question_and_the_seed_alone(model_folder, questions, make_step):
    inputs = {"model": model_folder, "questions": questions}
    runs = {}
    for name, asked in {
        "greedy": recipe(),
        "warm": recipe(math=0.8),
        "alone": recipe(1, math=0.8),
        "other seed": recipe(seed=2, math=0.8),
    }.items():
        step = make_step(asked, inputs)
        answer(step)
        runs[name] = texts(step)
    assert runs["warm"] == runs["alone"]
    greedy = {i for i in runs["greedy"] if runs["warm"][i] == runs["greedy"][i]}
    assert {2, 4, 6} <= greedy  # the other category stays greedy in the same batch
    assert not {1, 3, 5, 7} <= greedy
    assert runs["other seed"] != runs["warm"]


def test_noise_makes_samples_of_the_softmax():
    scores, temperature, draws = torch.tensor([[1.0, 0.0, -0.5, 2.0]]), 0.7, 20_000
    noise = Noise([Prompt(1, 0, [], 1, temperature, seed=3)])
    found = torch.bincount(torch.stack([noise(None, scores)[0].argmax() for _ in range(draws)]), minlength=4) / draws
    expected = torch.softmax(scores[0] / temperature, 0)
    for p, q in zip(found.tolist(), expected.tolist(), strict=True):
        assert abs(p - q) < 4 * math.sqrt(q * (1 - q) / draws)


def test_the_file_is_fastchats_and_a_rerun_gives_the_same_bytes(model_folder, questions, make_step):
    steps = [make_step(recipe(stem=0.5), {"model": model_folder, "questions": questions}) for _ in range(2)]
    for step in steps:
        answer(step)
    first, second = ([(step.out / name).read_bytes() for name in ("answers.jsonl", "card.json")] for step in steps)
    assert first == second
    row = read_lines(steps[0].out / "answers.jsonl")[0]
    assert row.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert row["choices"][0].keys() == {"index", "turns"}
    told = progress.read(steps[0].scratch.parent)
    assert told["done"] == told["of"] == 2 * len(read_lines(steps[0].out / "answers.jsonl"))


def test_a_restart_reuses_what_was_written_down(model_folder, questions, make_step, tmp_path):
    inputs = {"model": model_folder, "questions": questions}
    whole = make_step(recipe(), inputs)
    answer(whole)
    scratch = tmp_path / "killed"
    scratch.mkdir()
    lines = (whole.scratch / "turn1.jsonl").read_bytes().splitlines(keepends=True)
    # a first batch of four, then a kill in the middle of a line
    (scratch / "turn1.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:10])
    step = make_step(recipe(), inputs, scratch)
    answer(step)
    assert (step.out / "answers.jsonl").read_bytes() == (whole.out / "answers.jsonl").read_bytes()
    assert (scratch / "turn1.jsonl").read_bytes() == (whole.scratch / "turn1.jsonl").read_bytes()

    planted = json.loads(lines[0]) | {"text": "planted"}
    (scratch / "turn1.jsonl").write_bytes(json.dumps(planted).encode() + b"\n" + b"".join(lines[1:4]))
    again = make_step(recipe(), inputs, scratch)
    answer(again)
    assert texts(again)[planted["question_id"]][0] == "planted"


SCRIPT = """
import sys
from pathlib import Path
from trialign import recipes
from trialign.evaluation.mtbench import answer
from trialign.steps import Step
recipe, model, questions, out, scratch = sys.argv[1:]
inputs = {"model": (Path(model),), "questions": (Path(questions),)}
answer(Step(recipes.parse(recipe), inputs, Path(out), Path(scratch)))
"""


def test_a_killed_process_is_taken_up_and_ends_with_the_same_bytes(model_folder, questions, make_step, tmp_path):
    asked, inputs = recipe(1, 20, math=0.9), {"model": model_folder, "questions": questions}
    whole = make_step(asked, inputs)
    answer(whole)
    scratch, out = tmp_path / "killed", tmp_path / "never"
    scratch.mkdir()
    out.mkdir()
    arguments = [asked.canonical(), model_folder, questions, out, scratch]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, arguments)], env=dict(os.environ))
    journal = scratch / "turn1.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (scratch / "turn2.jsonl").exists()
    step = make_step(asked, inputs, scratch)
    answer(step)
    assert (step.out / "answers.jsonl").read_bytes() == (whole.out / "answers.jsonl").read_bytes()


def test_answering_ends_before_its_job_and_goes_on_in_the_next(
    model_folder, questions, make_step, tmp_path, monkeypatch, one_second_job
):
    asked, inputs = recipe(2, math=0.9), {"model": model_folder, "questions": questions}
    batches, write = [], Writer.write

    def slow(self, prompts):
        batches.append([prompt.question_id for prompt in prompts])
        time.sleep(0.2)
        return write(self, prompts)

    with monkeypatch.context() as patch:
        patch.delenv("SLURM_JOB_ID")
        whole = make_step(asked, inputs)
        answer(whole)
    monkeypatch.setattr(Writer, "write", slow)
    outs = []

    def start():
        step = make_step(asked, inputs, tmp_path / "killed")
        answer(step)
        outs.append(step.out)

    _, starts = start_again(start)
    assert starts > 1
    assert len(batches) == 2 * 4 and sum(map(len, batches)) == 2 * len(QUESTIONS)
    for name in ("answers.jsonl", "card.json"):
        assert (outs[0] / name).read_bytes() == (whole.out / name).read_bytes()


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        (4, "lower answers.batch_size, which is part of every result, or take a larger GPU"),
        (1, "take a larger GPU"),
    ],
)
def test_a_batch_that_does_not_fit_the_gpu_is_one_line(model_folder, questions, make_step, monkeypatch, size, advice):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore.")

    monkeypatch.setattr(Writer, "write", out_of_memory)
    with pytest.raises(UserError) as error:
        answer(make_step(recipe(size), {"model": model_folder, "questions": questions}))
    assert str(error.value) == (
        f"out of GPU memory with {size} at a time (CUDA out of memory. Tried to allocate 20.00 MiB): {advice}"
    )


def test_a_model_is_called_by_its_run(tmp_path):
    assert model_id(tmp_path / "runs/mistral+sft+tpo@alpha=1@beta=0.1/seed3/model") == (
        "mistral+sft+tpo@alpha=1@beta=0.1/seed3"
    )
    assert model_id(tmp_path / "phi") == "phi"


def test_questions_must_be_two_turn_and_unique(model_folder, make_step, tmp_path):
    write_lines(tmp_path / "q/question.jsonl", [{"question_id": 1, "category": "math", "turns": ["One?"]}])
    with pytest.raises(UserError, match=r"question 1 .* 1 turns"):
        answer(make_step(recipe(), {"model": model_folder, "questions": tmp_path / "q"}))
    with pytest.raises(UserError, match="no such file"):
        answer(make_step(recipe(), {"model": model_folder, "questions": tmp_path}))


def test_the_template_of_these_tests_is_what_by_hand_spells_out(model_folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert (tokenizer.chat_template, text) == (TEMPLATE, "U: a\nA: b</s>\nU: c\nA:")


def test_choices_are_answers_with_noise_of_their_own(model_folder, questions, make_step):
    one = make_step(recipe(stem=0.9), {"model": model_folder, "questions": questions})
    three = make_step(recipe(stem=0.9, choices=3), {"model": model_folder, "questions": questions})
    answer(one)
    card = answer(three)
    for question, single, row in zip(
        QUESTIONS, read_lines(one.out / "answers.jsonl"), read_lines(three.out / "answers.jsonl"), strict=True
    ):
        turns = [choice["turns"] for choice in row["choices"]]
        assert [choice["index"] for choice in row["choices"]] == [0, 1, 2]
        assert turns[0] == single["choices"][0]["turns"]
        assert len({tuple(said) for said in turns}) == (1 if question["category"] == "math" else 3)
    assert card["rows"] == {"turn 1": 4 + 3 * 3, "turn 2": 4 + 3 * 3}  # a greedy answer is given once


SERVER = f"{sys.executable} {Path(__file__).with_name('completions_room.py')} {{model}} {{port}}"


def seen_by(step):
    lines = (step.scratch / "server.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("bos", [False, True])
def test_a_server_gets_the_same_tokens_and_gives_the_same_answers(model_folder, questions, make_step, bos):
    step = make_step(recipe(bos=bos, server=SERVER), {"model": model_folder, "questions": questions})
    card = answer(step)
    assert texts(step) == {
        question["question_id"]: by_hand(model_folder, question, ROOM, bos=bos) for question in QUESTIONS
    }
    alone = make_step(recipe(bos=bos), {"model": model_folder, "questions": questions})
    assert card == answer(alone)  # ends and lengths, too
    asked = seen_by(step)
    assert all(one["temperature"] == 0 and one["top_k"] == -1 and one["top_p"] == 1 for one in asked)


def test_a_server_is_told_temperature_and_a_seed_of_the_question(model_folder, questions, make_step):
    step = make_step(recipe(server=SERVER, stem=0.7, choices=2), {"model": model_folder, "questions": questions})
    answer(step)
    asked = seen_by(step)
    assert {one["temperature"] for one in asked} == {0.0, 0.7}
    assert len({one["seed"] for one in asked}) == len(asked) == 2 * (4 + 2 * 3)


def test_a_restart_asks_the_server_for_what_is_missing(model_folder, questions, make_step, tmp_path):
    whole = make_step(recipe(server=SERVER), {"model": model_folder, "questions": questions})
    answer(whole)
    journal = (whole.scratch / "turn1.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/turn1.jsonl").write_text("".join(journal[:3]) + journal[3][:20])
    step = make_step(recipe(server=SERVER), {"model": model_folder, "questions": questions}, tmp_path / "killed")
    answer(step)
    assert len(seen_by(step)) == 4 + 7
    assert texts(step) == texts(whole)


def test_a_server_is_ended_with_its_children(model_folder, questions, make_step, tmp_path):
    script = tmp_path / "wrapped.sh"
    script.write_text(f"#!/bin/sh\n{SERVER.replace('{model}', '$1').replace('{port}', '$2')} &\necho $! > $3\nwait\n")
    command = f"sh {script} {{model}} {{port}} {tmp_path / 'pid'}"
    answer(make_step(recipe(server=command), {"model": model_folder, "questions": questions}))
    status = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    end = time.monotonic() + 30
    while status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-server {model} {port}", "'no-such-server' cannot be started"),
        ("sh -c 'echo no such option; exit 3' {model} {port}", "ended with status 3; .*no such option"),
        ("serve {model}", r"has no \{port\}"),
    ],
)
def test_a_server_that_does_not_serve_is_one_line(model_folder, questions, make_step, command, message):
    with pytest.raises(UserError, match=message):
        answer(make_step(recipe(server=command), {"model": model_folder, "questions": questions}))
