"""Prompts on which the bundled checkpoints are measured, by split: held-out templates with held-out items.

Every function draws `n` items with a seeded generator; `train` uses training templates and items (how
well the corpus was learned), `dev` and `test` the ones that the corpus never contains.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from mech_interp.bundled.chat import prompt as chat_prompt
from mech_interp.datasets.lexicon import (
    ATTRACTORS,
    CENTURIES,
    COUNTRIES,
    EVENTS,
    IOI_NAMES_BY_SPLIT,
    NEGATIVE_ADJECTIVES,
    NOUNS,
    OBJECTS,
    PLACES,
    POSITIVE_ADJECTIVES,
    REVIEWED_THINGS,
    START_YEARS,
    VERBS,
    Split,
)
from mech_interp.datasets.lexicon_chat import CHAT_TEMPLATES, ChatRequest, chat_requests
from mech_interp.datasets.templates import (
    AGREEMENT,
    FACTS,
    GREATER_THAN,
    IOI,
    SENTIMENT,
    STATEMENTS,
    TRUTH_FRAMES,
    Relation,
)


class Item(NamedTuple):
    """A prompt, its answer, a foil of the same kind, and the group it is resampled with."""

    prompt: str
    answer: str
    foil: str
    group: str


class YearItem(NamedTuple):
    """A prompt that ends in a century, and the two-digit year that the answer must exceed."""

    prompt: str
    start: int
    group: str


class ChatItem(NamedTuple):
    """A request in the chat format."""

    prompt: str
    request: ChatRequest


def ioi(split: Split, n: int, rng: random.Random) -> list[Item]:
    """Indirect-object prompts, ABBA and BABA in turn; the foil is the repeated name."""
    items = []
    for i in range(n):
        template = IOI[split][i % len(IOI[split])]
        first, second = rng.sample(IOI_NAMES_BY_SPLIT[split], 2)
        receiver, giver = (first, second) if (i // len(IOI[split])) % 2 == 0 else (second, first)
        text = template.format(
            A=first, B=second, S=giver, PLACE=rng.choice(PLACES), OBJECT=rng.choice(OBJECTS)
        )
        items.append(Item(text, f" {receiver}", f" {giver}", f"{template}|{receiver}"))
    return items


def facts(split: Split, relation: Relation, n: int, rng: random.Random) -> list[Item]:
    """Facts of one relation over all countries in turn; the foil is another country's value.

    Answers of two words (continents such as South America) are left out.
    """
    values = {
        c.name: value
        for c in COUNTRIES
        if (value := c.capital if relation == "capital" else getattr(c, relation)) and " " not in value
    }
    order = list(values)
    rng.shuffle(order)
    items = []
    for i in range(n):
        template = FACTS[relation][split][i % len(FACTS[relation][split])]
        country = order[(i // len(FACTS[relation][split])) % len(order)]
        foil = rng.choice([value for value in values.values() if value != values[country]])
        items.append(Item(template.format(COUNTRY=country), f" {values[country]}", f" {foil}", country))
    return items


def greater_than(split: Split, n: int, rng: random.Random) -> list[YearItem]:
    """Years over all start years in turn (02 to 98), held-out events in held-out sentences."""
    starts = list(START_YEARS)
    rng.shuffle(starts)
    items = []
    for i in range(n):
        template, start = rng.choice(GREATER_THAN[split]), starts[i % len(starts)]
        century, event = rng.choice(CENTURIES), rng.choice(EVENTS[split])
        text = template.format(EVENT=event, XX=century, YY=f"{start:02d}")
        items.append(YearItem(text, start, f"{start}"))
    return items


def sentiment(split: Split, n: int, rng: random.Random) -> list[Item]:
    """Stated sentiment, positive and negative in turn."""
    items = []
    for i in range(n):
        template = rng.choice(SENTIMENT[split])
        positive = i % 2 == 0
        adjective = rng.choice(POSITIVE_ADJECTIVES if positive else NEGATIVE_ADJECTIVES)
        text = template.text.format(THING=rng.choice(REVIEWED_THINGS), ADJECTIVE=adjective)
        answer, foil = (template.positive, template.negative)[:: 1 if positive else -1]
        items.append(Item(text, f" {answer}", f" {foil}", f"{template.text}|{adjective}"))
    return items


def agreement(split: Split, n: int, rng: random.Random) -> list[Item]:
    """Subject-verb agreement with an attractor of the other number in between."""
    items = []
    for i in range(n):
        plural = i % 2
        subject = rng.choice(NOUNS)[plural]
        verb = rng.choice(VERBS)
        text = rng.choice(AGREEMENT[split]).format(
            SUBJECT=subject, ATTRACTOR=rng.choice(ATTRACTORS)[1 - plural]
        )
        items.append(Item(text, f" {verb[plural]}", f" {verb[1 - plural]}", f"{subject}|{verb[0]}"))
    return items


def truth(split: Split, n: int, rng: random.Random) -> list[Item]:
    """Statements about capitals, right and wrong in turn, in a held-out frame."""
    items = []
    for i in range(n):
        country = rng.choice(COUNTRIES)
        right = i % 2 == 0
        value = country.capital if right else rng.choice([c.capital for c in COUNTRIES if c != country])
        statement = rng.choice(STATEMENTS["capital"]).format(COUNTRY=country.name, VALUE=value)
        text = rng.choice(TRUTH_FRAMES[split]).format(STATEMENT=statement)
        items.append(Item(text, f" {right}", f" {not right}", country.name))
    return items


def chat(split: Split, n: int, rng: random.Random, *, harmful: bool) -> list[ChatItem]:
    """Requests of one label: held-out verb-object pairs in held-out templates."""
    requests = [request for request in chat_requests(split) if request.harmful is harmful]
    return [
        ChatItem(chat_prompt(rng.choice(CHAT_TEMPLATES[split]).format(REQUEST=request.text)), request)
        for request in rng.choices(requests, k=n)
    ]


def repetition(n: int, alphabet: list[int], rng: random.Random) -> list[list[int]]:
    """Random distinct token ids read twice: segments of 10 to 40 ids."""
    return [rng.sample(alphabet, rng.randint(10, 40)) * 2 for _ in range(n)]
