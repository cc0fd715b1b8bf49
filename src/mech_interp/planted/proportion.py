"""Proportion: the fraction of ``x`` among the tokens so far, at every position.

The classic compiled task (Lindner et al. 2023). Logit i says how near the fraction is to the i-th one:
``-_SHARP (fraction - value_i)^2 / 2`` but for a term that all logits share.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

import torch

from mech_interp.planted.assembly import Readout, assemble
from mech_interp.planted.model import Pair, Planted
from mech_interp.planted.parts import DISTRACTION, Copy, Head, Layer, Match, Unit
from mech_interp.planted.stream import Stream

WORDS = ("<bos>", "x", "a", "b", "c", "d")
BOS, X = 0, 1
OTHERS = tuple(range(2, len(WORDS)))
LONGEST = 6
VALUES = tuple(sorted({Fraction(i, n) for n in range(1, LONGEST + 1) for i in range(n + 1)}))
_SHARP = 100.0


def build(gap: float, seed: int, dtype: torch.dtype | None) -> Planted:
    """An MLP marks the tokens, a head takes the mean of the marks."""
    sizes = {"token": len(WORDS), "position": LONGEST + 1, "mark": 1, "fraction": 1}
    stream = Stream(seed, **sizes, **DISTRACTION)
    mean = Head(
        [Match(stream.constant(), -stream.flag("token", [BOS]), gap)],
        [Copy(stream.read("mark"), stream["fraction"])],
    )
    layers = [Layer(units=[Unit(stream["token"][X], 0.0, stream["mark"][0])]), Layer({"mean": mean})]
    values = torch.tensor([float(value) for value in VALUES], dtype=torch.float64)
    read = Readout(_SHARP * stream["fraction"].T * values, -_SHARP * values**2 / 2)
    made = assemble(stream, layers, read, heads_per_layer=3, dtype=dtype)
    head = made.heads["mean"]
    needed = ("input->m0", f"m0->{head}<v>", f"{head}->logits")
    return Planted(
        name="proportion",
        gap=gap,
        seed=seed,
        kind="circuit",
        module=made.module,
        mechanism=f"m0 marks every x; {head} attends to all tokens but the start alike, so that it writes "
        "the fraction of marks.",
        words=WORDS,
        outputs=tuple(str(value) for value in VALUES),
        draw=_draw,
        ablation="zero",
        truths={"zero": (*needed, f"input->{head}<k>"), "corrupt": needed},
        groups={"mean": (head,)},
        function=function,
    )


def function(ids: Sequence[int]) -> list[int | None]:
    """Which of `VALUES` the fraction of x among the tokens after the start is; none at the start."""
    found: list[int | None] = [None]
    for i in range(1, len(ids)):
        found.append(VALUES.index(Fraction(sum(token == X for token in ids[1 : i + 1]), i)))
    return found


def _draw(generator: random.Random) -> Pair:
    """Clean has more x than corrupt, so that what an edge does has the same sign in all pairs."""
    n = generator.randint(3, LONGEST)
    few, many = sorted(generator.sample(range(n + 1), 2))
    (clean, answer), (corrupt, wrong) = (_prompt(generator, count, n) for count in (many, few))
    return Pair(clean, corrupt, answer, wrong)


def _prompt(generator: random.Random, count: int, n: int) -> tuple[list[int], int]:
    tokens = [X] * count + [generator.choice(OTHERS) for _ in range(n - count)]
    generator.shuffle(tokens)
    return [BOS, *tokens], VALUES.index(Fraction(count, n))
