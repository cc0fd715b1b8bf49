"""Sentence templates by split, as plain data.

`train` templates are the only ones the bundled corpus contains. `dev` templates judge a recipe while it
is being improved; `test` templates are measured once, for the card. A template of one split is never a
template of another, and held-out ones share neither opening nor ending with the training ones.

Every template is the text *before* the answer, without a trailing space; the answer follows with one
leading space (for `GREATER_THAN` the prompt ends in the century and the answer is the two-digit rest).

Placeholders:
- `IOI`: `{A}` and `{B}` are the two names as introduced, `{S}` the repeated one (equal to one of them),
  `{PLACE}`, `{OBJECT}`. ABBA means A is the indirect object (S = B), BABA that B is (S = A).
- `FACTS[relation]`: `{COUNTRY}`; relations are `capital`, `continent`, `language`.
- `GREATER_THAN`: `{EVENT}`, `{XX}` century digits, `{YY}` two-digit start year.
- `SENTIMENT`: `{THING}`, `{ADJECTIVE}`; each with its positive and negative answer.
- `STATEMENTS[relation]`: `{COUNTRY}`, `{VALUE}` (right or wrong); `TRUTH_FRAMES`: `{STATEMENT}`; the answer
  is `True` or `False`.
- `AGREEMENT`: `{SUBJECT}`, `{ATTRACTOR}`; the answer is a verb form.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from mech_interp.datasets.lexicon import Split

Relation = Literal["capital", "continent", "language"]


class SentimentTemplate(NamedTuple):
    """A prompt whose sentiment is stated by one adjective, and the two answers."""

    text: str
    positive: str
    negative: str


_IOI_TRAIN_OPENINGS = (
    "When {A} and {B} went to the {PLACE},",
    "When {A} and {B} got to the {PLACE},",
    "After {A} and {B} went to the {PLACE},",
    "After {A} and {B} left the {PLACE},",
    "While {A} and {B} were working at the {PLACE},",
    "While {A} and {B} were at the {PLACE},",
    "Then, {A} and {B} went to the {PLACE}.",
    "Then, {A} and {B} had a long talk at the {PLACE}.",
    "Yesterday {A} and {B} met at the {PLACE}.",
    "One day {A} and {B} walked to the {PLACE}.",
    "Because {A} and {B} were tired of the {PLACE},",
    "Friends {A} and {B} found a {OBJECT} at the {PLACE}.",
    "The two friends {A} and {B} came to the {PLACE} and",
    "In the morning {A} and {B} saw each other near the {PLACE}, and",
    "Before {A} and {B} reached the {PLACE},",
)
_IOI_TRAIN_ACTIONS = (
    "{S} gave a {OBJECT} to",
    "{S} gave the {OBJECT} to",
    "{S} decided to give a {OBJECT} to",
    "{S} handed a {OBJECT} to",
    "{S} passed the {OBJECT} to",
    "{S} wanted to show a {OBJECT} to",
    "{S} brought a {OBJECT} to",
    "{S} sold the {OBJECT} to",
    "{S} said hello to",
)


def _joined(openings: tuple[str, ...], actions: tuple[str, ...]) -> tuple[str, ...]:
    """Every opening with every action, leaving out those that would need two different objects."""
    return tuple(
        f"{opening} {action}"
        for opening in openings
        for action in actions
        if not ("{OBJECT}" in opening and "{OBJECT}" in action and "a {OBJECT}" in action)
    )


IOI: dict[Split, tuple[str, ...]] = {
    "train": _joined(_IOI_TRAIN_OPENINGS, _IOI_TRAIN_ACTIONS),
    "dev": (
        "As {A} and {B} were walking home from the {PLACE}, {S} lent a {OBJECT} to",
        "Last night {A} and {B} stayed late at the {PLACE}. {S} threw the {OBJECT} to",
        "Once {A} and {B} arrived at the {PLACE}, {S} carried a {OBJECT} over to",
        "On Sunday {A} and {B} played outside the {PLACE}, so {S} returned the {OBJECT} to",
    ),
    "test": (
        "Since {A} and {B} were waiting outside the {PLACE}, {S} offered a {OBJECT} to",
        "This evening {A} and {B} sat down in the {PLACE}. {S} sent the {OBJECT} to",
        "Soon after {A} and {B} entered the {PLACE}, {S} presented a {OBJECT} to",
        "At noon {A} and {B} visited the {PLACE} together, where {S} promised the {OBJECT} to",
    ),
}

FACTS: dict[Relation, dict[Split, tuple[str, ...]]] = {
    "capital": {
        "train": (
            "The capital of {COUNTRY} is",
            "The capital city of {COUNTRY} is",
            "In {COUNTRY}, the capital is",
            "The government of {COUNTRY} sits in",
            "We flew to {COUNTRY} and landed in its capital,",
            "Question: What is the capital of {COUNTRY}? Answer:",
            "A student asked for the capital of {COUNTRY}. It is",
            "The train to the capital of {COUNTRY} goes to",
            "If you visit {COUNTRY}, you will see the capital,",
        ),
        "dev": (
            "Everyone in {COUNTRY} knows that the capital is",
            "The name of the capital of {COUNTRY} is",
        ),
        "test": (
            "My teacher said that the capital of {COUNTRY} is",
            "On the map of {COUNTRY} the capital city is",
        ),
    },
    "continent": {
        "train": (
            "The country of {COUNTRY} lies in",
            "You can find {COUNTRY} in",
            "The continent of {COUNTRY} is",
            "The people of {COUNTRY} live in",
            "On a map, {COUNTRY} is part of",
            "Question: On which continent is {COUNTRY}? Answer:",
            "A trip to {COUNTRY} is a trip to",
        ),
        "dev": (
            "The land of {COUNTRY} belongs to the continent of",
            "The hills and rivers of {COUNTRY} are in",
        ),
        "test": (
            "We learned that {COUNTRY} is a country in",
            "Travellers who go to {COUNTRY} are on the continent of",
        ),
    },
    "language": {
        "train": (
            "The language of {COUNTRY} is",
            "People in {COUNTRY} speak",
            "In {COUNTRY}, people speak",
            "The official language of {COUNTRY} is",
            "The children of {COUNTRY} learn to read in",
            "A letter from {COUNTRY} is written in",
            "Question: Which language is spoken in {COUNTRY}? Answer:",
        ),
        "dev": (
            "The people of {COUNTRY} talk to each other in",
            "Songs from {COUNTRY} are sung in",
        ),
        "test": (
            "If you travel to {COUNTRY}, you will hear people speak",
            "Most books in {COUNTRY} are written in",
        ),
    },
}

GREATER_THAN: dict[Split, tuple[str, ...]] = {
    "train": (
        "The {EVENT} lasted from the year {XX}{YY} to the year {XX}",
        "The {EVENT} lasted from {XX}{YY} to {XX}",
        "The {EVENT} began in {XX}{YY} and ended in {XX}",
        "The {EVENT} started in the year {XX}{YY} and was over in the year {XX}",
        "The long {EVENT} of {XX}{YY} ended in {XX}",
        "There was a {EVENT} from {XX}{YY} to {XX}",
        "The {EVENT} that began in the year {XX}{YY} came to an end in the year {XX}",
    ),
    "dev": (
        "The {EVENT} ran from {XX}{YY} until {XX}",
        "People remember the {EVENT} that went on from {XX}{YY} to {XX}",
    ),
    "test": (
        "The {EVENT} went on from the year {XX}{YY} until the year {XX}",
        "The old {EVENT} opened in {XX}{YY} and closed in {XX}",
    ),
}

SENTIMENT: dict[Split, tuple[SentimentTemplate, ...]] = {
    "train": (
        SentimentTemplate("Review: The {THING} was {ADJECTIVE}. Sentiment:", "positive", "negative"),
        SentimentTemplate("I thought the {THING} was {ADJECTIVE}. It made me feel", "happy", "sad"),
        SentimentTemplate("The {THING} was {ADJECTIVE}, so my opinion of it is", "good", "bad"),
        SentimentTemplate("We saw a {ADJECTIVE} {THING}. Everyone left the room feeling", "happy", "sad"),
        SentimentTemplate("What a {ADJECTIVE} {THING}! The review is", "positive", "negative"),
        SentimentTemplate("In my opinion the {THING} is {ADJECTIVE}. In one word, it is", "good", "bad"),
    ),
    "dev": (
        SentimentTemplate("They told us that the {THING} was {ADJECTIVE}. They felt", "happy", "sad"),
        SentimentTemplate("A {ADJECTIVE} {THING}, I must say. Sentiment:", "positive", "negative"),
    ),
    "test": (
        SentimentTemplate("My friends found the {THING} {ADJECTIVE}. They went home feeling", "happy", "sad"),
        SentimentTemplate("Comment: This {THING} is {ADJECTIVE}. Sentiment:", "positive", "negative"),
    ),
}

AGREEMENT: dict[Split, tuple[str, ...]] = {
    "train": (
        "The {SUBJECT}",
        "The old {SUBJECT}",
        "The {SUBJECT} near the {ATTRACTOR}",
        "The {SUBJECT} behind the {ATTRACTOR}",
        "The {SUBJECT} with the {ATTRACTOR}",
        "The {SUBJECT} beside the {ATTRACTOR}",
        "The {SUBJECT} from the {ATTRACTOR}",
        "Every day the {SUBJECT} near the old {ATTRACTOR}",
    ),
    "dev": (
        "The {SUBJECT} under the {ATTRACTOR}",
        "Today the {SUBJECT} by the {ATTRACTOR}",
    ),
    "test": (
        "The {SUBJECT} in front of the {ATTRACTOR}",
        "The young {SUBJECT} at the {ATTRACTOR}",
    ),
}

STATEMENTS: dict[Relation, tuple[str, ...]] = {
    "capital": (
        "The city of {VALUE} is the capital of {COUNTRY}.",
        "The city called {VALUE} is the capital of {COUNTRY}.",
    ),
    "continent": (
        "The continent of {VALUE} is where {COUNTRY} lies.",
        "In {VALUE} lies the country of {COUNTRY}.",
    ),
    "language": (
        "The people who speak {VALUE} live in {COUNTRY}.",
        "The language {VALUE} is spoken in {COUNTRY}.",
    ),
}
"""The value comes before the country, so that no wrong statement spoils the wording of a fact."""

TRUTH_FRAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        "True or false? {STATEMENT} Answer:",
        "Statement: {STATEMENT} This is",
        "Claim: {STATEMENT} The claim is",
        "Is this right? {STATEMENT} It is",
    ),
    "dev": ("Someone said: {STATEMENT} That is",),
    "test": ("Read this: {STATEMENT} The statement is",),
}
