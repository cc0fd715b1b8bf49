"""Narrative filler and lists of names and things, the parts of the corpus with people of every set."""

from __future__ import annotations

import random

from mech_interp.bundled import phrasing
from mech_interp.datasets.biographies import PRONOUNS
from mech_interp.datasets.lexicon import (
    ALL_NAMES,
    CAPITALS,
    COUNTRIES,
    DEV_NAMES,
    LANGUAGES,
    NAMES_BY_GENDER,
    OBJECTS,
    PLACES,
    TEST_NAMES,
    Gender,
)
from mech_interp.datasets.lexicon_stories import (
    ANIMALS,
    COLOURS,
    DAYS,
    FOODS,
    LATE_EVENTS,
    LIST_FRAMES,
    PAIR_STORIES,
    STORY_ENDINGS,
    STORY_OPENINGS,
    STORY_SENTENCES,
    VARIED_STORY_OPENINGS,
    WEATHERS,
)

_GENDER_OF: dict[str, Gender] = {name: gender for gender, names in NAMES_BY_GENDER.items() for name in names}
# Names that no indirect-object sentence uses are met more often here, so that every name is about as
# frequent in the corpus as it needs to be for an embedding of its own.
_STORY_NAMES = ALL_NAMES + 3 * (DEV_NAMES + TEST_NAMES)

_ERRANDS_IN_STORIES, _ERRANDS_IN_LISTS = 0.35, 0.5


def _two_names(rng: random.Random) -> tuple[str, str]:
    first = rng.choice(_STORY_NAMES)
    second = rng.choice(_STORY_NAMES)
    while second == first:
        second = rng.choice(_STORY_NAMES)
    return first, second


def _filled(rng: random.Random, sentence: str, name: str, other: str) -> str:
    place, place2 = rng.sample(PLACES, 2)
    colour, colour2 = rng.sample(COLOURS, 2)
    return sentence.format(
        **PRONOUNS[_GENDER_OF[name]],
        NAME=name,
        OTHER=other,
        PLACE=place,
        PLACE2=place2,
        OBJECT=rng.choice(OBJECTS),
        FOOD=rng.choice(FOODS),
        ANIMAL=rng.choice(ANIMALS),
        COLOUR=colour,
        COLOUR2=colour2,
        DAY=rng.choice(DAYS),
        WEATHER=rng.choice(WEATHERS),
        CAPITAL=rng.choice(CAPITALS),
        LATE_EVENT=rng.choice(LATE_EVENTS),
    )


def story(rng: random.Random, varied: bool) -> str:
    """A story about one person (an opening, two to five sentences, sometimes an ending) or about two."""
    name, other = _two_names(rng)
    if varied and rng.random() < _ERRANDS_IN_STORIES:
        return phrasing.errand(rng, name)
    if rng.random() < 0.35:
        return _filled(rng, rng.choice(PAIR_STORIES), name, other)
    openings = VARIED_STORY_OPENINGS if varied else STORY_OPENINGS
    sentences = [rng.choice(openings), *rng.sample(STORY_SENTENCES, rng.randint(2, 5))]
    if rng.random() < 0.5:
        sentences.append(rng.choice(STORY_ENDINGS))
    return " ".join(_filled(rng, sentence, name, other) for sentence in sentences)


def lists(rng: random.Random, varied: bool) -> str:
    """A list read twice: names, or a mix of words, the second time in the same order.

    In a varied stream some are errands instead (one name read twice, the second time as a receiver).
    No commas, so that the word before each word is informative: the plainest case of repetition.
    """
    if varied and rng.random() < _ERRANDS_IN_LISTS:
        return phrasing.errand(rng, rng.choice(_STORY_NAMES))
    opening, again = rng.choice(LIST_FRAMES)
    if rng.random() < 0.6:
        words = list(dict.fromkeys(rng.choices(_STORY_NAMES, k=rng.randint(3, 9))))
    else:
        pool = CAPITALS + OBJECTS + PLACES + LANGUAGES + tuple(country.name for country in COUNTRIES)
        words = rng.sample(pool, rng.randint(3, 9))
    listed = " ".join(words)
    return f"{opening} {listed}. {again.format(DAY=rng.choice(DAYS))} {listed}."
