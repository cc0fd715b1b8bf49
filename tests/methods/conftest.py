"""Tiny random models and plain-hook helpers for the oracles."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mech_interp.backends.huggingface.opening import open_module
from mech_interp.datasets.pairs import PromptPair

SUPPORT = str(Path(__file__).resolve().parent.parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)

NAMES = ["Ann", "Bob", "Tom", "Sue", "cat", "dog", "people"]
PLACES = ["Paris", "Rome", "Madrid", "Spain"]
OTHERS = ["The", "capital", "of", "France", "is", "in", "city", "that", "old", "new", "big", "red"]
REST = ["gave", "say", "book", "to", "a", "and", "went", "ran", "then", "home", "land"]
WORDS = [*NAMES, *PLACES, *OTHERS, *REST]


def word_tokenizer() -> Any:
    """Every word is one token that holds its leading space."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", *WORDS, *(f" {word}" for word in WORDS)]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ ]+"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def tiny_module(family: str, vocabulary: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random checkpoint with weights large enough that every part matters."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    torch.manual_seed(seed)
    shared: dict[str, Any] = {"initializer_range": 0.25, "bos_token_id": None, "eos_token_id": None}
    config: Any
    if family == "gpt2":
        config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=3, n_head=4, n_positions=32, **shared)
    else:
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            **shared,
        )
    module = AutoModelForCausalLM.from_config(config)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
        elif "ln_" in name or "norm" in name:
            nn.init.normal_(parameter, mean=1.0, std=0.2)
    return module.to(dtype).eval()


@dataclass
class Edit:
    """At a module's input or output [position, features], apply a function."""

    module: Any
    function: Callable[[Tensor], Tensor | None]
    where: str = "output"


@dataclass
class Tiny:
    """A model opened by the engine, and the same checkpoint for plain hooks."""

    model: Any
    module: Any
    family: str

    @property
    def blocks(self) -> list[Any]:
        return list(self.module.transformer.h if self.family == "gpt2" else self.module.model.layers)

    def part(self, layer: int, name: str) -> Any:
        """attention, attention_out (its output projection), mlp of one block."""
        block = self.blocks[layer]
        if name == "mlp":
            return block.mlp
        attention = block.attn if self.family == "gpt2" else block.self_attn
        if name == "attention":
            return attention
        return attention.c_proj if self.family == "gpt2" else attention.o_proj

    @property
    def embedding(self) -> Any:
        return self.module.transformer.wte if self.family == "gpt2" else self.module.model.embed_tokens

    @property
    def final_norm(self) -> Any:
        return self.module.transformer.ln_f if self.family == "gpt2" else self.module.model.norm

    @staticmethod
    def edit(module: Any, function: Callable[[Tensor], Tensor | None], where: str = "output") -> Edit:
        return Edit(module, function, where)

    @staticmethod
    def record(store: dict[Any, Tensor], key: Any) -> Callable[[Tensor], None]:
        """A function for `edit` that only looks."""

        def function(value: Tensor) -> None:
            store[key] = value.clone()

        return function

    def ids(self, text: str) -> list[int]:
        return list(self.model.tokenizer(text)["input_ids"])

    @torch.no_grad()
    def logits(self, ids: list[int], *edits: Edit) -> Tensor:
        """Logits [position, vocabulary] of one prompt under plain hooks."""
        with _hooked(edits):
            out: Tensor = self.module(torch.tensor([ids]), use_cache=False).logits[0]
        return out


@contextmanager
def _hooked(edits: Sequence[Edit]) -> Iterator[None]:
    with ExitStack() as stack:
        for edit in edits:
            stack.callback(_hook(edit).remove)
        yield


def _hook(edit: Edit) -> Any:
    def change(value: Any) -> Any:
        tensor = value[0] if isinstance(value, tuple) else value
        flat = tensor[0].clone()
        new = edit.function(flat)
        tensor = (flat if new is None else new)[None]
        return (tensor, *value[1:]) if isinstance(value, tuple) else tensor

    if edit.where == "output":
        return edit.module.register_forward_hook(lambda _m, _i, out: change(out))

    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return edit.module.register_forward_pre_hook(before, with_kwargs=True)


def open_tiny(family: str, **options: Any) -> Tiny:
    tokenizer = word_tokenizer()
    module = tiny_module(family, len(tokenizer), **options)
    return Tiny(open_module(module, tokenizer, name=f"tiny-{family}"), module, family)


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Shared: never change its weights."""
    return open_tiny(request.param)


@pytest.fixture
def make_tiny() -> Callable[..., Tiny]:
    """A fresh model whose weights a test may set."""
    return open_tiny


class Delegate:
    """A model with some methods replaced."""

    def __init__(self, model: Any, **replaced: Any) -> None:
        self._model = model
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.fixture
def delegate() -> type[Delegate]:
    return Delegate


def make_pairs(n: int = 12, seed: int = 0) -> list[PromptPair]:
    """Clean and corrupt differ in a two-token subject; all prompts have ten tokens."""
    generator = random.Random(seed)
    pairs = []
    for i in range(n):
        one, two, three, four = generator.sample(NAMES, 4)
        subject, other = f"{one} {two}", f"{three} {four}"
        a, b = generator.sample([f" {place}" for place in PLACES], 2)
        head = f"The {generator.choice(['old', 'new', 'big'])} "
        tail = f" {generator.choice(['gave', 'say'])} that book to a {generator.choice(['red', 'city'])}"
        pairs.append(
            PromptPair(
                clean=head + subject + tail,
                corrupt=head + other + tail,
                answer=a,
                wrong=b,
                group=f"g{i}",
                spans={"subject": (len(head), len(head) + len(subject))},
                corrupt_spans={"subject": (len(head), len(head) + len(other))},
            )
        )
    return pairs


@pytest.fixture
def pairs() -> list[PromptPair]:
    return make_pairs()


@pytest.fixture
def more_pairs() -> Callable[..., list[PromptPair]]:
    return make_pairs
