"""Models and prompts in which there is nothing to find.

Both nulls make the two logits of the metric exchangeable, pair by pair and by a coin of their own, so
that what an edge does is exactly as likely to have either sign: the family-wise error of a sign-flip
test on them is the one it states. Single effects may be as large as in a model with a circuit.
"""

from __future__ import annotations

import random
from typing import Any

import torch

from mech_interp.planted import induction, sequences
from mech_interp.planted.model import Pair, Planted

_LENGTH = 6
_STD = 0.4


def build_random(gap: float, seed: int, dtype: torch.dtype | None) -> Planted:
    """Random weights in every part, with norms; random prompts, random answers."""
    from mech_interp.backends.huggingface.hooked import PlantedConfig, PlantedForCausalLM, register

    register()
    config = PlantedConfig(
        vocab_size=len(sequences.WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=3,
        head_dim=6,
        intermediate_size=24,
        hidden_act="gelu",
        norm="layer",
        max_position_embeddings=sequences.CONTEXT,
    )
    module: Any = PlantedForCausalLM(config).to(dtype or torch.float32)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = _STD * torch.randn(parameter.shape, dtype=torch.float64, generator=stream)
            gain = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.1 * drawn if gain else drawn)
    return Planted(
        name="null-random-weights",
        gap=gap,
        seed=seed,
        kind="null",
        module=module.eval(),
        mechanism="None: the weights are random, and so are the answers.",
        words=sequences.WORDS,
        draw=_draw_random,
    )


def build_shuffled(gap: float, seed: int, dtype: torch.dtype | None) -> Planted:
    """The induction model; a coin decides per pair which of its two answers is called right.

    Clean and corrupt differ by as much as ever in every pair, one way or the other. (They cannot
    differ on average without some edge into the logits doing so too: logits without a norm are the sum
    of what writers add to them.)
    """
    made = induction.build(gap, seed, dtype)
    return Planted(
        name="null-shuffled-pairing",
        gap=gap,
        seed=seed,
        kind="null",
        module=made.module,
        mechanism="None that answers this question: the model does induction, but a coin decides in each "
        "pair which of the two outputs counts as the answer.",
        words=made.words,
        draw=_draw_shuffled,
        groups=made.groups,
    )


def _draw_random(generator: random.Random) -> Pair:
    clean, corrupt = sequences.two_alphabets(generator, _LENGTH)
    answer, wrong = generator.sample(sequences.LETTERS, 2)
    return Pair([sequences.BOS, *clean], [sequences.BOS, *corrupt], answer, wrong)


def _draw_shuffled(generator: random.Random) -> Pair:
    pair = induction.draw(generator)
    return pair if generator.random() < 0.5 else pair._replace(answer=pair.wrong, wrong=pair.answer)
