"""Batches of tokens: positions, padding, text, and everything that is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mech_interp.backends.tokenize import single_token, tokenize
from mech_interp.backends.tokens import Tokens, concatenate
from mech_interp.errors import InputError

rows_of_ids = st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=6), min_size=1, max_size=5)
INFO: Any = SimpleNamespace(name="toy", context=8, vocabulary=97)


class Letters:
    """A tokenizer of single letters, with or without a first token of its own."""

    def __init__(self, bos: bool = False) -> None:
        self.bos_token_id, self.bos_token = (0, "^") if bos else (None, None)

    def __call__(self, text: str) -> dict[str, list[int]]:
        start = [] if self.bos_token_id is None else [0]
        return {"input_ids": start + self.encode(text)}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        assert not add_special_tokens
        # "ab" is one token, as in tokenizers that merge.
        return [90 if piece == "+" else ord(piece) - 96 for piece in text.replace("ab", "+")]

    def decode(self, ids: list[int]) -> str:
        return "".join("ab" if i == 90 else chr(i + 96) for i in ids)


@settings(deadline=None)
@given(rows_of_ids)
def test_rows_come_back(rows: list[list[int]]) -> None:
    tokens = Tokens.from_lists(rows)
    assert [tokens.row(i) for i in range(len(tokens))] == rows
    assert tokens.mask.sum(1).tolist() == [len(row) for row in rows]
    assert concatenate([tokens, tokens]).ids[len(rows) :].tolist() == tokens.ids.tolist()


@settings(deadline=None)
@given(rows_of_ids, st.integers(0, 3), st.data())
def test_padding_on_either_side_or_both_is_removed(rows: list[list[int]], extra: int, data: Any) -> None:
    width = max(map(len, rows)) + extra
    ids, mask = [], []
    for row in rows:
        before = data.draw(st.integers(0, width - len(row)))
        after = width - len(row) - before
        ids.append([7] * before + row + [7] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    tokens = Tokens.from_padded(torch.tensor(ids), torch.tensor(mask))
    assert [tokens.row(i) for i in range(len(rows))] == rows


@settings(deadline=None)
@given(rows_of_ids, st.integers(-9, 9))
def test_positions_count_real_tokens_from_either_end(rows: list[list[int]], position: int) -> None:
    tokens = Tokens.from_lists(rows)
    for i, row in enumerate(rows):
        if -len(row) <= position < len(row):
            assert tokens.ids[i, tokens.position(i, position)] == row[position]
        else:
            with pytest.raises(InputError, match=f"Position {position} does not exist in prompt {i}"):
                tokens.position(i, position)


def test_selection_trims_to_its_own_longest() -> None:
    tokens = Tokens(torch.tensor([[1, 2, 3], [4, 0, 0], [5, 6, 0]]), (3, 1, 2), ("x", "y", "z"), "no BOS")
    chosen = tokens.select([2, 1])
    assert (chosen.ids.tolist(), chosen.lengths, chosen.texts) == ([[5, 6], [4, 0]], (2, 1), ("z", "y"))
    assert chosen.convention == "no BOS"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", "Prompt 0 is empty"),
        (["abc", ""], "Prompt 1 is empty"),
        ([], "Prompt 0 is empty"),
        ([[1], []], "Prompt 1 is empty"),
        (Tokens(torch.zeros(2, 3).long(), (3, 0)), "Prompt 1 is empty"),
        (Tokens(torch.zeros(0, 3).long(), ()), "Prompt 0 is empty"),
        ("ccccccccc", "Prompt 0 has 9 tokens, but toy reads at most 8"),
        ([[1], [1] * 9], "Prompt 1 has 9 tokens"),
        ([[1, 97]], "Token id 97 is outside the vocabulary of 97"),
        ([[1, -1]], "Token id -1 is outside"),
        ([1, 2, 3], "list of texts, or a list of lists"),
        ([[1.5]], "list of texts, or a list of lists"),
        ([[None]], "list of texts, or a list of lists"),
        (["a", [1]], "mixed"),
        ([[1], "a"], "list of texts, or a list of lists"),
    ],
)
def test_bad_prompts(prompts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        tokenize(prompts, Letters(), INFO)
    assert caught.value.hint


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(InputError, match="came without a tokenizer"):
        tokenize("abc", None, INFO)
    assert tokenize([[1, 2]], None, INFO).row(0) == [1, 2]


def test_special_tokens_are_the_tokenizers_own_and_are_said() -> None:
    plain = tokenize(["cab", "d"], Letters(), INFO)
    assert ([plain.row(0), plain.row(1)], plain.convention) == ([[3, 90], [4]], "no BOS")
    assert plain.texts == ("cab", "d")
    begun = tokenize("cab", Letters(bos=True), INFO)
    assert (begun.row(0), begun.convention) == ([0, 3, 90], "BOS ^ added by the tokenizer")


def test_an_answer_is_one_token_or_shown_split() -> None:
    assert single_token(Letters(), "c") == 3
    with pytest.raises(InputError, match=r"'cd' is 2 tokens for this tokenizer \('c' \| 'd'\)"):
        single_token(Letters(), "cd")
    with pytest.raises(InputError, match="is 0 tokens"):
        single_token(Letters(), "")
    # How an answer is split depends on what comes before; where it merges with it, it stands by itself.
    assert single_token(Letters(), "c", prompt="dd") == 3
    assert single_token(Letters(), "b", prompt="a") == 2
