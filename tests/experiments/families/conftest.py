"""A tiny deterministic model, pairs that it tells apart, and contexts to run families in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mech_interp.experiments import Context, Result, get
from mech_interp.experiments.context import MemoryStore

NAMES = ["Ann", "Bob", "Tom", "Sue", "cat", "dog"]
WORDS = [*NAMES, "The", "old", "new", "big", "gave", "say", "that", "book", "to", "a", "red", "12", "7", "."]
TAILS = ["gave that book to a", "say that book to a", "gave that red book to a", "say a book to that"]


def word_tokenizer() -> Any:
    """Every word is one token that holds its leading space."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", *WORDS, *(f" {word}" for word in WORDS)]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ ]+"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def tiny_model(seed: int = 0) -> Any:
    """Two layers of a GPT-2, double precision, weights from a generator that never changes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from mech_interp.backends.huggingface.opening import open_module

    tokenizer = word_tokenizer()
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 16}
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, **sizes)
    module = GPT2LMHeadModel(config).double().eval()
    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            values = torch.from_numpy(draw.standard_normal(tuple(parameter.shape)))
            norm = "ln_" in name and name.endswith("weight")
            parameter.copy_(1 + 0.2 * values if norm else 0.4 * values)
    return open_module(module, tokenizer, name="tiny")


def pair_records(model: Any, n: int = 12) -> list[dict[str, Any]]:
    """Pairs whose answer and foil are the words by which the model tells the two prompts apart."""
    draw = np.random.RandomState(1)
    records: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(records) < n:
        one, other = draw.choice(NAMES, 2, replace=False)
        old, tail = ["old", "new", "big"][draw.randint(3)], TAILS[draw.randint(len(TAILS))]
        clean, corrupt = (f"The {old} {name} {tail}" for name in (one, other))
        if clean in seen:
            continue
        seen.add(clean)
        answer, wrong, margin = _told_apart(model, clean, corrupt)
        if margin < 0.6:
            continue
        records.append(
            {
                "id": f"pair-{len(records)}",
                "clean_prompt": clean,
                "corrupted_prompt": corrupt,
                "correct_token": answer,
                "incorrect_token": wrong,
                "spans": {"subject": str(one)},
                "corrupt_spans": {"subject": str(other)},
            }
        )
    return records


def _told_apart(model: Any, clean: str, corrupt: str) -> tuple[str, str, float]:
    """The words that the clean prompt raises and lowers most against the corrupt one, and how far apart."""
    one, other = model.forward([clean, corrupt], logits="last").logits
    # Only words with a leading space can follow: the others are beginnings.
    start = 1 + len(WORDS)
    change = (one - other)[start:]
    ids = [start + int(change.argmax()), start + int(change.argmin())]
    first, second = model.tokenizer.convert_ids_to_tokens(ids)
    return str(first), str(second), float(change.max() - change.min())


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model() -> Any:
    """Shared: never change its weights."""
    return tiny_model()


@pytest.fixture(scope="session")
def records(model: Any) -> list[dict[str, Any]]:
    return pair_records(model)


Run = Callable[..., Result]


@pytest.fixture
def run(model: Any) -> Run:
    """Run a family with parameters; `contexts` is a list that gets the context."""

    def go(
        family: str,
        units: MemoryStore | None = None,
        seed: int = 3,
        contexts: list[Any] | None = None,
        on: Any = None,
        **parameters: Any,
    ) -> Result:
        found = get(family)
        context: Any = Context(
            found.Params.model_validate(parameters), seed=seed, load_model=lambda: on or model, units=units
        )
        if contexts is not None:
            contexts.append(context)
        return found.run(context)

    return go


class HalfStore(MemoryStore):
    """Keeps units until told to lose every second one, as a kill in the middle would."""

    def lose_half(self) -> tuple[list[str], list[str]]:
        """(kept, lost) keys."""
        keys = list(self._units)
        lost = keys[1::2] or keys
        for key in lost:
            del self._units[key]
        return [key for key in keys if key not in lost], lost


@pytest.fixture
def half_store() -> HalfStore:
    return HalfStore()
