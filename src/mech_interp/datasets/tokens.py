"""Questions to a Hugging Face tokenizer: is this answer one token, which tokens is this span.

Answers are judged in context: tokenising prompt + answer must give the prompt's tokens and one more.
Special tokens are left out (they would prefix both sides alike) except where positions are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mech_interp.errors import InputError

Tokenizer = Any
"""A tokenizer of transformers (slow or fast); typed loosely so that transformers is not imported."""


def encode(tokenizer: Tokenizer, text: str, *, special: bool = False) -> list[int]:
    """Token ids of a text."""
    # Not verbose: an answer may lie just beyond the context, and prompts that do not fit are refused later.
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=special, verbose=False)]


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of many texts, without special tokens."""
    if not texts:
        return []
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [[int(i) for i in row] for row in rows]


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token decoded by itself; one that decodes to nothing is shown as the vocabulary has it."""
    return [str(tokenizer.decode([i])) or str(tokenizer.convert_ids_to_tokens(i)) for i in ids]


def shown(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Tokens for a message: `' Ula' | 'an' | 'ba'`."""
    return " | ".join(repr(piece) for piece in pieces(tokenizer, ids)) or "nothing"


def answer_ids(tokenizer: Tokenizer, prompt: str, answers: Sequence[str]) -> list[int | str]:
    """For each answer after `prompt`, its token id, or the reason why it is not one token."""
    before = encode(tokenizer, prompt)
    unknown = getattr(tokenizer, "unk_token_id", None)
    rows = encode_all(tokenizer, [prompt + answer for answer in answers])
    return [
        _answer(tokenizer, before, after, answer, unknown)
        for after, answer in zip(rows, answers, strict=True)
    ]


def answer_id(tokenizer: Tokenizer, prompt: str, answer: str) -> int:
    """The token id of `answer` after `prompt`.

    Raises:
        InputError: when it is not exactly one known token; the message shows the split.
    """
    found = answer_ids(tokenizer, prompt, [answer])[0]
    if isinstance(found, str):
        raise InputError(
            found[0].upper() + found[1:] + ".",
            "Use an answer that is one token here, usually a common word with its leading space.",
        )
    return found


def prompt_problem(tokenizer: Tokenizer, text: str) -> str | None:
    """Why a prompt cannot be used with this tokenizer, or None."""
    ids = encode(tokenizer, text)
    if not ids:
        return "the prompt is empty"
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in ids and not _unknown_is_shared(tokenizer):
        return f"the prompt holds words outside the vocabulary: {shown(tokenizer, ids)}"
    return None


def token_span(
    tokenizer: Tokenizer, text: str, span: tuple[int, int], *, special: bool = True
) -> tuple[int, int]:
    """The tokens [start, stop) that cover the characters [start, stop) of `text`.

    Positions count from the prompt's first token; `special` counts the tokens that the tokenizer adds
    by default (such as a BOS). A space belongs to the token that holds it, and is not looked for.

    Raises:
        InputError: when no token overlaps the span.
    """
    start, stop = span
    while start < min(stop, len(text)) and text[start].isspace():
        start += 1
    offsets = _offsets(tokenizer, text, special)
    hit = [i for i, (low, high) in enumerate(offsets) if low < stop and high > start]
    if not hit:
        raise InputError(f"No token covers characters {span} of {text!r}.", "Check the span.")
    return hit[0], hit[-1] + 1


def _answer(
    tokenizer: Tokenizer, before: list[int], after: list[int], answer: str, unknown: int | None
) -> int | str:
    if after[: len(before)] != before:
        return f"the answer {answer!r} merges with the end of the prompt: {shown(tokenizer, after[-3:])}"
    rest = after[len(before) :]
    if len(rest) != 1:
        return f"the answer {answer!r} is {len(rest)} tokens here: {shown(tokenizer, rest)}"
    if rest[0] == unknown and not _unknown_is_shared(tokenizer):
        return f"the answer {answer!r} is outside the vocabulary"
    return rest[0]


def _unknown_is_shared(tokenizer: Tokenizer) -> bool:
    """Whether the unknown token is merely an alias (byte-level vocabularies name the end-of-text token)."""
    end = getattr(tokenizer, "eos_token_id", None)
    return end is not None and getattr(tokenizer, "unk_token_id", None) == end


def _offsets(tokenizer: Tokenizer, text: str, special: bool) -> list[tuple[int, int]]:
    """Characters [start, stop) of every token; special tokens are empty spans."""
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        return [(int(low), int(high)) for low, high in encoded["offset_mapping"]]
    # Slow tokenizers give no offsets: take the lengths of decoded prefixes.
    ids = encode(tokenizer, text, special=special)
    added = set(getattr(tokenizer, "all_special_ids", ())) if special else set()
    ends = [len(tokenizer.decode([i for i in ids[: k + 1] if i not in added])) for k in range(len(ids))]
    return list(zip([0, *ends[:-1]], ends, strict=True))
