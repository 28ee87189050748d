"""Write the demo world: pre-training texts, conversations, preferences, benchmark items, judged questions, card.

What is where, and in whose schema:

- `pretrain/train.jsonl`: {"text"};
- `ultrachat/{train_sft,test_sft}.jsonl`: HuggingFaceH4/ultrachat_200k;
- `ultrafeedback/train.jsonl`: openbmb/UltraFeedback;
- `benchmarks/<name>/<split>.jsonl`: the data sets that the harness's tasks read;
- `mt_bench/question.jsonl` (FastChat's) and `mt_bench/rubric.jsonl` (what the rubric judge needs);
- `card.json`: counts, blemishes, what is held out, and how often a scored question occurs in training text (never).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trialign.demo import benchmarks, conversations, facts, preferences, questions, texts
from trialign.demo.benchmarks import BENCHMARKS
from trialign.demo.facts import Facts
from trialign.recipes import WorldRecipe
from trialign.settings import WorldSettings
from trialign.steps import Step

SHOTS = 24


def build(step: Step[WorldRecipe]) -> dict[str, Any]:
    """Write the world of `step.recipe.settings` into `step.out`; returns the card."""
    settings, out = step.recipe.settings, step.out
    known = facts.make(settings.seed)
    documents, kinds = texts.make(known, settings.seed, settings.documents)
    _write(out / "pretrain" / "train.jsonl", ({"text": text} for text in documents))
    chats = {
        "train_sft": conversations.make(known, settings.seed, "train_sft", settings.conversations),
        "test_sft": conversations.make(known, settings.seed, "test_sft", settings.test_conversations),
    }
    for split, rows in chats.items():
        _write(out / "ultrachat" / f"{split}.jsonl", rows)
    feedback, blemishes = preferences.make(known, settings.seed, settings.feedback)
    _write(out / "ultrafeedback" / "train.jsonl", feedback)
    scored = _benchmarks(known, settings, out / "benchmarks")
    asked = _mt_bench(known, settings)
    _write(out / "mt_bench" / "question.jsonl", (question for question, _ in asked))
    _write(out / "mt_bench" / "rubric.jsonl", (rubric for _, rubric in asked))

    scored["mt_bench"] = [text for question, _ in asked for text in question["turns"]]
    read = {
        "pretrain": documents,
        "ultrachat": [m["content"] for rows in chats.values() for row in rows for m in row["messages"]],
        "ultrafeedback": [text for row in feedback for text in _texts(row)],
    }
    card = {
        "kind": "world",
        "seed": settings.seed,
        "rows": {
            "pretrain": kinds,
            "ultrachat": {split: len(rows) for split, rows in chats.items()},
            "ultrafeedback": len(feedback),
            "scored": {name: len(held) for name, held in scored.items()},
        },
        "characters": sum(map(len, documents)),
        "blemishes": blemishes,
        "held_out": {
            "facts": _pools(known),
            "overlap": {
                part: {name: _overlap(everything, held) for name, held in scored.items()}
                for part, everything in read.items()
            },
        },
        "sha256": {str(path.relative_to(out)): _hash(path) for path in sorted(out.rglob("*.jsonl"))},
    }
    (out / "card.json").write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return card


def _benchmarks(known: Facts, settings: WorldSettings, folder: Path) -> dict[str, list[str]]:
    """Write every split of every benchmark; return what the scored items show."""
    shown = {}
    for name, benchmark in BENCHMARKS.items():
        rng = random.Random(f"{settings.seed}/benchmarks/{name}")
        count = -(-settings.items * 3 // 10) if name.startswith("mmlu/") else settings.items
        for split in (benchmark.scored, *benchmark.shots):
            is_scored = split == benchmark.scored
            items = benchmarks.draw(name, known, rng, "scored" if is_scored else "train", count if is_scored else SHOTS)
            rows = [_numbered(item.row, f"{name}-{split}-{number}", number) for number, item in enumerate(items)]
            _write(folder / name / f"{split}.jsonl", rows)
            if is_scored:
                shown[name] = [text for item in items for text in item.shown]
    return shown


def _numbered(row: dict[str, Any], identity: str, number: int) -> dict[str, Any]:
    """Return the row with the identifier that its schema has."""
    given = {"id": identity, "ind": number, "idx": number}
    return row | {key: value for key, value in given.items() if key in row}


def _mt_bench(known: Facts, settings: WorldSettings) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the questions and their rubrics; no two questions of a category are the same."""
    rng = random.Random(f"{settings.seed}/mt_bench")
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for category in questions.CATEGORIES:
        drawn: dict[tuple[str, ...], questions.Question] = {}
        while len(drawn) < settings.questions:
            question = questions.draw(known, rng, "scored", category)
            drawn.setdefault(tuple(turn.text for turn in question.turns), question)
        for turns, question in drawn.items():
            identity = 1 + len(asked)
            rubric = [{"accept": list(turn.accept), "reject": list(turn.reject)} for turn in question.turns]
            asked.append(
                (
                    {"question_id": identity, "category": category, "turns": list(turns)},
                    {"question_id": identity, "turns": rubric},
                )
            )
    return asked


def _pools(known: Facts) -> dict[str, int]:
    """Count the facts and topics by pool, and the withheld facts."""
    everything = [*known.facts.values(), *known.topics]
    return {
        "train": sum(fact.pool == "train" for fact in everything),
        "scored": sum(fact.pool == "scored" for fact in everything),
        "withheld": sum(fact.withheld for fact in known.facts.values()),
    }


def _texts(row: Mapping[str, Any]) -> list[str]:
    return [row["instruction"], *(completion["response"] for completion in row["completions"])]


def _overlap(read: Iterable[str], held: Iterable[str]) -> int:
    """Count the held-out texts that occur anywhere in what training reads."""
    everything = "\n".join(read)
    return sum(text in everything for text in set(held))


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
