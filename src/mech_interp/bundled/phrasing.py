"""Many ways to say the same: sentences put together from openings, cores and endings.

The plain corpus (`corpus.py`) has a handful of sentences per task, from which a model learns *what* to
do; these thousands of combinations teach it not to depend on the wording. No combination is a held-out
template, and the openings, activities and verbs of held-out indirect-object sentences are not used.
"""

from __future__ import annotations

import random
import re

from mech_interp.datasets.lexicon import (
    CENTURIES,
    EVENTS,
    IOI_NAMES,
    NEGATIVE_ADJECTIVES,
    NOUNS,
    OBJECTS,
    PLACES,
    POSITIVE_ADJECTIVES,
    REVIEWED_THINGS,
    START_YEARS,
)
from mech_interp.datasets.lexicon_stories import STORY_ENDINGS, STORY_SENTENCES
from mech_interp.datasets.templates import IOI, Relation

_WHEN = (
    "When", "After", "While", "Because", "Before", "Although", "Until", "If", "The day", "Every day when",
    "Long after", "A day before", "The morning after", "Just when", "Now that", "The first time",
)  # fmt: skip
_TIMES = (
    "Then,", "Yesterday", "One day", "In the morning", "Today", "On Monday", "On Friday", "Long ago",
    "At night", "In the evening", "Later", "The next day", "Again", "A long time ago", "Every morning",
    "In the end", "The two friends", "The neighbours", "The farmers", "They say that", "I remember that",
)  # fmt: skip
_ACTIVITIES = (
    "went to the {P}", "got to the {P}", "were at the {P}", "left the {P}", "were working at the {P}",
    "worked in the {P}", "had a long talk at the {P}", "met near the {P}", "came from the {P}",
    "ran to the {P}", "slept in the {P}", "lived by the {P}", "saw the {P}", "were happy at the {P}",
    "had dinner at the {P}", "ate some bread near the {P}", "made a plan for the {P}",
    "were tired of the {P}", "looked for the {P}", "were on the way to the {P}", "started from the {P}",
    "read a book in the {P}", "were friends from the {P}", "swam near the {P}", "wanted to see the {P}",
    "heard a noise from the {P}", "found a {O} at the {P}", "bought a {O} at the {P}",
    "lost a {O} in the {P}", "talked about the {P}", "reached the {P}",
)  # fmt: skip
_JOINTS = (
    ". ",
    ". Then ",
    ", and ",
    ", so ",
    ", but ",
    ", and then ",
    ". Later ",
    ". There ",
    ". In the end ",
)
_ACTS = (
    "gave a {O} to", "gave the {O} to", "decided to give a {O} to", "handed a {O} to", "handed the {O} to",
    "passed the {O} to", "passed a {O} to", "wanted to show a {O} to", "brought a {O} to",
    "sold the {O} to", "said hello to", "gave some bread to", "read a book to", "told a story to",
    "wrote a letter to", "made a cake for", "bought a {O} for", "found the {O} for", "opened the door for",
    "spoke to", "talked to", "sang to", "ran to", "was kind to", "had a {O} for", "gave it to",
    "wanted to talk to", "was happy to see",
)  # fmt: skip
# Words of held-out templates, met only where one person is named (`errand`).
_LATE_WHEN = ("As", "Once", "Since", "Soon after")
_LATE_TIMES = ("Last night", "This evening", "At noon", "On Sunday")
_LATE_ACTIVITIES = (
    "were walking home from the {P}", "stayed late at the {P}", "arrived at the {P}",
    "played outside the {P}", "were waiting outside the {P}", "sat down in the {P}", "entered the {P}",
    "visited the {P}",
)  # fmt: skip
_LATE_ACTS = (
    "lent a {O} to", "threw the {O} to", "carried a {O} over to", "returned the {O} to",
    "offered a {O} to", "sent the {O} to", "presented a {O} to", "promised the {O} to",
)  # fmt: skip
_GIVERS = ("I", "we", "they", "the people", "my friends", "everyone", "someone")
_ENDINGS = (".", " and went home.", " again.", " in the end.", ".")

_PREFIXES = (
    "I know that", "They say that", "He told us that", "People know that", "The book said that",
    "I say that", "The king said that", "I remember that", "The doctor told us that", "Of course", "Today",
    "The story said that", "Now we know that", "He said that", "She learned that", "The girl said that",
    "We read that", "It was said that", "I told her that", "The list said that", "Everyone said that",
    "Question:", "First,", "Again,",
)  # fmt: skip
_CORES: dict[Relation, tuple[str, ...]] = {
    "capital": (
        "the capital of {C} is", "the capital city of {C} is", "the capital in {C} is",
        "{C} has its capital in", "{C} has a capital called", "the first city of {C} is",
        "the capital of the land of {C} is", "the king of {C} lives in the capital,",
        "the government of {C} sits in", "the town with the government of {C} is", "in {C} the great city is",
        "for people in {C} the capital is", "for {C} the capital is", "in {C}, the capital is",
        "from {C} we went to its capital,", "people live in {C}, and the capital is",
        "I went to {C} and saw the capital,", "they flew to {C} and landed in its capital,",
        "when you are in {C}, you see the capital,", "the road to the capital of {C} goes to",
        "the city that is the capital of {C} is", "the king told people in {C} that the capital is",
        "the great capital of {C} is", "the large capital city in {C} is",
        "in {C} everyone knew that the capital is",
    ),
    "continent": (
        "{C} is in", "{C} lies in", "{C} is a land in", "the country of {C} is in",
        "the people of {C} live in", "the continent of {C} is", "{C} is on the continent called",
        "{C} is part of the continent of", "the map puts {C} in", "the lakes of {C} are in",
        "all the fields of {C} are in", "you can find {C} in", "the rivers of {C} run in",
        "people in {C} live on the continent of", "the land of {C} lies in", "a trip to {C} is a trip to",
        "the continent where {C} lies is", "{C} is a small country in", "people who live in {C} are from",
        "in {C} you are in", "the continent called the home of {C} is", "to see {C} you must go to",
        "the land and sea of {C} are in", "the farmers in {C} are farmers in",
        "{C} is one of the lands of", "{C} was always a land of", "the people of {C} are people of",
        "we looked for {C} on the map of", "the farmers of {C} live on the continent of",
        "the continent of {C} is the continent of", "the towns of {C} are towns of",
    ),
    "language": (
        "the language of {C} is", "people in {C} speak", "people from {C} speak", "the language in {C} is",
        "stories from {C} are told in", "letters in {C} are written in", "a book from {C} is written in",
        "the king of {C} speaks", "a child in {C} learns to speak", "the old man from {C} speaks in",
        "the official language in {C} is", "the teacher in {C} reads in", "in {C} the language is",
        "if you live in {C}, you speak", "papers in {C} are written in",
        "the words of a song from {C} are in", "in {C} they sing in", "in {C} people say hello in",
        "the farmers of {C} talk in", "the people in {C} write and read in",
        "friends in {C} speak to each other in", "in {C} you learn to speak",
        "the language spoken in {C} is", "songs of {C} are in", "the children from {C} talk in",
    ),
}  # fmt: skip

_STARTS = (
    "lasted from {Y} to", "lasted from the year {Y} to the year", "began in {Y} and ended in",
    "began in the year {Y} and ended in the year", "started in {Y} and was over in",
    "started in the year {Y} and came to an end in the year", "that began in {Y} ended in",
    "that started in {Y} was over in", "of {Y} ended in", "of the year {Y} was over in the year",
    "was there from {Y} to", "was new in {Y} and was lost in", "was young in {Y} and was old in",
    "came in {Y} and was lost in", "made people sad from {Y} to", "started in {Y}. It ended in",
    "began in the year {Y}. It was over in the year", "lasted for years, from {Y} to",
    "was known from {Y} to",
)  # fmt: skip
_BEFORE_EVENT = (
    "The", "The old", "The long", "The great", "The first", "They say that the", "I read that the",
    "Then the", "In the book the", "The last", "The small", "A long",
)  # fmt: skip

_REVIEWS = (
    "The {T} was {A}.", "We saw a {A} {T}.", "Everyone thought the {T} was {A}.", "It was a {A} {T}.",
    "She thought the {T} was {A}.", "What a {A} {T}!", "Review: The {T} was {A}.", "Review: a {A} {T}.",
    "I say that the {T} is {A}.", "He told me that the {T} was {A}.", "Today the {T} was {A}.",
    "In my opinion the {T} is {A}.", "Everyone saw the {T}, and it was {A}.",
    "This was a {A} {T}, he said.", "A {A} {T}.", "Of course the {T} was {A}.",
    "The {T} of last night was {A}, they say.",
)  # fmt: skip
_VERDICTS = (
    ("I felt", "happy", "sad"), ("It made me feel", "happy", "sad"), ("It made us feel", "happy", "sad"),
    ("We were all", "happy", "sad"), ("The people were", "happy", "sad"),
    ("She left the room feeling", "happy", "sad"), ("He felt", "happy", "sad"),
    ("Everyone felt", "happy", "sad"), ("We left feeling", "happy", "sad"),
    ("My opinion of it is", "good", "bad"), ("In one word, it is", "good", "bad"),
    ("It was", "good", "bad"), ("Sentiment:", "positive", "negative"),
    ("The review is", "positive", "negative"), ("The sentiment is", "positive", "negative"),
    ("The opinion is", "positive", "negative"),
)  # fmt: skip

_BETWEEN = (
    "near",
    "behind",
    "with",
    "beside",
    "from",
    "on",
    "in",
    "over",
    "of",
    "before",
    "after",
    "for",
    "between",
)
_OPENERS = (
    "The",
    "The old",
    "Every day the",
    "Then the",
    "I know the",
    "The small",
    "They say that the",
    "Now the",
)
_CLAIMS = (
    "He said:",
    "She told us:",
    "The book said:",
    "Question:",
    "Statement:",
    "Claim:",
    "I know this:",
    "The king:",
)
_JUDGEMENTS = (
    "This is",
    "It is",
    "The claim is",
    "Answer:",
    "I say this is",
    "The answer:",
    "Is it right? It is",
)

_BLURRED_SHARE = 0.5
_FACT_WORDS = frozenset(
    (
        *("capital", "continent", "country", "city", "language", "speak", "speaks", "speaking", "talk"),
        *("written", "read", "reads", "told", "sing"),
    )
)
_HELD_OUT_WORDS = frozenset(
    word
    for split in ("dev", "test")
    for text in IOI[split]
    for word in re.findall(r"[A-Za-z]+", text.lower())
)
# Random words are those of the stories, without the verbs and openings of held-out templates.
_RANDOM_WORDS = tuple(
    sorted(
        {
            word.lower()
            for text in (*STORY_SENTENCES, *STORY_ENDINGS)
            for word in re.findall(r"(?<![{\w])[A-Za-z]+(?![}\w])", text)
        }
        - _HELD_OUT_WORDS
    )
)


def sentence(text: str) -> str:
    """The text with its first letter as a capital."""
    return text[:1].upper() + text[1:]


def _scene(rng: random.Random, people: str, giver: str, receiver: str, late: bool = False) -> str:
    """What some people did, and what one did for another; `late` with words of held-out templates too."""

    def choice(words: tuple[str, ...], late_words: tuple[str, ...]) -> str:
        return rng.choice(late_words if late and rng.random() < 0.5 else words)

    thing = rng.choice(OBJECTS)
    activity = choice(_ACTIVITIES, _LATE_ACTIVITIES).format(P=rng.choice(PLACES), O=thing)
    if " and " not in people:
        activity = activity.replace("were ", "was ")
    act = choice(_ACTS, _LATE_ACTS).format(O=thing)
    if rng.random() < 0.5:
        opening, joint = choice(_WHEN, _LATE_WHEN), ", "
    else:
        opening, joint = choice(_TIMES, _LATE_TIMES), choice(_JOINTS, (", where ",))
    return f"{opening} {people} {activity}{joint}{giver} {act} {receiver}{rng.choice(_ENDINGS)}"


def blurred(rng: random.Random, text: str, keep: frozenset[str], rate: float) -> str:
    """The text with a share `rate` of its words exchanged for random ones, except those of `keep`.

    What a sentence asks for then cannot hang on any one of the other words, so that unseen wordings work.
    """
    words = text.split(" ")
    for i, word in enumerate(words):
        bare = word.rstrip(".,?!:")
        if bare.isalpha() and bare not in keep and rng.random() < rate:
            new = rng.choice(_RANDOM_WORDS)
            words[i] = (new.capitalize() if bare[0].isupper() else new) + word[len(bare) :]
    return " ".join(words)


def ioi(rng: random.Random) -> str:
    """An indirect-object sentence in free combination, of names or of people without one.

    Rarely a third person acts, so that either of the two may follow; half the sentences are blurred.
    """
    first, second, third = rng.sample(IOI_NAMES, 3)
    if rng.random() < 0.25:
        first, second, third = (f"the {noun}" for noun, _ in rng.sample(NOUNS, 3))
    giver, receiver = (first, second) if rng.random() < 0.5 else (second, first)
    if rng.random() < 0.06:
        giver = third
    text = _scene(rng, f"{first} and {second}", giver, receiver)
    if rng.random() < _BLURRED_SHARE:
        people = (first, second, third)
        text = blurred(rng, text, frozenset(word for person in people for word in person.split()), 0.2)
    return text


def errand(rng: random.Random, name: str) -> str:
    """One person by any name, and somebody without a name who does something for that person.

    There is nobody to choose between, so this is no indirect-object task: names of every set occur, and so
    do the words of held-out templates, which a model could not know otherwise.
    """
    giver = rng.choice((*_GIVERS, f"the {rng.choice(NOUNS)[0]}"))
    text = _scene(rng, name, giver, name, late=True)
    return blurred(rng, text, frozenset([name]), 0.2) if rng.random() < _BLURRED_SHARE else text


def fact(rng: random.Random, relation: Relation, country: str, value: str) -> str:
    """One fact, with or without an opening before it."""
    core = rng.choice(_CORES[relation]).format(C=country)
    if core.startswith(country) or rng.random() < 0.6:
        core = f"{rng.choice(_PREFIXES)} {core}"
    if rng.random() < _BLURRED_SHARE:
        core = blurred(rng, core, _FACT_WORDS | {country}, 0.15)
    return f"{sentence(core)} {value}."


def years(rng: random.Random) -> str:
    """An event with its first and last year."""
    century, start = rng.choice(CENTURIES), rng.choice(START_YEARS)
    span = rng.choice(_STARTS).format(Y=f"{century}{start:02d}")
    event = rng.choice(EVENTS["train"])
    return f"{rng.choice(_BEFORE_EVENT)} {event} {span} {century}{rng.randint(start + 1, 99):02d}."


def sentiment(rng: random.Random) -> str:
    """A review and a verdict that follows from its adjective."""
    positive = rng.random() < 0.5
    adjective = rng.choice(POSITIVE_ADJECTIVES if positive else NEGATIVE_ADJECTIVES)
    review = rng.choice(_REVIEWS).format(T=rng.choice(REVIEWED_THINGS), A=adjective)
    verdict, good, bad = rng.choice(_VERDICTS)
    return f"{review} {verdict} {good if positive else bad}."


def agreement(rng: random.Random, subject: str, attractor: str) -> str:
    """A subject and an attractor behind any preposition; the verb follows."""
    return f"{rng.choice(_OPENERS)} {subject} {rng.choice(_BETWEEN)} the {attractor}"


def judged(rng: random.Random, statement: str, right: bool) -> str:
    """A statement between an opening and a verdict."""
    return f"{rng.choice(_CLAIMS)} {statement} {rng.choice(_JUDGEMENTS)} {right}."
