"""The small-world corpus: documents written by code from the lexicon and the training templates.

`documents(seed)` is an endless, deterministic stream. A document is text, except that *repetition*
documents are token ids (random tokens repeated) that only the packer can draw (`repetition`), so they
appear here as an empty text. Only training templates, training events and, in indirect-object sentences,
training names are used; see `mech_interp.datasets.lexicon` for what is held out.

A *plain* stream has the few training templates, from which a model learns the tasks in the fewest steps;
a *varied* one says three quarters of the same in the many ways of `phrasing.py`, so that the wording
stops to matter. A recipe begins with the first and goes on with the second.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from mech_interp.bundled import phrasing
from mech_interp.bundled.stories import lists, story
from mech_interp.datasets.biographies import biography
from mech_interp.datasets.lexicon import (
    ATTRACTORS,
    CENTURIES,
    COUNTRIES,
    EVENTS,
    IOI_NAMES,
    NEGATIVE_ADJECTIVES,
    NOUNS,
    OBJECTS,
    PLACES,
    POSITIVE_ADJECTIVES,
    REVIEWED_THINGS,
    START_YEARS,
    VERBS,
    Country,
)
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

DEFAULT_SHARES: dict[str, float] = {
    "ioi": 0.19,
    "facts": 0.22,
    "years": 0.12,
    "repetition": 0.07,
    "sentiment": 0.05,
    "biography": 0.04,
    "truth": 0.05,
    "agreement": 0.08,
    "lists": 0.1,
    "story": 0.08,
}
"""Share of the documents, by kind (stories and biographies are longer, so their share of tokens is more)."""

_RELATIONS: tuple[Relation, ...] = ("capital", "capital", "continent", "language")
_VARIED_SHARE = 0.75
_ABC_SHARE = 0.1  # indirect-object sentences in which a third person gives: either name may follow
_AGREEMENT_ENDINGS = ("{V} here.", "{V} every day.", "{V} in the garden.", "{V} again.")
_BE_ENDINGS = ("{V} old.", "{V} happy.", "{V} in the garden.", "{V} very quiet.", "{V} here.", "{V} tired.")
_HAVE_ENDINGS = ("{V} a house.", "{V} some bread.", "{V} two boats.", "{V} a lamp.")
_LIKE_ENDINGS = ("{V} the sea.", "{V} music.", "{V} the old man.", "{V} the town.")


def ioi(rng: random.Random, varied: bool) -> str:
    """An indirect-object sentence (ABBA or BABA), or rarely one with a third giver."""
    if varied and rng.random() < _VARIED_SHARE:
        return phrasing.ioi(rng)
    template = rng.choice(IOI["train"])
    first, second, third = rng.sample(IOI_NAMES, 3)
    place, thing = rng.choice(PLACES), rng.choice(OBJECTS)
    giver, receiver = (first, second) if rng.random() < 0.5 else (second, first)
    if rng.random() < _ABC_SHARE:
        giver = third
    return f"{template.format(A=first, B=second, S=giver, PLACE=place, OBJECT=thing)} {receiver}."


def _value(country: Country, relation: Relation) -> str | None:
    return country.capital if relation == "capital" else getattr(country, relation)


def facts(rng: random.Random, varied: bool) -> str:
    """One to three facts about different countries."""
    sentences = []
    for country in rng.sample(COUNTRIES, rng.choice((1, 1, 2, 3))):
        relation = rng.choice(_RELATIONS)
        value = _value(country, relation)
        if value is None:
            relation, value = "capital", country.capital
        if varied and rng.random() < _VARIED_SHARE:
            sentences.append(phrasing.fact(rng, relation, country.name, value))
            continue
        sentences.append(f"{rng.choice(FACTS[relation]['train']).format(COUNTRY=country.name)} {value}.")
    return " ".join(sentences)


def _years_event(rng: random.Random) -> str:
    start = rng.choice(START_YEARS)
    prompt = rng.choice(GREATER_THAN["train"]).format(
        EVENT=rng.choice(EVENTS["train"]), XX=rng.choice(CENTURIES), YY=f"{start:02d}"
    )
    return f"{prompt}{rng.randint(start + 1, 99):02d}."


def _years_chronicle(rng: random.Random) -> str:
    century = rng.choice(CENTURIES)
    halves = sorted(rng.sample(range(2, 100), rng.randint(3, 8)))
    return rng.choice(("Years in order:", "The years were", "Chronicle:")) + ",".join(
        f" {century}{half:02d}" for half in halves
    )


def years(rng: random.Random, varied: bool) -> str:
    """One to three events with first and last year in one century, or years in order."""
    if rng.random() < 0.25:
        return _years_chronicle(rng)
    event = phrasing.years if varied and rng.random() < _VARIED_SHARE else _years_event
    return " ".join(event(rng) for _ in range(rng.choice((1, 2, 3))))


def sentiment(rng: random.Random, varied: bool) -> str:
    """One or two reviews; the stated adjective decides the closing word."""
    texts = []
    for _ in range(rng.choice((1, 1, 2))):
        if varied and rng.random() < _VARIED_SHARE:
            texts.append(phrasing.sentiment(rng))
            continue
        template = rng.choice(SENTIMENT["train"])
        positive = rng.random() < 0.5
        adjective = rng.choice(POSITIVE_ADJECTIVES if positive else NEGATIVE_ADJECTIVES)
        prompt = template.text.format(THING=rng.choice(REVIEWED_THINGS), ADJECTIVE=adjective)
        texts.append(f"{prompt} {template.positive if positive else template.negative}.")
    return " ".join(texts)


def truth(rng: random.Random, varied: bool) -> str:
    """A statement about a country inside a frame, judged True or False; half are wrong."""
    country = rng.choice(COUNTRIES)
    relation = rng.choice(_RELATIONS)
    value = _value(country, relation)
    if value is None:
        relation, value = "capital", country.capital
    right = rng.random() < 0.5
    if not right:
        others = sorted({v for c in COUNTRIES if (v := _value(c, relation)) is not None} - {value})
        value = rng.choice(others)
    statement = rng.choice(STATEMENTS[relation]).format(COUNTRY=country.name, VALUE=value)
    if varied and rng.random() < _VARIED_SHARE:
        return phrasing.judged(rng, statement, right)
    return f"{rng.choice(TRUTH_FRAMES['train']).format(STATEMENT=statement)} {right}."


def agreement(rng: random.Random, varied: bool) -> str:
    """One to three sentences whose verb agrees with the subject, whatever stands between."""
    sentences = []
    for _ in range(rng.choice((1, 2, 3))):
        plural, attractor_plural = rng.randrange(2), rng.randrange(2)
        subject = rng.choice(NOUNS)[plural]
        attractor = rng.choice(ATTRACTORS)[attractor_plural]
        verb = rng.choice(VERBS)[plural]
        endings = {"is": _BE_ENDINGS, "are": _BE_ENDINGS, "was": _BE_ENDINGS, "were": _BE_ENDINGS}.get(
            verb, _HAVE_ENDINGS if verb in ("has", "have") else _AGREEMENT_ENDINGS
        )
        if verb in ("likes", "like", "knows", "know"):
            endings = _LIKE_ENDINGS
        prompt = rng.choice(AGREEMENT["train"]).format(SUBJECT=subject, ATTRACTOR=attractor)
        if varied and rng.random() < _VARIED_SHARE:
            prompt = phrasing.agreement(rng, subject, attractor)
        sentences.append(f"{prompt} {rng.choice(endings).format(V=verb)}")
    return " ".join(sentences)


def _biography(rng: random.Random, varied: bool) -> str:
    return biography(rng, biased=rng.random() < 0.6, named=rng.random() < 0.3).text


WRITERS: dict[str, Callable[[random.Random, bool], str]] = {
    "ioi": ioi,
    "facts": facts,
    "years": years,
    "sentiment": sentiment,
    "biography": _biography,
    "truth": truth,
    "agreement": agreement,
    "lists": lists,
    "story": story,
}


def documents(
    seed: str, shares: dict[str, float] | None = None, *, varied: bool = False
) -> Iterator[tuple[str, str]]:
    """An endless stream of (kind, text), the same for the same seed; `varied` as in the module's text.

    The text of a `repetition` document is empty: the packer draws its tokens (`repetition`).
    """
    rng = random.Random(f"corpus:{seed}")
    table = DEFAULT_SHARES if shares is None else shares
    kinds, weights = list(table), list(table.values())
    while True:
        for kind in rng.choices(kinds, weights, k=64):
            yield kind, "" if kind == "repetition" else WRITERS[kind](rng, varied)


def repetition(rng: random.Random, alphabet: list[int]) -> tuple[list[int], int]:
    """Random token ids, repeated: a segment of 4 to 12 or to 40 ids, two to four times, at most about 120.

    Returns the ids and the segment's length (what comes first cannot be foreseen).
    """
    length = rng.randint(4, 12) if rng.random() < 0.5 else rng.randint(4, 40)
    segment = [alphabet[int(rng.random() * len(alphabet))] for _ in range(length)]
    times = min(rng.choice((2, 2, 3, 4)), max(2, 120 // length))
    return segment * times, length
