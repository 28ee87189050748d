"""The facts of the demo world: who lives where, what has which property, which rumour contradicts which truth.

Every fact has an exposure (how often texts state it, falling with the rank of its subject), and belongs to one of two
pools. Facts of the `train` pool may be asked about in training texts, chats and feedback; facts of the `scored` pool
are asked about by benchmarks and MT-Bench questions only: texts may state them, but no training text asks about them.
Some scored facts are withheld: nothing states them, and only a regularity (what things of a category
have in common) hints at them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trialign.demo import lexicon

Pool = Literal["train", "scored"]
SCORED = 0.55
REGULAR = 0.75
WITHHELD = 0.15


@dataclass(frozen=True)
class Kind:
    """How one kind of fact is put into words; {s} is the subject and {v} the value.

    noun: how a request names it. statements, questions: full sentences; the first statement is also the answer to a
    question. own: the answer of the subject itself, empty for subjects that cannot speak. No sentence opens with a
    name: to a tokenizer, a word with a space before it and one without are two different words.
    """

    noun: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    own: str = ""


KINDS: dict[str, Kind] = {
    "home": Kind(
        "the home of {s}",
        ("The home of {s} is {v}.", "You can meet {s} in {v}."),
        ("What is the home of {s}?", "Where does {s} live?"),
        "My home is {v}.",
    ),
    "job": Kind(
        "the job of {s}",
        ("The job of {s} is {v}.", "We know that {s} works as a {v}."),
        ("What is the job of {s}?", "What does {s} work as?"),
        "My job is {v}.",
    ),
    "pet": Kind(
        "the pet of {s}",
        ("The pet of {s} is a {v}.", "We know that {s} has a {v}."),
        ("What is the pet of {s}?", "Which animal does {s} have?"),
        "My pet is a {v}.",
    ),
    "food": Kind(
        "the food of {s}",
        ("The food of {s} is {v}.", "For lunch {s} eats {v}."),
        ("What is the food of {s}?", "What does {s} eat?"),
        "My food is {v}.",
    ),
    "sport": Kind(
        "the sport of {s}",
        ("The sport of {s} is {v}.", "On Sunday {s} plays {v}."),
        ("What is the sport of {s}?", "Which sport does {s} play?"),
        "My sport is {v}.",
    ),
    "region": Kind(
        "the region of {s}",
        ("The region of {s} is the {v}.", "The town of {s} lies in the {v}."),
        ("What is the region of {s}?", "Where does the town of {s} lie?"),
    ),
    "good": Kind(
        "the trade of {s}",
        ("The trade of {s} is {v}.", "The town of {s} sells {v}."),
        ("What is the trade of {s}?", "What does the town of {s} sell?"),
    ),
    "founder": Kind(
        "the founder of {s}",
        ("The founder of {s} is {v}.", "The town of {s} was built by {v}."),
        ("What is the founder of {s}?", "Who built the town of {s}?"),
    ),
    "category": Kind(
        "the kind of the {s}",
        ("The {s} is a kind of {v}.", "One {v} is the {s}."),
        ("What is the {s}?",),
    ),
    "part": Kind(
        "the look of the {s}",
        ("The {s} has {v}.", "You know the {s} by {v}."),
        ("What does the {s} have?", "How do you know the {s}?"),
    ),
    "place": Kind(
        "the place of the {s}",
        ("The {s} is found {v}.", "Look for the {s} {v}."),
        ("Where is the {s} found?", "Where do you look for the {s}?"),
    ),
    "use": Kind(
        "the use of the {s}",
        ("The {s} is used {v}.", "People need the {s} {v}."),
        ("What is the {s} used for?", "Why do people need the {s}?"),
    ),
}
PEOPLE_KINDS = ("home", "job", "pet", "food", "sport")
TOWN_KINDS = ("region", "good", "founder")
THING_KINDS = ("part", "place", "use")


@dataclass(frozen=True)
class Fact:
    """One fact. withheld: no text states it."""

    subject: str
    kind: str
    value: str
    pool: Pool
    withheld: bool

    def statement(self, rng: random.Random) -> str:
        """Return one of the sentences that state the fact."""
        return rng.choice(KINDS[self.kind].statements).format(s=self.subject, v=self.value)

    def question(self, rng: random.Random) -> str:
        """Return one of the questions that ask for the value."""
        return rng.choice(KINDS[self.kind].questions).format(s=self.subject)


@dataclass(frozen=True)
class Topic:
    """What happens if you do `action` to `thing`: the truth, and the rumour that is repeated more often."""

    thing: str
    action: str
    truth: str
    rumour: str
    pool: Pool

    def question(self, rng: random.Random) -> str:
        """Return one of the questions that ask for it."""
        return rng.choice(("What happens if you {} the {}?", "If you {} the {}, what happens?")).format(
            self.action, self.thing
        )

    def answer(self, effect: str) -> str:
        """Return the sentence that claims `effect`."""
        return f"If you {self.action} the {self.thing}, {effect}."

    def short(self, effect: str) -> str:
        """Return the sentence that claims `effect` without repeating the question."""
        return f"{effect[0].upper()}{effect[1:]}."


@dataclass(frozen=True)
class Activity:
    """An everyday activity: a name and its steps in order (`takes the pot`)."""

    name: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Everything that is so in one world. exposure: how often texts tell of a subject or an activity, relatively."""

    people: tuple[str, ...]
    towns: tuple[str, ...]
    things: tuple[str, ...]
    exposure: dict[str, float]
    category: dict[str, str]
    facts: dict[tuple[str, str], Fact]
    values: dict[str, tuple[str, ...]]
    topics: tuple[Topic, ...]
    activities: tuple[Activity, ...]

    def of(self, pool: Pool, kinds: tuple[str, ...]) -> list[Fact]:
        """Return the facts of `kinds` in `pool`."""
        return [fact for fact in self.facts.values() if fact.pool == pool and fact.kind in kinds]

    def about(self, subject: str) -> list[Fact]:
        """Return the facts about one subject."""
        return [fact for fact in self.facts.values() if fact.subject == subject]

    def others(self, rng: random.Random, kind: str, value: str, count: int) -> list[str]:
        """Return `count` different wrong values for a fact of `kind` whose value is `value`."""
        return rng.sample([other for other in self.values[kind] if other != value], count)


def _exposures(*ranked: Sequence[str]) -> dict[str, float]:
    """Return the relative frequencies of names, which fall with the rank of each in its sequence."""
    return {name: 1.0 / (1.0 + rank / 12) for names in ranked for rank, name in enumerate(names)}


def _pools(rng: random.Random, count: int) -> list[Pool]:
    """Return `count` pools in random order, `SCORED` of them scored."""
    scored = round(SCORED * count)
    return rng.sample(["scored"] * scored + ["train"] * (count - scored), count)


def make(seed: int) -> Facts:
    """Draw the facts of the world with this seed."""
    rng = random.Random(f"{seed}/facts")
    people = lexicon.people(rng, 60)
    towns = rng.sample(lexicon.TOWNS, 12)
    category = {thing: name for name, things in lexicon.THINGS.items() for thing in things}
    values: dict[str, tuple[str, ...]] = {
        "home": tuple(towns),
        "job": tuple(lexicon.JOBS),
        "pet": tuple(lexicon.PETS),
        "food": tuple(lexicon.FOODS),
        "sport": tuple(lexicon.SPORTS),
        "region": lexicon.REGIONS,
        "good": tuple(lexicon.GOODS),
        "founder": tuple(people[:12]),
        "category": tuple(lexicon.THINGS),
        **lexicon.PROPERTIES,
    }
    known = [(person, kind, rng.choice(values[kind])) for person in people for kind in PEOPLE_KINDS]
    known += [(town, kind, rng.choice(values[kind])) for town in towns for kind in TOWN_KINDS]
    rule = {kind: dict(zip(lexicon.THINGS, rng.sample(values[kind], 8), strict=True)) for kind in THING_KINDS}
    things = rng.sample(sorted(category), len(category))
    for thing in things:
        known.append((thing, "category", category[thing]))
        for kind in THING_KINDS:
            usual = rng.random() < REGULAR
            known.append((thing, kind, rule[kind][category[thing]] if usual else rng.choice(values[kind])))
    facts: dict[tuple[str, str], Fact] = {}
    pools = {kind: iter(_pools(rng, sum(k == kind for _, k, _ in known))) for kind in KINDS}
    for subject, kind, value in known:
        pool = next(pools[kind])
        withheld = pool == "scored" and kind in THING_KINDS and rng.random() < WITHHELD
        facts[subject, kind] = Fact(subject, kind, value, pool, withheld)

    effect = {(name, action): rng.choice(lexicon.EFFECTS) for name in lexicon.THINGS for action in lexicon.ACTIONS}
    deeds = [(thing, action) for thing in things for action in lexicon.ACTIONS]
    topics = []
    for (thing, action), pool in zip(deeds, _pools(rng, len(deeds)), strict=True):
        usual = rng.random() < REGULAR
        truth = effect[category[thing], action] if usual else rng.choice(lexicon.EFFECTS)
        rumour = rng.choice([other for other in lexicon.EFFECTS if other != truth])
        topics.append(Topic(thing, action, truth, rumour, pool))

    every_step = [f"{verb} the {noun}" for verb in lexicon.VERBS for noun in lexicon.OBJECTS]
    names = rng.sample(lexicon.ACTIVITIES, len(lexicon.ACTIVITIES))
    activities = tuple(Activity(name, tuple(rng.sample(every_step, 6))) for name in names)
    exposure = _exposures(people, towns, things, names)
    return Facts(
        tuple(people), tuple(towns), tuple(things), exposure, category, facts, values, tuple(topics), activities
    )
