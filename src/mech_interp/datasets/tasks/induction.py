"""Repetition of random tokens (Olsson et al. 2022, arXiv:2209.11895).

A sequence of distinct random word tokens, then its beginning again: "A B C D E A B" -> " C". Only
copying what followed the earlier occurrence predicts the answer. In the corrupt prompt that one earlier
token is another word, so that the answer flips with a single changed token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from mech_interp.datasets.lexicon import Split
from mech_interp.datasets.pairs import Drop, PromptPair, TaskSet
from mech_interp.datasets.tasks.common import collect, generator, need
from mech_interp.datasets.tokens import Tokenizer, answer_ids, encode
from mech_interp.errors import InputError

SOURCE = "Olsson et al. 2022, arXiv:2209.11895"
_POOL = 400
_BATCH = 1000


def induction(
    tokenizer: Tokenizer,
    n: int = 64,
    seed: int = 0,
    split: Split = "test",
    *,
    length: int = 10,
    repeated: int | None = None,
    token_ids: Sequence[int] | None = None,
) -> TaskSet:
    """Induction pairs over sequences of `length` tokens, of which the first `repeated` come again.

    `repeated` is random from 1 to length - 1 by default. Tokens are drawn from `token_ids`, or from the
    vocabulary's plain lower-case words. Spans: `previous` (the token before the answer, first time),
    `source` (the token to be copied), `end` (the last token). Group: the sequence.
    """
    rng = generator("induction", seed, split)
    if length < 2 or (repeated is not None and not 1 <= repeated < length):
        raise InputError(
            f"A sequence of {length} tokens cannot be repeated up to token {repeated}.",
            "Use a length of 2 or more and 1 <= repeated < length.",
        )
    words = _pool(rng, tokenizer, token_ids)
    need(len(words), length + 1, "plain words", [])
    drops: list[Drop] = []
    candidates = _candidates(rng, tokenizer, words, length, repeated, drops)
    return collect("induction", candidates, tokenizer, n, drops=drops, split=split, source=SOURCE)


def _pool(rng: Random, tokenizer: Tokenizer, token_ids: Sequence[int] | None) -> list[str]:
    """Words that are one token with a leading space."""
    ids = sorted(set(tokenizer.get_vocab().values())) if token_ids is None else list(token_ids)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    ids = [i for i in ids if i not in special]
    rng.shuffle(ids)
    limit = _POOL if token_ids is None else len(ids)
    words: dict[str, None] = {}
    for start in range(0, len(ids), _BATCH):
        batch = [str(tokenizer.decode([i])).strip() for i in ids[start : start + _BATCH]]
        if token_ids is None:
            batch = [w for w in batch if w.isascii() and w.isalpha() and w.islower() and 3 <= len(w) <= 10]
        batch = [word for word in batch if word]
        found = answer_ids(tokenizer, "The", [f" {word}" for word in batch])
        words |= {word: None for word, one in zip(batch, found, strict=True) if not isinstance(one, str)}
        if len(words) >= limit:
            break
    return list(words)[:limit]


def _candidates(
    rng: Random,
    tokenizer: Tokenizer,
    words: Sequence[str],
    length: int,
    repeated: int | None,
    drops: list[Drop],
) -> Iterator[PromptPair]:
    """Random sequences whose two parts have the same token ids."""
    while True:
        *sequence, foil = rng.sample(list(words), length + 1)
        again = repeated if repeated is not None else rng.randint(1, length - 1)
        other = [*sequence[:again], foil, *sequence[again + 1 :]]
        clean, spans = _text(tokenizer, sequence, again)
        corrupt, corrupt_spans = _text(tokenizer, other, again)
        if clean is None or corrupt is None:
            drops.append(Drop(" ".join(sequence), "the repeated words are not the same single tokens"))
            if len(drops) > 500:
                return
            continue
        yield PromptPair(
            clean=clean,
            corrupt=corrupt,
            answer=f" {sequence[again]}",
            wrong=f" {foil}",
            group=" ".join(sequence),
            spans=spans,
            corrupt_spans=corrupt_spans,
            metadata={"length": length, "repeated": again},
        )


def _text(
    tokenizer: Tokenizer, words: Sequence[str], again: int
) -> tuple[str | None, dict[str, tuple[int, int]]]:
    """The prompt, starting with a space where the tokenizer needs one for equal tokens."""
    everything = [*words, *words[:again]]
    for lead in (" ", ""):
        text = lead + " ".join(everything)
        ids = encode(tokenizer, text)
        if len(ids) == len(everything) and ids[:again] == ids[len(words) :]:
            starts, at = [], len(lead)
            for word in everything:
                starts.append((at, at + len(word)))
                at += len(word) + 1
            return text, {"previous": starts[again - 1], "source": starts[again], "end": starts[-1]}
    return None, {}
