"""A suite that was killed, or ran out of time, ends with the bytes of an undisturbed one and computes nothing twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from evaluation_helpers import read_lines, save_model, start_again, write_lines
from lm_eval.models.huggingface import HFLM
from transformers import MistralForCausalLM

from trialign import paths, progress, steps
from trialign.errors import UserError
from trialign.evaluation import harness, language_model
from trialign.evaluation.journal import Journal
from trialign.evaluation.language_model import LanguageModel
from trialign.recipes import EvaluateRecipe
from trialign.settings import HarnessBenchmark

WORDS = ["red", "blue", "lake", "king", "stone", "seven", "cold", "rain", "plays", "under"]
FILES = ("items.parquet", "results.json")


def benchmark(include, metric, shots=0, **more):
    return HarnessBenchmark(
        label="-", suite="s", source="w", include=include, metric=metric, split="test", shots=shots, **more
    )


SUITE = {
    "arc": benchmark("arc/arc_challenge.yaml", "acc_norm"),
    "mmlu": benchmark("mmlu/default/mmlu_{subset}.yaml", "acc", shots=1, subsets=("anatomy",)),  # one-token choices
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, model_folder):
    root, rng = tmp_path_factory.mktemp("world"), random.Random(0)

    def say(low, high):
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))

    def arc(i):
        choices = {"text": [say(1, 4) for _ in range(4)], "label": list("ABCD")}
        return {"id": f"{i}", "question": say(2, 6), "choices": choices, "answerKey": rng.choice("ABCD")}

    def mmlu():
        choices = [say(1, 2) for _ in range(4)]
        return {"question": say(2, 6), "subject": "anatomy", "choices": choices, "answer": rng.randrange(4)}

    write_lines(root / "arc/test.jsonl", [arc(i) for i in range(9)])
    for split, count in {"dev": 2, "test": 7}.items():
        write_lines(root / f"mmlu/anatomy/{split}.jsonl", [mmlu() for _ in range(count)])
    return {"model": (model_folder,), **{f"data.{name}": (root / name,) for name in SUITE}}


def recipe(bos=False, batch_size=4):
    return EvaluateRecipe(benchmarks=SUITE, bos=bos, batch_size=batch_size)


def evaluate(inputs, root, made=None):
    """Start the step in the results tree `root`, as the command line does."""
    return steps.run(made or recipe(), inputs, root, root / "output")


def published(root):
    return [(root / "output" / name).read_bytes() for name in FILES]


def journal_of(root):
    """Return the journal of the step at work in `root`."""
    (scratch,) = (root / paths.WORK).glob("*/scratch")
    return scratch / language_model.JOURNAL


def counted(monkeypatch, seconds=0.0):
    """Return a list that fills with what the model reads from now on, in batches that take so many seconds."""
    read, call = [], LanguageModel._model_call

    def _model_call(self, inps, **kwargs):
        read.append(inps.clone())
        time.sleep(seconds)
        return call(self, inps, **kwargs)

    monkeypatch.setattr(LanguageModel, "_model_call", _model_call)
    return read


@pytest.fixture(scope="module")
def whole(tmp_path_factory, inputs):
    """An undisturbed start: (what it published, what the model read)."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        read = counted(patch)
        assert evaluate(inputs, root) == "made"
    return published(root), read


def die_in_call(inputs, root, number):
    """Kill this process as the model is about to read its batch `number`."""
    calls = 0

    def _model_call(self, inps, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return HFLM._model_call(self, inps, **kwargs)

    LanguageModel._model_call = _model_call
    evaluate(inputs, root)


def die_in_line(inputs, root, number):
    """Kill this process while it writes line `number` of its journal."""
    append, appended = Journal.append, 0

    def torn(self, records):
        nonlocal appended
        appended += 1
        if appended < number:
            append(self, records)
            return
        with self._path.open("a") as file:
            file.write(json.dumps(records[0])[:50])
        os.kill(os.getpid(), signal.SIGKILL)

    Journal.append = torn
    evaluate(inputs, root)


def test_a_suite_killed_again_and_again_computes_each_batch_once(inputs, whole, tmp_path, monkeypatch):
    expected, read = whole
    total = len(read)
    assert total > 8
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([harness.__name__])
    ends = [
        (die_in_call, 1, 0),
        (die_in_call, 4, 3),
        (die_in_line, 3, 5),
        (die_in_call, 1, 5),
        (die_in_call, total - 5, total - 1),
    ]
    before = b""
    for die, number, kept in ends:
        process = server.Process(target=die, args=(inputs, tmp_path, number))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        journal = journal_of(tmp_path)
        now = journal.read_bytes() if journal.exists() else b""
        assert now.count(b"\n") == kept
        assert now.startswith(before[: before.rfind(b"\n") + 1])
        before = now
        assert not (tmp_path / "output").exists()

    rest = counted(monkeypatch)
    assert evaluate(inputs, tmp_path) == "made"
    assert published(tmp_path) == expected
    assert len(rest) == 1 and torch.equal(rest[0], read[-1])
    assert not list((tmp_path / paths.WORK).glob("*"))


def test_a_suite_ends_before_its_job_and_goes_on_in_the_next(inputs, whole, tmp_path, monkeypatch, one_second_job):
    expected, once = whole
    read = counted(monkeypatch, seconds=0.15)
    done, starts = start_again(lambda: evaluate(inputs, tmp_path))
    assert done == "made" and starts > 1
    assert published(tmp_path) == expected
    assert len(read) == len(once) and all(map(torch.equal, read, once))


def test_a_journal_of_something_else_is_not_used(inputs, whole, make_step, tmp_path, monkeypatch):
    read, flat = counted(monkeypatch), {name: path for name, (path,) in inputs.items()}
    first = make_step(recipe(), flat)
    harness.evaluate(first)
    total = len(whole[1])
    assert len(read) == len(read_lines(first.scratch / language_model.JOURNAL)) == total
    told = progress.read(first.scratch.parent)
    assert told["done"] == told["of"] == 9 * 4 + 7 * 4 and told["unit"] == "requests"

    def calls(made, version=language_model.version):
        """Return how many batches are computed where the first start's journal is there."""
        read.clear()
        monkeypatch.setattr(language_model, "version", version)
        scratch = shutil.copytree(first.scratch, tmp_path / "copy", dirs_exist_ok=True)
        harness.evaluate(make_step(made, flat, scratch))
        return len(read)

    assert calls(recipe()) == 0
    assert calls(recipe(bos=True)) == total
    assert calls(recipe(batch_size=3)) > total
    assert calls(recipe(), version=lambda name: "another") == total


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batches_and_answers_are_the_harnesss_own(model_folder, tmp_path, monkeypatch, size):
    rng = random.Random(size)

    def ids(low, high):
        return [rng.randint(3, 200) for _ in range(rng.randint(low, high))]

    requests = []
    for _ in range(12):
        context, choices = ids(1, 25), [ids(1, 4) for _ in range(3)]
        requests += [(("text", f"{choice}"), context, choice) for choice in choices]
        requests += [(("text", letter), context, [number]) for number, letter in enumerate("ABCD", 10)]
        requests.append((("text", "again"), context, choices[0]))
        requests.append((("text", "cut elsewhere"), context[:1], context[1:] + choices[1]))
    requests += [(("long", "one"), ids(30, 30), ids(3, 3)) for _ in range(2)]
    rng.shuffle(requests)

    model = LanguageModel(save_model(tmp_path / "m", context=24), batch_size=size, bos=False, scratch=tmp_path)
    requests = [request for request in requests if len(request[2]) <= model.max_length]
    read = counted(monkeypatch)
    theirs = HFLM._loglikelihood_tokens(model, requests, disable_tqdm=True)
    batches = list(read)
    read.clear()
    assert model._loglikelihood_tokens(requests) == theirs
    assert len(read) == len(batches) and all(map(torch.equal, read, batches))


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore.")


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        (4, "lower eval_batch_size, which is part of every result, or take a larger GPU"),
        (1, "take a larger GPU"),
    ],
)
def test_a_batch_that_does_not_fit_the_gpu_is_one_line(inputs, tmp_path, monkeypatch, size, advice):
    monkeypatch.setattr(LanguageModel, "_model_call", out_of_memory)
    with pytest.raises(UserError) as error:
        evaluate(inputs, tmp_path, recipe(batch_size=size))
    assert str(error.value) == (
        f"out of GPU memory with {size} at a time (CUDA out of memory. Tried to allocate 20.00 MiB): {advice}"
    )


def test_a_model_that_does_not_fit_the_gpu_is_one_line(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(MistralForCausalLM, "to", out_of_memory)
    with pytest.raises(UserError, match=r"its weights alone do not fit this GPU \(CUDA .*\); take a larger one$"):
        evaluate(inputs, tmp_path)
