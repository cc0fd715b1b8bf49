"""The setting every side is given: random weights, prompts, answers, a tokenizer of dummy words."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

BATCH, LENGTH, CHANGED = 8, 16, 5


@dataclass(frozen=True)
class Shape:
    """Size of the model: GPT-2 small unless told otherwise."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257


SHAPES = {"gpt2-small": Shape(), "toy": Shape(n_layer=3, n_head=4, n_embd=32, vocab_size=97)}


@dataclass(frozen=True)
class Workload:
    """Clean and corrupt prompts [prompt, position] with the two answers of each, [prompt, 2]."""

    name: str
    clean: Tensor
    corrupt: Tensor
    answers: Tensor

    def metric(self, logits: Tensor) -> Tensor:
        """Mean logit difference at the last position, from logits [prompt, position, vocabulary]."""
        picked = logits[:, -1].gather(1, self.answers)
        return (picked[:, 0] - picked[:, 1]).mean()


def random_module(shape: Shape, seed: int = 0) -> Any:
    """A GPT-2 of transformers with its own random initialisation; the same weights for the same seed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    end = shape.vocab_size - 1
    config = GPT2Config(**asdict(shape), bos_token_id=end, eos_token_id=end)
    return GPT2LMHeadModel(config).eval()


@functools.cache
def workload(name: str, shape: Shape, seed: int = 0) -> Workload:
    """`one_token`: clean and corrupt differ in one token, position 5 of 16. `all_tokens`: in every token."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = shape.vocab_size - 1  # the last id is the dummy tokenizer's end of text
    clean = torch.randint(vocabulary, (BATCH, LENGTH), generator=generator)
    shift = torch.randint(1, vocabulary, (BATCH, LENGTH), generator=generator)
    other = (clean + shift) % vocabulary  # differs from clean everywhere
    answers = torch.randint(vocabulary, (BATCH, 1), generator=generator)
    answers = torch.cat((answers, (answers + 1) % vocabulary), 1)
    if name == "one_token":
        corrupt = clean.clone()
        corrupt[:, CHANGED] = other[:, CHANGED]
    else:
        corrupt = other
    return Workload(name, clean, corrupt, answers)


def word(token: int) -> str:
    """The dummy tokenizer's text of a token id."""
    return f"t{token}"


@functools.cache
def dummy_tokenizer(shape: Shape) -> Any:
    """A word-level tokenizer whose word for id i is ``ti``: peers and text prompts need one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    end = "<end>"
    words = {word(i): i for i in range(shape.vocab_size - 1)} | {end: shape.vocab_size - 1}
    backend = Tokenizer(models.WordLevel(words, unk_token=end))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=end, eos_token=end)
