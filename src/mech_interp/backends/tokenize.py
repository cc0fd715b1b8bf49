"""Text to `Tokens`: the tokenizer's own defaults, stated rather than changed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from mech_interp.backends.protocol import ModelInfo
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError


def tokenize(
    prompts: str | Sequence[str] | Sequence[Sequence[int]] | Tokens, tokenizer: Any, info: ModelInfo
) -> Tokens:
    """Tokenise prompts, or check ids that were given.

    Raises:
        InputError: for an empty prompt, ids outside the vocabulary, a prompt past the context, or text
            given to a model without a tokenizer.
    """
    if isinstance(prompts, Tokens):
        batch = prompts
    elif isinstance(prompts, str):
        batch = _from_texts([prompts], tokenizer, info)
    elif len(prompts) and isinstance(prompts[0], str):
        if not all(isinstance(p, str) for p in prompts):
            raise InputError("Texts and token ids are mixed in one batch.", "Give all prompts in one form.")
        batch = _from_texts([str(p) for p in prompts], tokenizer, info)
    else:
        batch = Tokens.from_lists(_id_lists(prompts))
    _check(batch, info)
    return batch


def single_token(tokenizer: Any, text: str, prompt: str | None = None) -> int:
    """The id of an answer that must be one token; with `prompt`, as it continues that prompt.

    Raises:
        InputError: showing how the text was split.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    if prompt is not None:
        # Some tokenizers merge differently in context: the continuation decides.
        before = tokenizer.encode(prompt, add_special_tokens=False)
        joined = tokenizer.encode(prompt + text, add_special_tokens=False)
        if joined[: len(before)] == before:
            ids = joined[len(before) :]
    if len(ids) != 1:
        parts = " | ".join(repr(tokenizer.decode([i])) for i in ids)
        raise InputError(
            f"The answer {text!r} is {len(ids)} tokens for this tokenizer ({parts}), but must be one.",
            "Choose an answer that is one token; most tokenizers need its leading space.",
        )
    return int(ids[0])


def _from_texts(texts: list[str], tokenizer: Any, info: ModelInfo) -> Tokens:
    if tokenizer is None:
        raise InputError(f"{info.name} came without a tokenizer, so it cannot read text.", "Give token ids.")
    rows = [list(tokenizer(text)["input_ids"]) for text in texts]
    for index, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if not row or not text:
            raise InputError(f"Prompt {index} is empty.", "Give at least one token of text.")
    bos = tokenizer.bos_token_id
    added = (
        bos is not None
        and all(row[0] == bos for row in rows)
        and not any(text.startswith(str(tokenizer.bos_token)) for text in texts)
    )
    convention = f"BOS {tokenizer.bos_token} added by the tokenizer" if added else "no BOS"
    batch = Tokens.from_lists(rows)
    return Tokens(batch.ids, batch.lengths, tuple(texts), convention)


def _id_lists(prompts: Any) -> list[list[int]]:
    try:
        return [[operator.index(i) for i in prompt] for prompt in prompts]
    except TypeError:
        raise InputError(
            "Prompts must be a text, a list of texts, or a list of lists of token ids.",
            "Give for example ['The sky is'] or [[1, 2, 3]].",
        ) from None


def _check(batch: Tokens, info: ModelInfo) -> None:
    if not batch.lengths or min(batch.lengths) < 1:
        empty = batch.lengths.index(min(batch.lengths)) if batch.lengths else 0
        raise InputError(f"Prompt {empty} is empty.", "Give at least one token.")
    longest = max(batch.lengths)
    if longest > info.context:
        raise InputError(
            f"Prompt {batch.lengths.index(longest)} has {longest} tokens, "
            f"but {info.name} reads at most {info.context}.",
            "Shorten it.",
        )
    largest, smallest = int(batch.ids.max()), int(batch.ids.min())
    if largest >= info.vocabulary or smallest < 0:
        wrong = largest if largest >= info.vocabulary else smallest
        raise InputError(
            f"Token id {wrong} is outside the vocabulary of {info.vocabulary}.",
            "Tokenise with this model's own tokenizer.",
        )
