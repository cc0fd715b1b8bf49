"""Training batches: documents packed into windows that each begin with a fresh document.

Prompts are given to the models without a leading separator, so every window starts at the start of a
document; further documents follow after `<|endoftext|>` and the last one is cut. Batches are a function
of (recipe, step) alone: a block of steps is written from the block's own seed, so that a resumed run
reads exactly what an uninterrupted one would have read.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mech_interp.bundled import chat, corpus
from mech_interp.bundled.recipe import Recipe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100
"""Label of a token that cannot be foreseen (or is not the assistant's), left out of the loss."""

_BLOCK_STEPS = 24
_CHUNK = 512

Tokens = list[int]
Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


def window_length(recipe: Recipe, step: int) -> int:
    """Every third step trains the whole context, the others half of it."""
    return recipe.context if step % 3 == 2 else recipe.context // 2


class Batches:
    """Deterministic random-access batches of one recipe."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        special = {tokenizer.token_to_id(text) for text in _special_tokens()}
        self._end = tokenizer.token_to_id("<|endoftext|>")
        self._assistant = tokenizer.token_to_id(chat.ASSISTANT)
        self._end_of_turn = tokenizer.token_to_id(chat.END)
        self._alphabet = [i for i in range(tokenizer.get_vocab_size()) if i not in special]
        self._block = lru_cache(maxsize=1)(self._make_block)

    def __call__(self, step: int) -> Batch:
        """Ids and labels of one step, both (windows, length)."""
        return self._block(step // _BLOCK_STEPS)[step % _BLOCK_STEPS]

    def _make_block(self, block: int) -> list[Batch]:
        seed = f"{self.recipe.seed}:{block}"
        varied = block * _BLOCK_STEPS >= self.recipe.plain_steps
        base, dialogues = self._documents(seed, varied), self._dialogues(seed)
        rng = random.Random(f"windows:{seed}")
        result = []
        for step in range(block * _BLOCK_STEPS, (block + 1) * _BLOCK_STEPS):
            length = window_length(self.recipe, step)
            rows = self.recipe.batch_tokens // length
            windows = [
                self._window(dialogues if rng.random() < self.recipe.chat_share else base, length)
                for _ in range(rows)
            ]
            ids, labels = (np.asarray(part, dtype=np.int64) for part in zip(*windows, strict=True))
            result.append((ids, labels))
        return result

    def _window(self, documents: Iterator[tuple[Tokens, Tokens]], length: int) -> tuple[Tokens, Tokens]:
        ids: Tokens = []
        labels: Tokens = []
        while len(ids) < length:
            document, label = next(documents)
            ids += [*document, self._end]
            labels += [*label, self._end]
        return ids[:length], labels[:length]

    def _documents(self, seed: str, varied: bool) -> Iterator[tuple[Tokens, Tokens]]:
        rng = random.Random(f"repetition:{seed}")
        stream = corpus.documents(seed, self.recipe.shares, varied=varied)
        while True:
            chunk = list(itertools.islice(stream, _CHUNK))
            for encoding in self.tokenizer.encode_batch([text for _, text in chunk]):
                if encoding.ids:
                    yield encoding.ids, encoding.ids
                    continue
                ids, first = corpus.repetition(rng, self._alphabet)
                yield ids, [IGNORED] * first + ids[first:]

    def _dialogues(self, seed: str) -> Iterator[tuple[Tokens, Tokens]]:
        stream = chat.dialogues(seed)
        while True:
            for encoding in self.tokenizer.encode_batch(list(itertools.islice(stream, _CHUNK))):
                yield encoding.ids, self._reply_labels(encoding.ids)

    def _reply_labels(self, ids: Tokens) -> Tokens:
        labels, replying = [], False
        for token in ids:
            labels.append(token if replying else IGNORED)
            if token == self._assistant:
                replying = True
            elif token == self._end_of_turn:
                replying = False
        return labels


def _special_tokens() -> tuple[str, ...]:
    return ("<|endoftext|>", chat.USER, chat.ASSISTANT, chat.END)
