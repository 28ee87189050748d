"""Questions that a user asks, with what a right answer must hold: the source of chats, feedback and MT-Bench questions.

A question belongs to one of MT-Bench's eight categories and has two turns. As with benchmark items, the pool decides
what it is about: `train` questions fill conversations and preferences, `scored` questions are asked by MT-Bench only.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from trialign.demo import lexicon
from trialign.demo.benchmarks import pool_of
from trialign.demo.facts import KINDS, PEOPLE_KINDS, THING_KINDS, TOWN_KINDS, Fact, Facts, Pool, Topic


@dataclass(frozen=True)
class Turn:
    """One request and its answers: `right` and `wrong` are full sentences, the `_short` ones only the value.

    accept: phrases of which a correct answer holds one. reject: phrases that no correct answer holds.
    """

    text: str
    right: str
    right_short: str
    wrong: str
    wrong_short: str
    accept: tuple[str, ...]
    reject: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A two-turn question of a category."""

    category: str
    turns: tuple[Turn, Turn]


def _fact_turn(facts: Facts, rng: random.Random, fact: Fact, text: str, template: str) -> Turn:
    """Return the turn that asks for a fact by `text`; `template` is the sentence with {s} and {v}."""
    (wrong,) = facts.others(rng, fact.kind, fact.value, 1)
    others = tuple(value for value in facts.values[fact.kind] if value not in (fact.value, fact.subject))
    right_sentence, wrong_sentence = (template.format(s=fact.subject, v=value) for value in (fact.value, wrong))
    return Turn(text, right_sentence, fact.value, wrong_sentence, wrong, (fact.value,), others)


def _two_facts(facts: Facts, rng: random.Random, pool: Pool, kinds: tuple[str, ...]) -> tuple[Fact, Fact]:
    """Return two facts of the pool, about one subject where it has two."""
    known = facts.of(pool, kinds)
    first = rng.choice(known)
    same = [fact for fact in known if fact.subject == first.subject and fact.kind != first.kind]
    return first, rng.choice(same or [fact for fact in known if fact != first])


def writing(facts: Facts, rng: random.Random, pool: Pool) -> tuple[Turn, Turn]:
    """A sentence about something of a person, then one about something else."""
    first, second = _two_facts(facts, rng, pool, PEOPLE_KINDS)
    asks = ("Write a sentence about {}.", "Now write a sentence about {}.")
    one, two = (
        _fact_turn(
            facts, rng, fact, ask.format(KINDS[fact.kind].noun.format(s=fact.subject)), KINDS[fact.kind].statements[0]
        )
        for fact, ask in zip((first, second), asks, strict=True)
    )
    return one, two


def roleplay(facts: Facts, rng: random.Random, pool: Pool) -> tuple[Turn, Turn]:
    """Pretend to be a person and speak about oneself."""
    first, second = _two_facts(facts, rng, pool, PEOPLE_KINDS)
    asks = ("Pretend to be {s}. What is your {w}?", "You are still {s}. What is your {w}?")
    one, two = (
        _fact_turn(facts, rng, fact, ask.format(s=fact.subject, w=fact.kind), KINDS[fact.kind].own)
        for fact, ask in zip((first, second), asks, strict=True)
    )
    return one, two


def _order(facts: Facts, rng: random.Random, pool: Pool) -> Turn:
    while True:
        who = rng.sample(range(len(facts.people)), 3)
        if pool_of(*who) == pool:
            break
    a, b, c = (facts.people[i] for i in who)
    more, most, least = rng.choice((("older", "oldest", "youngest"), ("taller", "tallest", "shortest")))
    asked, right, wrong = rng.choice(((most, a, c), (least, c, a)))
    text = f"We know that {a} is {more} than {b}, and {b} is {more} than {c}. Who is the {asked}?"
    wrong = rng.choice((wrong, b))
    return Turn(
        text,
        f"The {asked} is {right}.",
        right,
        f"The {asked} is {wrong}.",
        wrong,
        (right,),
        tuple(n for n in (a, b, c) if n != right),
    )


def _sum(facts: Facts, rng: random.Random, pool: Pool) -> Turn:
    while True:
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        if pool_of(a, 2 * b) == pool:
            break
    right = a + b
    wrong = rng.choice([n for n in (right - 2, right - 1, right + 1, right + 2) if n > 0 and n not in (a, b)])
    others = tuple(str(n) for n in range(1, 21) if n not in (a, b, right))
    sentence = f"The sum of {a} and {b} is"
    return Turn(
        f"What is the sum of {a} and {b}?",
        f"{sentence} {right}.",
        str(right),
        f"{sentence} {wrong}.",
        str(wrong),
        (str(right),),
        others,
    )


def _code(facts: Facts, rng: random.Random, pool: Pool) -> Turn:
    words = (*lexicon.FOODS, *lexicon.PETS, *lexicon.GOODS)
    while True:
        at, n = rng.randrange(len(words)), rng.randint(2, 9)
        if pool_of(at, n) == pool:
            break
    word = words[at]
    other = rng.choice([m for m in range(2, 10) if m != n])
    right, wrong = f"print {word} * {n}", f"print {word} * {other}"
    text = f"Write code that prints {word} {n} times."
    return Turn(text, f"Use {right}.", right, f"Use {wrong}.", wrong, (right,), ())


def _reading(facts: Facts, rng: random.Random, pool: Pool) -> Turn:
    while True:
        who, other = rng.sample(range(len(facts.people)), 2)
        what, else_ = rng.sample(range(len(lexicon.FOODS)), 2)
        if pool_of(who, other, what, else_) == pool:
            break
    a, b = (facts.people[i] for i in (who, other))
    bought = {a: lexicon.FOODS[what], b: lexicon.FOODS[else_]}
    asked, distractor = (a, b) if rng.random() < 0.5 else (b, a)
    text = f"Today {a} bought {bought[a]} and {b} bought {bought[b]}. What did {asked} buy?"
    right, wrong = bought[asked], bought[distractor]
    others = tuple(food for food in lexicon.FOODS if food != right)
    return Turn(
        text, f"Today {asked} bought {right}.", right, f"Today {asked} bought {wrong}.", wrong, (right,), others
    )


def _twice(make: Callable[[Facts, random.Random, Pool], Turn]) -> Callable[..., tuple[Turn, Turn]]:
    def draw(facts: Facts, rng: random.Random, pool: Pool) -> tuple[Turn, Turn]:
        return make(facts, rng, pool), make(facts, rng, pool)

    return draw


def _topic_turn(rng: random.Random, topic: Topic) -> Turn:
    wrong = topic.rumour if rng.random() < 0.7 else rng.choice([e for e in lexicon.EFFECTS if e != topic.truth])
    others = tuple(effect for effect in lexicon.EFFECTS if effect != topic.truth)
    return Turn(
        topic.question(rng), topic.answer(topic.truth), topic.truth, topic.answer(wrong), wrong, (topic.truth,), others
    )


def stem(facts: Facts, rng: random.Random, pool: Pool) -> tuple[Turn, Turn]:
    """A property of a thing, then what happens if you do something to a thing."""
    fact = rng.choice(facts.of(pool, THING_KINDS))
    topics = [topic for topic in facts.topics if topic.pool == pool]
    topic = rng.choice([topic for topic in topics if topic.thing == fact.subject] or topics)
    return _fact_turn(facts, rng, fact, fact.question(rng), KINDS[fact.kind].statements[0]), _topic_turn(rng, topic)


def humanities(facts: Facts, rng: random.Random, pool: Pool) -> tuple[Turn, Turn]:
    """Two things about towns."""
    first, second = _two_facts(facts, rng, pool, TOWN_KINDS)

    def ask(fact: Fact) -> str:
        noun = KINDS[fact.kind].noun.format(s=fact.subject)
        return rng.choice((fact.question(rng), f"Tell me about {noun}."))

    one, two = (_fact_turn(facts, rng, fact, ask(fact), KINDS[fact.kind].statements[0]) for fact in (first, second))
    return one, two


CATEGORIES: dict[str, Callable[[Facts, random.Random, Pool], tuple[Turn, Turn]]] = {
    "writing": writing,
    "roleplay": roleplay,
    "reasoning": _twice(_order),
    "math": _twice(_sum),
    "coding": _twice(_code),
    "extraction": _twice(_reading),
    "stem": stem,
    "humanities": humanities,
}


def draw(facts: Facts, rng: random.Random, pool: Pool, category: str) -> Question:
    """Draw a question of one category."""
    return Question(category, CATEGORIES[category](facts, rng, pool))


STYLES = ("bare", "loose", "plain", "polite", "wordy")
CLOSINGS = ("Glad to help!", "Thank you for asking!", "Let me know more.", "Happy to help!")
OPENING = "Well, that is a thing that I had to think about for a while, but I can say it now."


def answer(rng: random.Random, turn: Turn, correct: bool, style: str) -> str:
    """Write an answer in one of `STYLES`.

    bare: hardly more than the value. loose: a sentence without its capital and its period. plain: a sentence.
    polite: a sentence and a friendly word. wordy: a long opening, then the sentence.
    """
    sentence, short = (turn.right, turn.right_short) if correct else (turn.wrong, turn.wrong_short)
    if style == "bare":
        return f"it is {short}"
    if style == "loose":
        return sentence[0].lower() + sentence[1:].rstrip(".")
    if style == "polite":
        return f"{sentence} {rng.choice(CLOSINGS)}"
    if style == "wordy":
        return f"{OPENING} {sentence}"
    return sentence
