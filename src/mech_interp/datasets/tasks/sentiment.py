"""Stated sentiment (after Tigges et al. 2023, arXiv:2310.15154).

One adjective states the sentiment, and the answer names it: "Comment: This film is awful. Sentiment:" ->
" negative". The corrupt prompt has an adjective of the other sentiment and the same token length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from mech_interp.datasets.lexicon import NEGATIVE_ADJECTIVES, POSITIVE_ADJECTIVES, REVIEWED_THINGS, Split
from mech_interp.datasets.pairs import Drop, PromptPair, TaskSet
from mech_interp.datasets.tasks.common import collect, fill, generator
from mech_interp.datasets.templates import SENTIMENT, SentimentTemplate
from mech_interp.datasets.tokens import Tokenizer, encode
from mech_interp.errors import InputError

SOURCE = "after Tigges et al. 2023, arXiv:2310.15154"


def sentiment(
    tokenizer: Tokenizer,
    n: int = 64,
    seed: int = 0,
    split: Split = "test",
    *,
    templates: Sequence[SentimentTemplate] | None = None,
) -> TaskSet:
    """Sentiment pairs, positive and negative in turn.

    After "a" only adjectives that take "a" are used. Spans: `adjective`, `thing`. Group: template x
    adjective x thing.
    """
    rng = generator("sentiment", seed, split)
    texts = tuple(SENTIMENT[split] if templates is None else templates)
    if not texts:
        raise InputError("There are no sentiment templates.", "Give at least one.")
    drops: list[Drop] = []
    candidates = _candidates(rng, tokenizer, texts, drops)
    return collect("sentiment", candidates, tokenizer, n, drops=drops, split=split, source=SOURCE)


def _candidates(
    rng: Random, tokenizer: Tokenizer, templates: Sequence[SentimentTemplate], drops: list[Drop]
) -> Iterator[PromptPair]:
    """Templates in turn, with random things and adjectives."""
    sets = (POSITIVE_ADJECTIVES, NEGATIVE_ADJECTIVES)
    length = {word: len(encode(tokenizer, f"so {word}")) for words in sets for word in words}
    lonely: set[str] = set()
    index = 0
    while len(lonely) < len(length):
        template = templates[index % len(templates)]
        positive = index // len(templates) % 2 == 0
        index += 1
        mine, others = sets if positive else sets[::-1]
        adjective = rng.choice([word for word in mine if _fits(template.text, word)])
        foils = [w for w in others if _fits(template.text, w) and length[w] == length[adjective]]
        if not foils:
            if adjective not in lonely:
                lonely.add(adjective)
                drops.append(Drop(adjective, "no adjective of the other sentiment has as many tokens"))
            continue
        foil, thing = rng.choice(foils), rng.choice(REVIEWED_THINGS)
        clean, spans = fill(template.text, THING=thing, ADJECTIVE=adjective)
        corrupt, other_spans = fill(template.text, THING=thing, ADJECTIVE=foil)
        right, wrong = (
            (template.positive, template.negative) if positive else (template.negative, template.positive)
        )
        yield PromptPair(
            clean=clean,
            corrupt=corrupt,
            answer=f" {right}",
            wrong=f" {wrong}",
            group=f"{template.text}|{adjective}|{thing}",
            spans={"adjective": spans["ADJECTIVE"], "thing": spans["THING"]},
            corrupt_spans={"adjective": other_spans["ADJECTIVE"], "thing": other_spans["THING"]},
            metadata={"template": template.text, "sentiment": "positive" if positive else "negative"},
        )


def _fits(template: str, adjective: str) -> bool:
    """Whether the adjective suits the article before it."""
    before = template.split("{ADJECTIVE}")[0].lower().split()
    return before[-1:] != ["a"] or adjective[0] not in "aeiou"
