"""Labelled short biographies: a profession told by duties, and a pronoun that may give it away.

How one is made, given a pair of professions (one of them usually told of women, the other of men):

1. the label is one of the two professions, by a fair coin;
2. the *duties* are those of the label with probability `DUTIES_RIGHT` (0.8), else those of the other one;
   all duty sentences of one biography come from the same profession, so that a perfect reader of duties
   names the label 80 % of the time;
3. the gender is, in the *biased* part, the one tied to the label (so the pronoun names the label every
   time, and is the easier feature); in the *balanced* part, a fair coin;
4. the text is an opening, then duties and hobbies in random order, all in that gender's pronoun (and, if
   `named`, a first name of that gender). No profession is ever named.

A classifier trained on the biased part is tempted by gender; removing the gender feature should leave
80 % on the balanced part. Setting as in Sparse Feature Circuits (Marks et al. 2024), section 4.
"""

from __future__ import annotations

import random
from typing import Literal, NamedTuple

from mech_interp.datasets.lexicon import CAPITALS, NAMES_BY_GENDER, PLACES, Gender

Profession = Literal["nurse", "professor", "librarian", "mechanic", "florist", "pilot"]

DUTIES_RIGHT = 0.8
PROFESSION_PAIRS: tuple[tuple[Profession, Profession], ...] = (
    ("nurse", "professor"),
    ("librarian", "mechanic"),
    ("florist", "pilot"),
)
"""(told of women in the biased part, told of men in the biased part)."""

DUTIES: dict[Profession, tuple[str, ...]] = {
    "nurse": (
        "{He} checks on the patients every hour.",
        "{He} gives medicine to the sick.",
        "{He} takes care of wounds.",
        "At night {he} walks from bed to bed.",
        "{He} measures the heart and the blood.",
        "{He} helps the doctor in the ward.",
        "{He} comforts people who are in pain.",
        "{He} washes and feeds the weak.",
    ),
    "professor": (
        "{He} gives lectures to a large class.",
        "{He} writes papers about old languages.",
        "{He} marks the exams of the students.",
        "At night {he} reads about science.",
        "{He} leads a research group.",
        "{He} explains hard ideas on the board.",
        "{He} speaks at meetings of scholars.",
        "{He} studies history at the university.",
    ),
    "librarian": (
        "{He} puts the books back on the shelves.",
        "{He} tells readers to be quiet.",
        "{He} stamps the date on each book.",
        "In the evening {he} orders new novels.",
        "{He} keeps a list of every title.",
        "{He} reads stories to small children.",
        "{He} finds old newspapers for visitors.",
        "{He} lends books to the whole town.",
    ),
    "mechanic": (
        "{He} repairs engines all day.",
        "{He} changes the oil and the wheels.",
        "{He} listens for a strange noise in the motor.",
        "In the evening {he} cleans the tools.",
        "{He} replaces broken parts.",
        "{He} tests the brakes of every car.",
        "{He} lies under cars with a lamp.",
        "{He} tightens the screws with care.",
    ),
    "florist": (
        "{He} ties roses into a bunch.",
        "{He} waters the plants each morning.",
        "{He} sells tulips by the door.",
        "On Friday {he} makes wedding flowers.",
        "{He} cuts the stems with small scissors.",
        "{He} puts fresh leaves in the vases.",
        "{He} knows the colour of every petal.",
        "{He} wraps bouquets in paper.",
    ),
    "pilot": (
        "{He} flies over the clouds.",
        "{He} lands the plane in the rain.",
        "{He} talks to the control tower.",
        "On Friday {he} crosses the ocean.",
        "{He} checks the wings before the flight.",
        "{He} welcomes the passengers on board.",
        "{He} watches the weather and the fuel.",
        "{He} sits in the cockpit for hours.",
    ),
}
_OPENINGS = (
    "{He} lives in {CAPITAL}.",
    "{He} lives near the {PLACE}.",
    "{He} grew up in {CAPITAL}.",
    "{He} moved to {CAPITAL} long ago.",
    "{He} has a small house by the {PLACE}.",
)
_NAMED_OPENINGS = (
    "This is {NAME}. {He} lives in {CAPITAL}.",
    "Meet {NAME}, who lives near the {PLACE}.",
    "A word about {NAME}. {He} grew up in {CAPITAL}.",
)
_HOBBIES = (
    "{He} likes music.",
    "{He} has two cats and a dog.",
    "{He} plays chess with {his} friends.",
    "On Sunday {he} swims in the lake.",
    "{He} drinks tea in the morning.",
    "{He} loves {his} work.",
)
PRONOUNS: dict[Gender, dict[str, str]] = {
    "female": {"He": "She", "he": "she", "his": "her", "him": "her"},
    "male": {"He": "He", "he": "he", "his": "his", "him": "him"},
}


class Biography(NamedTuple):
    """A biography and what made it; `duties` is the profession whose duties it tells."""

    text: str
    profession: Profession
    duties: Profession
    gender: Gender
    biased: bool


def biography(
    rng: random.Random, biased: bool, pair: tuple[Profession, Profession] | None = None, named: bool = False
) -> Biography:
    """One biography made as the module describes; a random pair if none is given."""
    female, male = pair if pair is not None else rng.choice(PROFESSION_PAIRS)
    profession, other = (female, male) if rng.random() < 0.5 else (male, female)
    duties = profession if rng.random() < DUTIES_RIGHT else other
    if biased:
        gender: Gender = "female" if profession == female else "male"
    else:
        gender = "female" if rng.random() < 0.5 else "male"
    told = rng.sample(DUTIES[duties], 3) + rng.sample(_HOBBIES, rng.choice((0, 1, 1)))
    rng.shuffle(told)
    opening = rng.choice(_NAMED_OPENINGS if named else _OPENINGS)
    text = " ".join([opening, *told]).format(
        **PRONOUNS[gender],
        NAME=rng.choice(NAMES_BY_GENDER[gender]),
        CAPITAL=rng.choice(CAPITALS),
        PLACE=rng.choice(PLACES),
    )
    return Biography(text, profession, duties, gender, biased)


def labelled_biographies(
    n: int,
    *,
    biased: bool,
    pair: tuple[Profession, Profession] = PROFESSION_PAIRS[0],
    seed: int = 0,
    named: bool = False,
) -> list[Biography]:
    """`n` biographies of one pair of professions, biased or balanced, the same for the same arguments."""
    rng = random.Random(f"biographies:{seed}:{biased}:{pair}:{named}")
    return [biography(rng, biased, pair, named) for _ in range(n)]
