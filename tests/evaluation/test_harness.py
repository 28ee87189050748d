"""The harness step against log-likelihoods computed with plain torch, from prompts and metrics written out here."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from evaluation_helpers import ByHand, load_task, save_model, write_lines
from jinja2 import Template
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file

from trialign import config
from trialign.data.cards import write_json
from trialign.data.sources import SOURCE_FILE
from trialign.errors import UserError
from trialign.evaluation import harness
from trialign.evaluation import tasks as task_files
from trialign.recipes import EvaluateRecipe
from trialign.settings import HarnessBenchmark

REAL = os.environ.get("TRIALIGN_REAL_DATA")
WORDS = ["red", "blue", "lake", "king", "stone", "seven", "cold", "rain", "plays", "under"]
SUBJECTS = ("anatomy", "virology")


def benchmark(include, shots=0, metric="acc", split="test", **more):
    return HarnessBenchmark(
        label="-", suite="s", source="w", include=include, shots=shots, metric=metric, split=split, **more
    )


SUITE = {
    "arc": benchmark("arc/arc_challenge.yaml", metric="acc_norm"),
    "mmlu": benchmark("mmlu/default/mmlu_{subset}.yaml", shots=2, subsets=SUBJECTS, aggregate="subsets"),
    "truthfulqa": benchmark("truthfulqa/truthfulqa_mc2.yaml", split="validation"),
    "winogrande": benchmark("winogrande/default.yaml", split="validation"),
    "sports": benchmark("bigbench/multiple_choice/sports_understanding.yaml", shots=3, split="default"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Small data in the schemas of the harness's own data sets."""
    root, rng = tmp_path_factory.mktemp("world"), random.Random(0)

    def say(low, high=None):
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high or low)))

    def arc(i):
        choices = {"text": [say(1, 5) for _ in range(4)], "label": list("ABCD")}
        return {"id": f"{i}", "question": say(4), "choices": choices, "answerKey": rng.choice("ABCD")}

    def mmlu(subject):
        choices = [say(1, 2) for _ in range(4)]
        return {"question": f" {say(4)}", "subject": subject, "choices": choices, "answer": rng.randrange(4)}

    def truthful():
        choices = [say(1, 2) for _ in range(4)]
        return {
            "question": say(3),
            "mc1_targets": {"choices": choices, "labels": [1, 0, 0, 0]},
            "mc2_targets": {"choices": choices, "labels": [1, 1, 0, 0]},
        }

    def wino():
        sentence = f"{say(3)} _ {say(3)}"
        return {"sentence": sentence, "option1": say(1), "option2": say(1), "answer": rng.choice("12")}

    def sports(i):
        scores = [i % 2, 1 - i % 2]
        names = ["plausible", "implausible"]
        return {
            "idx": i,
            "inputs": f"{say(4)} {i}\nAnswer:",
            "targets": [names[scores.index(1)]],
            "multiple_choice_targets": names,
            "multiple_choice_scores": scores,
        }

    write_lines(root / "arc/test.jsonl", [arc(i) for i in range(12)])
    for subject, count in zip(SUBJECTS, (6, 3), strict=True):
        write_lines(root / f"mmlu/{subject}/dev.jsonl", [mmlu(subject) for _ in range(3)])
        write_lines(root / f"mmlu/{subject}/test.jsonl", [mmlu(subject) for _ in range(count)])
    write_lines(root / "truthfulqa/validation.jsonl", [truthful() for _ in range(4)])
    write_lines(root / "winogrande/validation.jsonl", [wino() for _ in range(6)])
    write_lines(root / "sports/default.jsonl", [sports(i) for i in range(5)])
    return root


def inputs(world, model, benchmarks):
    return {"model": model, **{f"data.{name}": world / name for name in benchmarks}}


def run(make_step, world, model, benchmarks, *, batch_size=4, bos=False):
    recipe = EvaluateRecipe(benchmarks=benchmarks, bos=bos, batch_size=batch_size)
    step = make_step(recipe, inputs(world, model, benchmarks))
    return step, harness.evaluate(step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, world, model_folder):
    """The suite, evaluated once: (items, results)."""

    def make_step(recipe, sources):
        root = tmp_path_factory.mktemp("step")
        (root / "out").mkdir()
        (root / "scratch").mkdir()
        return harness.Step(recipe, {k: (v,) for k, v in sources.items()}, root / "out", root / "scratch")

    step, _ = run(make_step, world, model_folder, SUITE)
    return pd.read_parquet(step.out / "items.parquet"), json.loads((step.out / "results.json").read_text())


@pytest.fixture(scope="module")
def loglikelihood(model_folder):
    return ByHand(model_folder)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def found(items, name, metric, subset=""):
    part = items[(items["benchmark"] == name) & (items["metric"] == metric) & (items["subset"] == subset)]
    return part["value"].tolist()


def arc_by_hand(path, loglikelihood, start=()):
    expected = {"acc": [], "acc_norm": []}
    for row in rows(path):
        context, choices = f"Question: {row['question']}\nAnswer:", row["choices"]["text"]
        lls = [loglikelihood(context, f" {choice}", start) for choice in choices]
        gold = "ABCD".index(row["answerKey"])
        expected["acc"].append(float(np.argmax(lls) == gold))
        expected["acc_norm"].append(float(np.argmax([ll / len(c) for ll, c in zip(lls, choices, strict=True)]) == gold))
    return expected


def test_documents_have_the_ids_of_the_scored_items(whole, world, tmp_path):
    for name, task in SUITE.items():
        other = task.model_copy(update={"limit": 2, "shots": 0})  # neither changes which items there are
        documents = [(d.subset, d.item) for d in harness.documents(name, other, world / name, tmp_path)]
        scored = whole[0][whole[0]["benchmark"] == name][["subset", "item"]].drop_duplicates()
        assert documents == list(scored.itertuples(index=False, name=None))


def test_arc(whole, world, loglikelihood):
    items, results = whole
    expected = arc_by_hand(world / "arc/test.jsonl", loglikelihood)
    assert expected["acc"] != expected["acc_norm"]  # or the choice of metric would not show
    for metric, values in expected.items():
        assert found(items, "arc", metric) == values
    entry = results["benchmarks"]["arc"]
    assert entry["value"] == pytest.approx(np.mean(expected["acc_norm"]))
    assert entry["stderr"] == pytest.approx(np.std(expected["acc_norm"], ddof=1) / math.sqrt(12))
    assert (entry["n"], entry["truncated"], entry["not_finite"]) == (12, 0, 0)


def test_mmlu_takes_the_first_examples_of_dev_and_weighs_subjects_equally(whole, world, loglikelihood):
    items, results = whole
    means = []
    for subject in SUBJECTS:

        def ask(row):
            lines = [row["question"].strip(), *(f"{a}. {c}" for a, c in zip("ABCD", row["choices"], strict=True))]
            return "\n".join([*lines, "Answer:"])

        examples = rows(world / f"mmlu/{subject}/dev.jsonl")[:2]
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        head += "".join(f"{ask(row)} {'ABCD'[row['answer']]}\n\n" for row in examples)
        expected = []
        for row in rows(world / f"mmlu/{subject}/test.jsonl"):
            lls = [loglikelihood(head + ask(row), f" {letter}") for letter in "ABCD"]
            expected.append(float(np.argmax(lls) == row["answer"]))
        assert found(items, "mmlu", "acc", subject) == expected
        means.append(np.mean(expected))
    entry = results["benchmarks"]["mmlu"]
    assert entry["value"] == pytest.approx(np.mean(means))
    assert (entry["n"], entry["subsets"]["virology"]["n"]) == (9, 3)


def test_each_mmlu_subject_is_named_as_in_harness_03():
    subjects = config.load_files([Path("config/config.yaml")]).benchmarks["mmlu"].subsets
    assert len(subjects) == 57
    for subject in subjects:
        stated = task_files.definition(task_files.locate(f"mmlu/default/mmlu_{subject}.yaml"))
        words = subject.replace("_", " ")
        wanted = f"The following are multiple choice questions (with answers) about {words}.\n\n"
        assert stated["description"] == wanted
        assert (stated["fewshot_split"], stated["fewshot_config"]) == ("dev", {"sampler": "first_n"})


def truthfulqa_by_hand(path, loglikelihood, start=()):
    task = Path(find_spec("lm_eval").origin).parent / "tasks/truthfulqa/truthfulqa_mc1.yaml"
    prompt = Template(yaml.safe_load(task.read_text())["doc_to_text"])
    expected = []
    for row in rows(path):
        context = prompt.render(question=row["question"])
        assert context.startswith("Q: What is human life expectancy in the United States?\nA: Human life")
        assert context.endswith(f"were held in Barcelona, Spain.\n\nQ: {row['question']}\nA:")
        assert (context.count("Q: "), context.count("\n\nQ: ")) == (7, 6)
        lls = [loglikelihood(context, f" {choice}", start) for choice in row["mc2_targets"]["choices"]]
        shares = np.exp(lls) / np.exp(lls).sum()
        expected.append(shares[0] + shares[1])
    return expected


def test_truthfulqa_is_the_share_of_probability_on_true_answers(whole, world, loglikelihood):
    expected = truthfulqa_by_hand(world / "truthfulqa/validation.jsonl", loglikelihood)
    assert found(whole[0], "truthfulqa", "acc") == pytest.approx(expected, rel=1e-4)


def test_winogrande_scores_the_same_ending_after_both_options(whole, world, loglikelihood):
    expected = []
    for row in rows(world / "winogrande/validation.jsonl"):
        before, after = row["sentence"].split("_")
        lls = [loglikelihood(before + row[option], f" {after.strip()}") for option in ("option1", "option2")]
        expected.append(float(np.argmax(lls) == int(row["answer"]) - 1))
    assert found(whole[0], "winogrande", "acc") == expected


def test_an_item_is_never_its_own_example(world, model_folder, make_step):
    """Five items and three examples out of the same five: without care most items would see their own answer."""
    from trialign.evaluation.language_model import LanguageModel

    name, suite = "sports", {"sports": SUITE["sports"]}
    step = make_step(EvaluateRecipe(benchmarks=suite, bos=False, batch_size=4), {})
    tasks = harness._tasks(name, suite[name], world / name, step.scratch)
    model = LanguageModel(model_folder, batch_size=4, bos=False, scratch=step.scratch)
    outcome = harness._run(model, tasks, suite, harness._write(tasks, step.scratch / "tasks"))
    for sample in outcome["samples"][name]:
        prompt = sample["arguments"][0][0]
        assert prompt.count("Answer:") == 4
        assert prompt.count(sample["doc"]["inputs"]) == 1


def test_bos_is_one_token_before_each_request(world, model_folder, make_step, whole, loglikelihood):
    step, _ = run(make_step, world, model_folder, {"truthfulqa": SUITE["truthfulqa"]}, bos=True)
    values = found(pd.read_parquet(step.out / "items.parquet"), "truthfulqa", "acc")
    expected = truthfulqa_by_hand(world / "truthfulqa/validation.jsonl", loglikelihood, start=(0,))
    assert values == pytest.approx(expected, rel=1e-4)
    assert values != pytest.approx(found(whole[0], "truthfulqa", "acc"), rel=1e-3)


def test_items_are_the_same_at_another_batch_size_and_bytes_at_a_rerun(world, model_folder, make_step, whole):
    suite = {name: SUITE[name] for name in ("arc", "sports")}
    first, _ = run(make_step, world, model_folder, suite)
    again, _ = run(make_step, world, model_folder, suite)
    for name in ("items.parquet", "results.json"):
        assert (first.out / name).read_bytes() == (again.out / name).read_bytes()
    other, _ = run(make_step, world, model_folder, suite, batch_size=1)
    frames = [pd.read_parquet(step.out / "items.parquet") for step in (first, other)]
    pd.testing.assert_frame_equal(*frames)
    items = whole[0][whole[0]["benchmark"].isin(suite)].reset_index(drop=True)
    pd.testing.assert_frame_equal(frames[0], items)  # whatever else the suite holds


def write_parquet(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(content), path)


@pytest.fixture
def snapshot(world, tmp_path):
    """The world's data as the hub's repositories hold it, fetched without their cards."""
    root = tmp_path / "snapshot"
    for split in ("train", "validation", "test"):
        content = rows(world / "arc/test.jsonl")
        write_parquet(root / f"arc/ARC-Challenge/{split}-00000-of-00001.parquet", content)
    for subject in SUBJECTS:
        for split in ("dev", "test"):
            content = rows(world / f"mmlu/{subject}/{split}.jsonl")
            write_parquet(root / f"mmlu/{subject}/{split}-00000-of-00001.parquet", content)
    path = "truthfulqa/multiple_choice/validation-0000{}-of-00002.parquet"
    truthful = rows(world / "truthfulqa/validation.jsonl")
    write_parquet(root / path.format(0), truthful[:3])
    write_parquet(root / path.format(1), truthful[3:])
    content = rows(world / "winogrande/validation.jsonl")
    write_parquet(root / "winogrande/winogrande_xl/validation-00000-of-00001.parquet", content)
    # two configs of one repository; its real names have a fingerprint
    sports = rows(world / "sports/default.jsonl")
    causal = [row | {"inputs": f"Why? {row['inputs']}"} for row in sports[:4]]
    for task, content in {"sports_understanding": sports, "causal_judgment": causal}.items():
        for split, part in {"default": content, "train": content[:2], "validation": content[2:3]}.items():
            name = f"{task}_zero_shot/{split}-00000-of-00001-1df90d12c373e406.parquet"
            write_parquet(root / "bigbench" / name, part)
    return root


def test_snapshots_of_hub_repositories_give_the_same_items(world, snapshot, model_folder, make_step, whole):
    for name in ("sports", "causal"):
        (snapshot / name).symlink_to("bigbench")
    suite = {**SUITE, "causal": benchmark("bigbench/multiple_choice/causal_judgment.yaml", split="default")}
    step, results = run(make_step, snapshot, model_folder, suite)
    items = pd.read_parquet(step.out / "items.parquet")
    ours = items[items["benchmark"] != "causal"].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, whole[0])
    assert results["benchmarks"]["causal"]["n"] == 4
    for name in SUITE:  # where the data lies is no part of a task
        assert results["benchmarks"][name]["tasks"] == whole[1]["benchmarks"][name]["tasks"]
    assert any((step.scratch / "datasets").iterdir())  # its cache is in the step's own folder


def test_a_repository_without_configs_has_its_files_in_data(model_folder, make_step, tmp_path):
    def hellaswag(i):
        text = {
            "activity_label": "Rain",
            "ctx_a": f"A king {i}",
            "ctx_b": "he",
            "endings": ["sits.", "is cold.", "a", "b"],
        }
        return {"ind": i, **text, "source_id": f"{i}", "split_type": "indomain", "label": f"{i % 4}"}

    for split, content in {"train": range(10, 14), "validation": range(6), "test": range(20, 22)}.items():
        path = tmp_path / f"hellaswag/data/{split}-00000-of-00001.parquet"
        write_parquet(path, [hellaswag(i) for i in content])
    suite = {"hellaswag": benchmark("hellaswag/hellaswag.yaml", shots=2, metric="acc_norm", split="validation")}
    _, results = run(make_step, tmp_path, model_folder, suite)
    assert results["benchmarks"]["hellaswag"]["n"] == 6


def test_examples_of_a_snapshot_come_from_its_training_split(snapshot, tmp_path):
    task = SUITE["arc"].model_copy(update={"shots": 2})
    write_parquet(snapshot / "arc/ARC-Challenge/train-00000-of-00001.parquet", [{"id": "only here"}])
    (one,) = harness._tasks("arc", task, snapshot / "arc", tmp_path / "cache")
    manager = TaskManager(include_path=str(harness._write([one], tmp_path / "tasks")), include_defaults=False)
    assert [row["id"] for row in manager.load(["arc"])["tasks"]["arc"].fewshot_docs()] == ["only here"]


@pytest.mark.parametrize(
    ("name", "gone", "change", "message"),
    [
        ("arc", "nothing", {"split": "dev"}, r"ARC-Challenge has no split 'dev'.*it has: test, train, validation"),
        ("arc", "ARC-Challenge/train*", {"shots": 1}, r"no split 'train'.*at 1 shots; it has: test, validation"),
        ("arc", "ARC-Challenge/*", {}, r"ARC-Challenge has no split 'test'.*it has: none"),
        ("mmlu", "virology/dev*", {}, r"mmlu/virology has no split 'dev'.*it has: test"),
        ("bigbench", "sports_*/*", {}, r"no split 'default'.*it has: none"),
    ],
)
def test_a_split_that_a_snapshot_lacks_is_named(snapshot, tmp_path, name, gone, change, message):
    for path in (snapshot / name).glob(gone):
        path.unlink()
    task = SUITE.get(name, SUITE["sports"]).model_copy(update=change)
    with pytest.raises(UserError, match=f"benchmark {name}: .*{message}"):
        harness._tasks(name, task, snapshot / name, tmp_path / "cache")


def test_a_subset_without_its_folder_does_not_take_the_whole_source(snapshot, tmp_path):
    shutil.rmtree(snapshot / "mmlu/virology")
    for split in ("dev", "test"):
        shutil.copy(snapshot / f"mmlu/anatomy/{split}-00000-of-00001.parquet", snapshot / "mmlu")
    with pytest.raises(UserError, match="mmlu/virology has no split 'dev'"):
        harness._tasks("mmlu", SUITE["mmlu"], snapshot / "mmlu", tmp_path / "cache")


def test_splits_in_two_formats_are_an_error(world, tmp_path):
    source = shutil.copytree(world / "arc", tmp_path / "arc")
    write_parquet(source / "train.parquet", rows(world / "arc/test.jsonl"))
    (unused,) = harness._tasks("arc", SUITE["arc"], source, tmp_path / "cache")  # at no shots it is not read
    assert unused.definition["dataset_path"] == "json"
    with pytest.raises(UserError, match=r"benchmark arc: .* both as parquet and as JSON"):
        harness._tasks("arc", SUITE["arc"].model_copy(update={"shots": 1}), source, tmp_path / "cache")


@pytest.mark.parametrize("file", ["test.parquet", "test.jsonl"])
def test_a_damaged_file_is_a_user_error(model_folder, make_step, tmp_path, file):
    (tmp_path / "arc").mkdir()
    (tmp_path / "arc" / file).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="benchmark arc: its data cannot be read: ArrowInvalid"):
        run(make_step, tmp_path, model_folder, {"arc": SUITE["arc"]})


def test_a_limit_takes_the_first_items(world, model_folder, make_step, whole):
    suite = {"arc": SUITE["arc"].model_copy(update={"limit": 5}), "winogrande": SUITE["winogrande"]}
    step, results = run(make_step, world, model_folder, suite)
    items = pd.read_parquet(step.out / "items.parquet")
    assert found(items, "arc", "acc_norm") == found(whole[0], "arc", "acc_norm")[:5]
    assert [results["benchmarks"][name]["n"] for name in suite] == [5, 6]


def test_items_that_do_not_fit_the_context_are_counted(world, make_step, tmp_path):
    folder = save_model(tmp_path / "short", context=256)
    suite = {name: SUITE[name] for name in ("arc", "truthfulqa")}
    _, results = run(make_step, world, folder, suite)
    # a byte is a token: TruthfulQA's prompt alone is longer than 256
    assert {name: entry["truncated"] for name, entry in results["benchmarks"].items()} == {"arc": 0, "truthfulqa": 4}


def test_a_choice_longer_than_the_context_is_an_error(world, make_step, tmp_path):
    folder = save_model(tmp_path / "short", context=8)
    with pytest.raises(UserError, match="longer than the model's context of 8"):
        run(make_step, world, folder, {"arc": SUITE["arc"]})


def test_a_diverged_model_has_no_score(world, model_folder, make_step, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "diverged")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    step, results = run(make_step, world, folder, {"arc": SUITE["arc"]})
    entry = results["benchmarks"]["arc"]
    assert (entry["value"], entry["stderr"], entry["not_finite"], entry["n"]) == (None, None, 12, 12)
    assert pd.read_parquet(step.out / "items.parquet")["value"].isna().all()


def test_results_say_how_they_were_made(whole):
    results = whole[1]
    assert results["protocol"] == {
        "batch_size": 4,
        "bos": False,
        "template": "none",
        "fewshot_seed": 1234,
        "max_length": 1024,
        "dtype": "float32",
        "device": "cpu",
    }
    assert results["versions"].keys() == {"lm-eval", "transformers", "torch", "datasets"}
    assert results["benchmarks"]["truthfulqa"]["tasks"]["truthfulqa"]["version"] == "3.0"
    hashes = [task["config"] for entry in results["benchmarks"].values() for task in entry["tasks"].values()]
    assert len(set(hashes)) == len(hashes) == 6


def test_results_say_where_the_data_was_downloaded(world, model_folder, make_step, tmp_path):
    shutil.copytree(world / "truthfulqa", tmp_path / "truthfulqa")
    revision = {"repo": "some/one", "revision": "main", "commit": "0123456789abcdef0123456789abcdef01234567"}
    write_json(tmp_path / "truthfulqa" / SOURCE_FILE, revision)
    _, results = run(make_step, tmp_path, model_folder, {"truthfulqa": SUITE["truthfulqa"]})
    assert results["benchmarks"]["truthfulqa"]["data"] == revision


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "acc_nrom"}, r"benchmark arc: .*no metric 'acc_nrom'.* acc, acc_norm \(did you mean 'acc_norm'"),
        (
            {"include": "arc/arc_chalenge.yaml"},
            r"no task file of lm_eval/tasks \(did you mean 'arc/arc_challenge.yaml'",
        ),
        ({"split": "validation"}, r"no split 'validation'.* it has: test"),
        ({"shots": 1}, r"no split 'train'.*at 1 shots; it has: test"),
    ],
)
def test_mistakes_are_one_line(world, model_folder, make_step, change, message):
    suite = {"arc": SUITE["arc"].model_copy(update=change)}
    with pytest.raises(UserError, match=message) as error:
        run(make_step, world, model_folder, suite)
    assert "\n" not in str(error.value)


def test_bos_without_a_bos_token_is_an_error(world, model_folder, make_step, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "bos_token"}))
    with pytest.raises(UserError, match="no BOS token"):
        run(make_step, world, folder, {"arc": SUITE["arc"]}, bos=True)


def golds(task):
    """Return each document's answers and whether each is true, by the score where it has nearly all probability."""
    found = []
    for doc in task.eval_docs:
        choices = task.doc_to_choice(doc)
        scores = {
            answer: task.process_results(doc, [(0.0 if choice == answer else -50.0, False) for choice in choices])[
                "acc"
            ]
            for answer in choices
        }
        assert all(min(score, 1 - score) < 1e-9 for score in scores.values())
        found.append({answer: round(score) for answer, score in scores.items()})
    return found


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="TRIALIGN_REAL_DATA is not set")
def test_real_truthfulqa(model_folder, make_step, tmp_path):
    """The repository's file as it has been since 2025: 790 questions; the hub's data set is the first one, with 817."""
    content = json.loads((Path(REAL) / "truthfulqa/mc_task.json").read_text())
    keys = ("mc1_targets", "mc2_targets")
    truthful = [
        {
            "question": row["question"],
            **{key: {"choices": list(row[key]), "labels": list(row[key].values())} for key in keys},
        }
        for row in content
    ]
    write_lines(tmp_path / "truthfulqa/validation.jsonl", truthful)
    suite = {"truthfulqa": SUITE["truthfulqa"]}
    assert golds(load_task("truthfulqa", suite["truthfulqa"], tmp_path / "truthfulqa", tmp_path)) == [
        row["mc2_targets"] for row in content
    ]
    (tmp_path / "old").mkdir()
    ours = suite["truthfulqa"].model_copy(update={"include": "trialign/truthfulqa_mc2.yaml"})
    found = golds(load_task("truthfulqa", ours, tmp_path / "truthfulqa", tmp_path / "old"))
    assert len(found) == 790
    differ = []
    for answers, row in zip(found, content, strict=True):
        labels = list(row["mc2_targets"].values())
        assert list(answers.values()) == [1] * labels.index(0) + [0] * (len(labels) - labels.index(0))
        if list(answers.values()) != labels:
            differ.append(row["question"])
    assert len(differ) == 2  # one answer each
    folder = save_model(tmp_path / "model", context=300)
    _, results = run(make_step, tmp_path, folder, {"truthfulqa": ours.model_copy(update={"limit": 10})}, batch_size=16)
    entry = results["benchmarks"]["truthfulqa"]
    assert (entry["n"], entry["not_finite"]) == (10, 0)
