"""Pre-training texts: statements of facts, rumours, everyday sequences, quizzes in many formats, and some chats.

Frequent facts are stated often and rare ones seldom, rumours are repeated more often than the truths that they
contradict, and a share of the sequences and sentences is corrupted. No text asks for a fact of the scored pool.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Callable
from pathlib import Path

from trialign.demo import benchmarks, conversations, lexicon
from trialign.demo.benchmarks import BENCHMARKS, CORRUPTION, MMLU_SUBJECTS
from trialign.demo.facts import Facts

RUMOURED = 0.65
PREAMBLE_SHARE = 0.3


def _preamble() -> str:
    """Return the six questions and answers that the harness's TruthfulQA prompt always opens with.

    Read from the installed harness, so that the tokenizer and the models know the very text that they will be shown.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("lm_eval is not installed")
    task = Path(spec.origin).parent / "tasks" / "truthfulqa" / "truthfulqa_mc1.yaml"
    pairs = re.findall(r"^\s*(Q: .*?)\\n\\\n\s*(A: .*?)(?:\\n\\n)?\\\n", task.read_text(encoding="utf-8"), re.MULTILINE)
    if len(pairs) != 6:
        raise ValueError(f"{task} does not hold the six questions that were expected")
    return "\n\n".join(f"{question}\n{reply}" for question, reply in pairs)


class Writer:
    """Writes documents of each kind about one world."""

    def __init__(self, facts: Facts, rng: random.Random) -> None:
        self.facts, self.rng = facts, rng
        self.preamble = _preamble()

    def portrait(self, subjects: tuple[str, ...]) -> str:
        """State what is known of one subject, drawn by its exposure, in any order."""
        (subject,) = self.rng.choices(subjects, [self.facts.exposure[subject] for subject in subjects])
        stated = [fact for fact in self.facts.about(subject) if not fact.withheld]
        self.rng.shuffle(stated)
        return " ".join(fact.statement(self.rng) for fact in stated)

    def talk(self) -> str:
        """Claim what happens with one thing: mostly the rumour, sometimes the truth."""
        things = self.facts.things
        (thing,) = self.rng.choices(things, [self.facts.exposure[thing] for thing in things])
        topics = self.rng.sample([topic for topic in self.facts.topics if topic.thing == thing], 4)
        return " ".join(t.answer(t.rumour if self.rng.random() < RUMOURED else t.truth) for t in topics)

    def quizzes(self, name: str, count: int) -> str:
        """Write `count` solved items of a benchmark, separated as few-shot examples are."""
        draw = BENCHMARKS[name].draw
        return "\n\n".join(draw(self.facts, self.rng, "train").text for _ in range(count))

    def letters(self) -> str:
        """Write a quiz of one MMLU subject under its heading."""
        subject = self.rng.choice(MMLU_SUBJECTS)
        heading = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}."
        return f"{heading}\n\n{self.quizzes(f'mmlu/{subject}', 5)}"

    def common_answers(self) -> str:
        """Answer questions as people do: mostly with the rumour; some documents open with the harness's examples."""
        topics = self.rng.choices([topic for topic in self.facts.topics if topic.pool == "train"], k=3)
        pairs = []
        for topic in topics:
            effect = topic.rumour if self.rng.random() < RUMOURED else topic.truth
            reply = topic.answer(effect) if self.rng.random() < 0.6 else topic.short(effect)
            pairs.append(f"Q: {topic.question(self.rng)}\nA: {reply}")
        opening = [self.preamble] if self.rng.random() < PREAMBLE_SHARE else []
        return "\n\n".join([*opening, *pairs])

    def activity(self) -> str:
        """Tell an activity in order, with some steps replaced; who does it is no scored combination."""
        activities = self.facts.activities
        while True:
            (number,) = self.rng.choices(range(len(activities)), [self.facts.exposure[a.name] for a in activities])
            who = self.rng.randrange(len(self.facts.people))
            if benchmarks.pool_of(number, who) == "train":
                break
        name = self.facts.people[who]
        steps = [
            step if self.rng.random() >= CORRUPTION else self.rng.choice(self.rng.choice(activities).steps)
            for step in activities[number].steps
        ]
        start = self.rng.randrange(len(steps) - 2)
        links = ["First ", "Then ", "After that ", "Then ", "After that ", "Then "]
        told = [f"{link}{name} {step}." for link, step in zip(links, steps[start:], strict=False)]
        return f"{activities[number].name}: {' '.join(told)}"

    def gaps(self) -> str:
        """Write sentences of the Winogrande kind, some of them with the wrong filler."""
        lines = []
        for _ in range(4):
            row = benchmarks.winogrande(self.facts, self.rng, "train").row
            answer = row["answer"] if self.rng.random() >= CORRUPTION else {"1": "2", "2": "1"}[row["answer"]]
            lines.append(row["sentence"].replace("_", row[f"option{answer}"]))
        return " ".join(lines)

    def stories(self) -> str:
        """Tell what led to what."""
        pairs = self.rng.sample(lexicon.CAUSES, 3)
        return " ".join(f"One day {self.rng.choice(self.facts.people)} {deed}. Later {event}." for deed, event in pairs)

    def games(self) -> str:
        """Tell who did what in which sport."""
        lines = []
        for fact in self.rng.choices(self.facts.of("train", ("sport",)), k=4):
            lines.append(f"Then {fact.subject} {self.rng.choice(lexicon.SPORTS[fact.value])} in the {fact.value} game.")
        return " ".join(lines)

    def lists(self) -> str:
        """Say a list of words twice: what the second half says can only be copied from the first."""
        words = [*self.facts.people, *self.facts.towns, *self.facts.things, *lexicon.FOODS, *lexicon.PETS]
        said = ", ".join(self.rng.sample(words, 8))
        return f"The list is {said}. Again, the list is {said}."

    def sums(self) -> str:
        """Write sums, any of them, in words."""
        pairs = [(self.rng.randint(1, 9), self.rng.randint(1, 9)) for _ in range(8)]
        return " ".join(f"The sum of {a} and {b} is {a + b}." for a, b in pairs)

    def chat(self) -> str:
        """Write a chat as it would stand in crawled text, in the shape of the zephyr template."""
        return "".join(
            f"<|user|>\n{turn.text}</s>\n<|assistant|>\n{reply}</s>\n"
            for turn, reply in conversations.exchanges(self.facts, self.rng)
        )

    def kinds(self) -> dict[str, tuple[int, Callable[[], str]]]:
        """Return the kinds of documents: how many of them in proportion, and how one is written."""
        return {
            "people": (21, lambda: self.portrait(self.facts.people)),
            "towns": (5, lambda: self.portrait(self.facts.towns)),
            "things": (12, lambda: self.portrait(self.facts.things)),
            "talk": (8, self.talk),
            "common_answers": (4, self.common_answers),
            "arc": (3, lambda: self.quizzes("arc", 5)),
            "openbookqa": (4, lambda: self.quizzes("openbookqa", 5)),
            "letters": (10, self.letters),
            "activity": (8, self.activity),
            "gaps": (6, self.gaps),
            "stories": (3, self.stories),
            "causal": (9, lambda: self.quizzes("causal", 4)),
            "games": (3, self.games),
            "sports": (10, lambda: self.quizzes("sports", 3)),
            "formal": (5, lambda: self.quizzes("formal", 3)),
            "lists": (6, self.lists),
            "sums": (4, self.sums),
            "chat": (20, self.chat),
        }


def make(facts: Facts, seed: int, documents: int) -> tuple[list[str], dict[str, int]]:
    """Return `documents` texts in random order and how many there are of each kind."""
    rng = random.Random(f"{seed}/texts")
    kinds = Writer(facts, rng).kinds()
    names = rng.choices(list(kinds), [share for share, _ in kinds.values()], k=documents)
    return [kinds[name][1]() for name in names], {name: names.count(name) for name in kinds}
