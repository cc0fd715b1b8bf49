"""Tokenizers to test with: GPT-2's where it is present, and a tiny one made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
GPT2 = ROOT.parent / "shared" / "models" / "gpt2-tokenizer"
TINYWORLD = ROOT / "src" / "mech_interp" / "bundled" / "checkpoints" / "tinyworld"


def word_tokenizer(words: set[str], *, bos: bool = False) -> Any:
    """One token per word, spaces dropped, everything else unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", *sorted(words)])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>")


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    return word_tokenizer


@pytest.fixture(scope="session")
def gpt2() -> Any:
    if not GPT2.is_dir():
        pytest.skip(f"the GPT-2 tokenizer is not at {GPT2}")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(GPT2)


@pytest.fixture(scope="session")
def tiny() -> Any:
    """A word-level tokenizer that knows part of the lexicon, and no digits."""
    from mech_interp.datasets import lexicon as lex
    from mech_interp.datasets import templates as texts

    words = {*lex.TEST_NAMES[:8], *lex.PLACES, *lex.OBJECTS, *lex.REVIEWED_THINGS}
    words |= {*lex.POSITIVE_ADJECTIVES[:6], *lex.NEGATIVE_ADJECTIVES[:6]}
    words |= {word for pair in (*lex.NOUNS[:5], *lex.ATTRACTORS, *lex.VERBS[:3]) for word in pair}
    words |= {word for c in lex.COUNTRIES[:35] for word in (c.name, c.capital)} - {"Warsaw"}
    everything = [*texts.IOI["test"], *texts.FACTS["capital"]["test"], *texts.AGREEMENT["test"]]
    everything += [t.text for t in texts.SENTIMENT["test"]]
    words |= {piece for text in everything for piece in text.replace(",", " ,").replace(".", " .").split()}
    words |= {"positive", "negative", "happy", "sad", "Comment", "Sentiment", ":", ".", ",", "The", "the"}
    return word_tokenizer(words)


@pytest.fixture(scope="session", params=["gpt2", "tiny", "tinyworld"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param != "tinyworld":
        return request.getfixturevalue(request.param)
    if not (TINYWORLD / "tokenizer.json").is_file():
        pytest.skip("the bundled checkpoint tinyworld is not there yet")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINYWORLD)
