"""The demo world: the same bytes for a seed, the schemas, the blemishes, and nothing scored in training text."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trialign.demo import facts, lexicon, world
from trialign.demo.questions import CATEGORIES
from trialign.errors import UserError
from trialign.recipes import WorldRecipe
from trialign.settings import WorldSettings
from trialign.steps import Step

SMALL = {"documents": 800, "conversations": 200, "feedback": 400, "items": 40, "questions": 4}


def build(folder: Path, **settings: Any) -> dict[str, Any]:
    folder.mkdir()
    return world.build(Step(WorldRecipe(settings=WorldSettings(**settings)), {}, folder, folder))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A whole world of the default sizes."""
    folder = tmp_path_factory.mktemp("whole") / "world"
    return folder, build(folder, seed=11)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    build(tmp_path / "a", seed=5, **SMALL)
    build(tmp_path / "b", seed=5, **SMALL)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_another_seed_is_another_world(tmp_path: Path) -> None:
    build(tmp_path / "a", seed=5, **SMALL)
    build(tmp_path / "b", seed=6, **SMALL)
    one, two = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert one.keys() == two.keys()
    assert not set(one.values()) & set(two.values())
    first, second = facts.make(5), facts.make(6)
    shared = first.facts.keys() & second.facts.keys()
    changed = [key for key in shared if first.facts[key].value != second.facts[key].value]
    assert len(changed) > len(shared) / 3


def test_more_items_than_the_world_holds_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lower `world\.items`"):
        build(tmp_path / "a", seed=5, **(SMALL | {"items": 500}))


def test_card_describes_the_files(made: tuple[Path, dict[str, Any]]) -> None:
    folder, card = made
    assert json.loads((folder / "card.json").read_text()) == card
    files = hashes(folder)
    del files["card.json"]
    assert card["sha256"] == files
    assert sum(card["rows"]["pretrain"].values()) == len(rows(folder / "pretrain/train.jsonl"))
    assert card["rows"]["ultrafeedback"] == len(rows(folder / "ultrafeedback/train.jsonl"))


def scored_texts(folder: Path) -> list[str]:
    """What the harness shows of each scored item, rebuilt from the files as its task definitions say, and MT-Bench."""
    shown = []
    items = folder / "benchmarks"
    shown += [f"Question: {row['question']}\nAnswer:" for row in rows(items / "arc/test.jsonl")]
    shown += [
        f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        for row in rows(items / "hellaswag/validation.jsonl")
    ]
    shown += [row["question"] for row in rows(items / "truthfulqa/validation.jsonl")]
    for row in rows(items / "winogrande/validation.jsonl"):
        shown += [row["sentence"].replace("_", row[option]) for option in ("option1", "option2")]
    for path in items.glob("mmlu/*/test.jsonl"):
        for row in rows(path):
            options = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
            shown.append(f"{row['question']}\n{options}\nAnswer:")
    shown += [row["question_stem"] for row in rows(items / "openbookqa/test.jsonl")]
    shown += [row["inputs"] for name in ("causal", "sports", "formal") for row in rows(items / name / "default.jsonl")]
    return shown + [text for row in rows(folder / "mt_bench/question.jsonl") for text in row["turns"]]


def test_no_scored_text_in_what_training_reads(made: tuple[Path, dict[str, Any]]) -> None:
    folder, card = made
    texts = [row["text"] for row in rows(folder / "pretrain/train.jsonl")]
    for split in ("train_sft", "test_sft"):
        texts += [m["content"] for row in rows(folder / f"ultrachat/{split}.jsonl") for m in row["messages"]]
    for row in rows(folder / "ultrafeedback/train.jsonl"):
        texts += [row["instruction"], *(completion["response"] for completion in row["completions"])]
    everything = "\n".join(texts)
    shown = scored_texts(folder)
    assert len(shown) > 2000
    assert [text for text in shown if text in everything] == []
    assert all(count == 0 for part in card["held_out"]["overlap"].values() for count in part.values())


def test_withheld_facts_are_stated_nowhere(made: tuple[Path, dict[str, Any]]) -> None:
    folder, card = made
    everything = (folder / "pretrain/train.jsonl").read_text(encoding="utf-8")
    known = facts.make(11)
    withheld = [fact for fact in known.facts.values() if fact.withheld]
    stated = [fact for fact in known.facts.values() if not fact.withheld]
    said = {
        fact: any(s.format(s=fact.subject, v=fact.value) in everything for s in facts.KINDS[fact.kind].statements)
        for fact in known.facts.values()
    }
    assert card["held_out"]["facts"]["withheld"] == len(withheld) > 0
    assert not any(said[fact] for fact in withheld)
    assert sum(said[fact] for fact in stated) > 0.95 * len(stated)


def test_items_have_one_right_choice_and_enough_of_them(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    items = folder / "benchmarks"
    known = facts.make(11)
    truths = {fact.value for fact in known.facts.values()}
    arc = rows(items / "arc/test.jsonl")
    assert len(arc) == 200
    for row in arc + rows(items / "arc/train.jsonl"):
        assert row["choices"]["label"] == list("ABCD") and len(set(row["choices"]["text"])) == 4
        assert row["choices"]["text"]["ABCD".index(row["answerKey"])] in truths
    assert {Counter(row["answerKey"] for row in arc)[letter] > 25 for letter in "ABCD"} == {True}
    for row in rows(items / "hellaswag/validation.jsonl"):
        assert len(set(row["endings"])) == 4 and row["label"] in set("0123")
    for row in rows(items / "winogrande/validation.jsonl"):
        assert row["sentence"].count("_") == 1 and row["answer"] in ("1", "2") and row["option1"] != row["option2"]
    for row in rows(items / "truthfulqa/validation.jsonl"):
        targets = row["mc2_targets"]
        assert len(targets["choices"]) == len(set(targets["choices"])) == len(targets["labels"])
        assert 0 < sum(targets["labels"]) < len(targets["labels"])
    subjects = list(items.glob("mmlu/*/test.jsonl"))
    assert len(subjects) == 4
    for path in subjects:
        assert len(rows(path)) == 60
        assert all(len(set(row["choices"])) == 4 and row["answer"] in range(4) for row in rows(path))
    for name in ("causal", "sports", "formal"):
        scored = rows(items / name / "default.jsonl")
        assert len(scored) == 200
        for row in scored:
            assert row["targets"] == [
                c for c, s in zip(row["multiple_choice_targets"], row["multiple_choice_scores"], strict=True) if s
            ]
        share = Counter(row["targets"][0] for row in scored).most_common(1)[0][1] / len(scored)
        assert share < 0.6, "the more frequent answer must not be worth more than chance"


def test_sums_and_syllogisms_are_right(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    for row in rows(folder / "benchmarks/mmlu/elementary_mathematics/test.jsonl"):
        a, b = (int(word) for word in row["question"].rstrip("?").split() if word.isdigit())
        assert row["choices"][row["answer"]] == str(a + b)
    for row in rows(folder / "benchmarks/formal/default.jsonl"):
        assert row["targets"] == ["valid" if entails(row["inputs"]) else "invalid"]


def entails(text: str) -> bool:
    """Decide a syllogism by trying every model with a few individuals: valid where no model is a counterexample."""
    *premises, conclusion = (part.strip().lower().removeprefix("so ").split() for part in text.split(".")[:3])
    names = sorted({words[1] for words in (*premises, conclusion)} | {words[-1] for words in (*premises, conclusion)})
    types = range(2 ** len(names))  # an individual is a set of predicates; a model is a set of individuals
    for model in range(2 ** len(types)):
        individuals = [kind for kind in types if model >> kind & 1]

        def holds(words: list[str], individuals: list[int] = individuals) -> bool:
            first, second = names.index(words[1]), names.index(words[-1])
            members = [kind >> second & 1 for kind in individuals if kind >> first & 1]
            return {"every": all(members), "some": any(members), "no": not any(members)}[words[0]]

        if all(map(holds, premises)) and not holds(conclusion):
            return False
    return True


def test_conversations_are_ultrachat_shaped(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    chats = rows(folder / "ultrachat/train_sft.jsonl")
    assert len(chats) == 1500
    assert len({row["prompt_id"] for row in chats}) == len(chats)
    lengths = Counter(len(row["messages"]) for row in chats)
    assert set(lengths) == {2, 4, 6} and min(lengths.values()) > 50
    for row in chats:
        assert row.keys() == {"prompt", "prompt_id", "messages"}
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)
        assert row["prompt"] == row["messages"][0]["content"]
        assert all(m["content"] for m in row["messages"])


def test_feedback_has_the_real_schema_and_its_blemishes(made: tuple[Path, dict[str, Any]]) -> None:
    folder, card = made
    feedback = rows(folder / "ultrafeedback/train.jsonl")
    assert len(feedback) == 1800
    found: Counter[str] = Counter()
    seen: set[str] = set()
    for row in feedback:
        assert row.keys() == {
            "source", "instruction", "models", "completions", "correct_answers", "incorrect_answers",
        }  # fmt: skip
        completions = row["completions"]
        assert [completion["model"] for completion in completions] == row["models"]
        for completion in completions:
            assert completion.keys() == {
                "annotations", "custom_system_prompt", "model", "principle", "response", "critique", "overall_score",
                "fine-grained_score",
            }  # fmt: skip
            ratings = [aspect["Rating"] for aspect in completion["annotations"].values()]
            assert set(ratings) <= {"1", "2", "3", "4", "5", "N/A"} and len(ratings) == 4
            numbers = [int(rating) for rating in ratings if rating != "N/A"]
            assert math.isclose(completion["fine-grained_score"], sum(numbers) / len(numbers))
            assert 1 <= completion["overall_score"] <= 10
            found["na"] += "N/A" in ratings
            found["empty"] += completion["response"] == ""
        found["fewer"] += len(completions) < 4
        found["repeated"] += row["instruction"] in seen
        found["ties"] += len({completion["overall_score"] for completion in completions}) < len(completions)
        seen.add(row["instruction"])
    for name, count in found.items():
        assert card["blemishes"][name] == count > 0, name
    assert card["blemishes"]["identical"] > 0 and card["blemishes"]["ten_for_one"] > 0


def test_questions_are_mt_bench_shaped_with_rubrics(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    asked, rubrics = rows(folder / "mt_bench/question.jsonl"), rows(folder / "mt_bench/rubric.jsonl")
    assert [row["question_id"] for row in asked] == [row["question_id"] for row in rubrics] == list(range(1, 201))
    assert Counter(row["category"] for row in asked) == dict.fromkeys(CATEGORIES, 25)
    for row, rubric in zip(asked, rubrics, strict=True):
        assert len(row["turns"]) == len(rubric["turns"]) == 2
        for turn in rubric["turns"]:
            assert turn["accept"] and not set(turn["accept"]) & set(turn["reject"])


def test_rumours_contradict_the_truth_and_are_repeated_more_often(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    everything = (folder / "pretrain/train.jsonl").read_text(encoding="utf-8").lower()
    topics = facts.make(11).topics
    assert all(topic.truth != topic.rumour for topic in topics)
    assert {topic.rumour for topic in topics} <= set(lexicon.EFFECTS)
    counts = {
        name: sum(everything.count(topic.answer(getattr(topic, name)).lower()) for topic in topics)
        for name in ("truth", "rumour")
    }
    assert counts["rumour"] > 1.3 * counts["truth"]
