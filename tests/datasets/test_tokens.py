"""Answers are judged in context, spans are found by their characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mech_interp.datasets.tokens import answer_id, answer_ids, prompt_problem, token_span
from mech_interp.errors import InputError


def test_single_token_answer(gpt2: Any) -> None:
    assert answer_id(gpt2, "The capital of France is", " Paris") == gpt2.encode(" Paris")[0] == 6342


def test_multi_token_answer_shows_its_split(gpt2: Any) -> None:
    with pytest.raises(InputError) as caught:
        answer_id(gpt2, "The capital of Mongolia is", " Ulaanbaatar")
    split = " | ".join(repr(gpt2.decode([i])) for i in gpt2.encode(" Ulaanbaatar"))
    assert split in caught.value.message
    assert split.count("|") >= 2
    assert caught.value.message.count(".") == 1


def test_answer_that_merges_with_the_prompt_is_refused(gpt2: Any) -> None:
    # " 19" + "45" is one token " 1945", so the prompt's tokens would change
    found = answer_ids(gpt2, "It ended in 19", ["45", " Paris"])
    assert "merges" in str(found[0])
    assert isinstance(found[1], int)


def test_empty_answer_is_refused(gpt2: Any) -> None:
    with pytest.raises(InputError, match="0 tokens"):
        answer_id(gpt2, "The", "")


def test_unknown_words_are_refused(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer({"The", "dog", "is"})
    assert answer_id(tokenizer, "The dog", " is") == tokenizer.convert_tokens_to_ids("is")
    with pytest.raises(InputError, match="outside the vocabulary"):
        answer_id(tokenizer, "The dog", " barks")
    assert prompt_problem(tokenizer, "The dog") is None
    assert "outside the vocabulary" in str(prompt_problem(tokenizer, "The cat"))
    assert prompt_problem(tokenizer, "") == "the prompt is empty"


@pytest.mark.parametrize(
    ("words", "tokens"), [("France", (3, 4)), ("capital of", (1, 3)), (" France is", (3, 5))]
)
def test_spans_cover_the_words(gpt2: Any, words: str, tokens: tuple[int, int]) -> None:
    text = "The capital of France is"
    start = text.index(words)
    assert token_span(gpt2, text, (start, start + len(words))) == tokens


def test_spans_of_several_tokens(gpt2: Any) -> None:
    text = "The capital of Kazakhstan is"
    first, stop = token_span(gpt2, text, (15, 25))
    assert gpt2.decode(gpt2.encode(text)[first:stop]) == " Kazakhstan"


def test_special_tokens_shift_positions(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer({"The", "dog", "is"}, bos=True)
    assert token_span(tokenizer, "The dog is", (4, 7)) == (2, 3)
    assert token_span(tokenizer, "The dog is", (4, 7), special=False) == (1, 2)


class Slow:
    """A tokenizer without offsets."""

    is_fast = False

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def encode(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> list[int]:
        del verbose
        return list(self.inner.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: list[int]) -> str:
        return str(self.inner.decode(ids))


def test_slow_tokenizers_agree_with_fast_ones(gpt2: Any) -> None:
    text = "When Mary and John went to the store, John gave a kangaroo to"
    for word in text.replace(",", "").split():
        start = text.index(word)
        span = (start, start + len(word))
        assert token_span(Slow(gpt2), text, span) == token_span(gpt2, text, span)


def test_span_without_tokens_is_refused(gpt2: Any) -> None:
    with pytest.raises(InputError, match="No token covers"):
        token_span(gpt2, "The dog", (40, 44))
