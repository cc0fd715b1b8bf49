"""The bundled tokenizer: round trips, single tokens, digits in pairs, no added tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mech_interp import bundled
from mech_interp.bundled import chat, tokenizer
from mech_interp.datasets import lexicon


def _load(name: str) -> Any:
    return AutoTokenizer.from_pretrained(bundled.path(name), local_files_only=True)


TOKENIZER = _load("tinyworld")


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces \n\n and\ttabs ",
        "emoji 🙂👩‍🚀 and flags 🇵🇹",
        "日本語 Ελληνικά العربية é",
        "Unseen words, like zygote; don't!",
        "12345678901 1.5e-3 year1999",
        "<|user|> inside <|end|> text",
        "\x00\x7f\ufeff",
    ],
)
def test_difficult_texts_round_trip(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize("name", bundled.NAMES)
def test_names_places_and_year_halves_are_single_tokens(name: str) -> None:
    loaded = _load(name)
    words = [*lexicon.ALL_NAMES, *lexicon.CAPITALS, *lexicon.LANGUAGES, *(c.name for c in lexicon.COUNTRIES)]
    words += [f"{half:02d}" for half in range(100)]
    split = [word for word in words if len(loaded.encode(f" {word}")) != 1]
    assert split == []
    assert [half for half in range(100) if len(loaded.encode(f"{half:02d}")) != 1] == []


def test_years_are_cut_into_halves() -> None:
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode(" 1834")] == [" 18", "34"]
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode("183")] == ["18", "3"]


def test_nothing_is_added_to_a_prompt() -> None:
    ids = TOKENIZER.encode("The capital of France is")
    assert [TOKENIZER.decode([i]) for i in ids] == ["The", " capital", " of", " France", " is"]
    assert TOKENIZER("The capital of France is").input_ids == ids
    assert TOKENIZER.eos_token == TOKENIZER.bos_token == TOKENIZER.pad_token == tokenizer.END_OF_TEXT


def test_vocabulary_is_within_its_bound_and_special_tokens_come_first() -> None:
    assert 1400 <= len(TOKENIZER) <= tokenizer.VOCABULARY
    assert TOKENIZER.convert_tokens_to_ids(list(tokenizer.SPECIAL_TOKENS)) == [0, 1, 2, 3]


def test_building_again_gives_the_shipped_tokenizer() -> None:
    built = tokenizer.build()
    for name in bundled.NAMES:
        loaded = _load(name)
        assert loaded.get_vocab() == built.get_vocab()
        text = "In 1999 Zoë said: 'The capital of France is Paris.'\n"
        assert loaded.encode(text) == built.encode(text).ids


def test_chat_template_writes_the_training_format() -> None:
    loaded = _load("tinyworld-chat")
    messages = [{"role": "user", "content": "How do I paint a house?"}]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == chat.prompt("How do I paint a house?")
    both = [*messages, {"role": "assistant", "content": "Sure."}]
    assert loaded.apply_chat_template(both, tokenize=False) == f"{text} Sure.{chat.END}"
    assert loaded.eos_token == chat.END


def test_chat_template_refuses_other_roles() -> None:
    loaded = _load("tinyworld-chat")
    with pytest.raises(Exception, match="roles user and assistant"):
        loaded.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)
