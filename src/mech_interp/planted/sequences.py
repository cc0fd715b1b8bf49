"""Words and random sequences shared by planted models: ``<bos>`` and letters."""

from __future__ import annotations

import random

BOS = 0
WORDS = ("<bos>", *"abcdefghijklmnopqrst")
LETTERS = tuple(range(1, len(WORDS)))
CONTEXT = 10


def two_alphabets(generator: random.Random, n: int) -> tuple[list[int], list[int]]:
    """Two lists of `n` letters, no letter twice in either or in both."""
    drawn = generator.sample(LETTERS, 2 * n)
    return drawn[:n], drawn[n:]
