"""Sentences of the narrative filler, with placeholders filled by the corpus writer.

Placeholders: `{NAME}` and `{OTHER}` people; `{he}`, `{He}`, `{his}`, `{him}` the first one's pronouns;
`{PLACE}`, `{OBJECT}`, `{FOOD}`, `{ANIMAL}`, `{COLOUR}`, `{DAY}`, `{WEATHER}`, `{CAPITAL}`,
`{LATE_EVENT}`. No sentence has the shape of an indirect-object task: nobody here is named as the receiver
of a thing.
"""

from __future__ import annotations

from mech_interp.datasets.lexicon import EVENTS

COLOURS: tuple[str, ...] = ("red", "blue", "green", "yellow", "white", "black", "brown", "golden")
FOODS: tuple[str, ...] = ("bread", "soup", "cheese", "fish", "rice", "fruit", "honey", "salad")
ANIMALS: tuple[str, ...] = ("dog", "cat", "bird", "horse", "fox", "rabbit", "goat", "mouse")
DAYS: tuple[str, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WEATHERS: tuple[str, ...] = ("sunny", "cold", "warm", "windy", "rainy", "quiet", "dark", "bright")

STORY_OPENINGS: tuple[str, ...] = (
    "Once there was a young farmer called {NAME}.",
    "This is a story about {NAME}.",
    "It was a {WEATHER} day, and {NAME} was at the {PLACE}.",
    "On {DAY} {NAME} woke up early.",
    "In a small town near {CAPITAL} lived {NAME}.",
    "Last night {NAME} stayed late at the {PLACE}.",
    "Soon after noon {NAME} entered the {PLACE}.",
    "My friends know {NAME} very well.",
    "A long time ago {NAME} lived by the sea.",
    "The morning was {WEATHER} when {NAME} left home.",
    "I remember {NAME} from the {PLACE}.",
    "This evening {NAME} sat down in the {PLACE}.",
    "As the story goes, {NAME} arrived on {DAY}.",
    "Since {DAY} it was {WEATHER}, and {NAME} stayed at home.",
    "Songs about {NAME} are sung in the village.",
    "Travellers who go by the sea hear of {NAME}.",
    "Most people in {CAPITAL} felt sorry for {NAME}.",
    "Today {NAME} must visit the {PLACE}.",
    "Someone told us about {NAME}, whose name is on the wall.",
    "At noon {NAME} came to the place where the {PLACE} was.",
    "Comment: I know {NAME} and the land behind the hills.",
)
# Where sentences are varied, "sung in" is left to languages.
VARIED_STORY_OPENINGS: tuple[str, ...] = tuple(text for text in STORY_OPENINGS if " sung in " not in text)
STORY_SENTENCES: tuple[str, ...] = (
    "{He} had a {COLOUR} {OBJECT} and a {ANIMAL}.",
    "{He} liked {FOOD} more than anything.",
    "{He} went to the {PLACE} to look for {his} {OBJECT}.",
    "Every day {he} walked home from the {PLACE}.",
    "{NAME} was tired, so {he} went home and slept.",
    "Then {he} saw a {ANIMAL} under the tree.",
    "The {ANIMAL} ran away as fast as it could.",
    "{He} found a {OBJECT} in front of the {PLACE}.",
    "There were many people at the {PLACE}, but nobody saw {him}.",
    "{He} carried the {OBJECT} over the bridge.",
    "{He} threw the {OBJECT} into the river.",
    "Since the door was closed, {he} was waiting outside.",
    "Once the {PLACE} opened, {he} bought some {FOOD}.",
    "{He} played outside until it was dark.",
    "{He} sold the {COLOUR} {OBJECT} at the market.",
    "As {he} was walking, it started to rain.",
    "{He} promised to come back on {DAY}.",
    "Because it was {WEATHER}, {NAME} wore a {COLOUR} hat.",
    "{He} returned at noon and made some {FOOD}.",
    "{He} wanted to travel to {CAPITAL} one day.",
    "Travellers who came from {CAPITAL} told {him} a story.",
    "The teacher said that {he} learned very well.",
    "{He} wrote a letter and sent it the next day.",
    "The old {OBJECT} was lost, and {he} was sad about it.",
    "Together they sang songs until the moon was high.",
    "{He} opened the box, and there was a {COLOUR} {OBJECT} in it.",
    "Most people in the village were kind to {him}.",
    "The sun was hot and the field was {COLOUR}.",
    "A {ANIMAL} and a {ANIMAL} were friends of {NAME}.",
    "{He} heard a noise from the {PLACE} and went on.",
    "Where was the {OBJECT}? {NAME} did not know.",
    "In the end {he} was happy again.",
    "{He} visited the {PLACE} and offered to work there.",
    "The {OBJECT} that belongs in the {PLACE} was presented on {DAY}.",
    "The king lent out a {OBJECT}, and it was promised to nobody.",
    "People spoke of the {LATE_EVENT} for years.",
    "After the {LATE_EVENT} {he} read the statement of the king.",
    "There was no {LATE_EVENT} in the village, {he} said.",
)
# Events whose years are held out are spoken of without any year.
LATE_EVENTS: tuple[str, ...] = EVENTS["dev"] + EVENTS["test"]
STORY_ENDINGS: tuple[str, ...] = (
    "That was a good day for {NAME}.",
    "So {NAME} went home.",
    "The end.",
    "And {NAME} never forgot it.",
    "Everyone was happy for {NAME}.",
    "After that {NAME} slept well.",
)
PAIR_STORIES: tuple[str, ...] = (
    "On {DAY} {NAME} and {OTHER} ate {FOOD} together. It was {WEATHER}, and both were happy.",
    "The neighbours {NAME} and {OTHER} live near the {PLACE}. They have a {ANIMAL} and a {COLOUR} car.",
    "They say that {NAME} works at the {PLACE}, and that {OTHER} works at the {PLACE2}.",
    '"Where is the {OBJECT}?" asked {NAME}. "It is at the {PLACE}," said {OTHER}. So they went there.',
    '"Hello," said {NAME}. "Hello," said {OTHER}. "It is {WEATHER} today," said {NAME}.',
    "The house of {NAME} is {COLOUR}, and the house of {OTHER} is {COLOUR2}. They are neighbours.",
    "Last night {NAME} lost a game of chess, and {OTHER} won it. They will play again on {DAY}.",
    "In the race {NAME} was first and {OTHER} was second. The people at the {PLACE} were happy.",
    "Everyone knows {NAME}. Few people know {OTHER}, who came from {CAPITAL} and lives by the {PLACE}.",
    "At school {NAME} sat next to {OTHER}. The teacher called {NAME}, and {he} read from the book.",
)
LIST_FRAMES: tuple[tuple[str, str], ...] = (
    ("Roll call:", "Again:"),
    ("The names on the list are", "Once more:"),
    ("Present today:", "Present on {DAY}:"),
    ("First team:", "The same team:"),
    ("Read after me:", "Now you:"),
)
