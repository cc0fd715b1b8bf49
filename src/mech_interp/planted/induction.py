"""Two-layer induction: after … A B … A comes B (Elhage et al. 2021; Olsson et al. 2022)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from mech_interp.planted import heads, sequences
from mech_interp.planted.assembly import assemble, readout
from mech_interp.planted.model import Pair, Planted
from mech_interp.planted.parts import DISTRACTION, Copy, Layer
from mech_interp.planted.stream import Stream

_LETTERS = 7
_LOGIT = 8.0


def build(gap: float, seed: int, dtype: torch.dtype | None) -> Planted:
    """A previous-token head composes with an induction head through its keys."""
    words = len(sequences.WORDS)
    sizes = {"token": words, "position": sequences.CONTEXT, "previous": words, "out": words}
    stream = Stream(seed, **sizes, **DISTRACTION)
    copied = [Copy(stream.read("token"), stream["out"])]
    layers = [
        Layer({"previous": heads.previous_token(stream, "previous", gap)}),
        Layer({"induction": heads.induction(stream, "previous", copied, gap)}),
    ]
    made = assemble(stream, layers, readout(stream, "out", words, _LOGIT), heads_per_layer=3, dtype=dtype)
    first, second = made.heads["previous"], made.heads["induction"]
    needed = (
        f"input->{first}<v>",
        f"{first}->{second}<k>",
        f"input->{second}<q>",
        f"input->{second}<v>",
        f"{second}->logits",
    )
    return Planted(
        name="induction",
        gap=gap,
        seed=seed,
        kind="circuit",
        module=made.module,
        mechanism=f"{first} writes at each position the token before it; {second} attends from a token to "
        "where that same token came just before, and copies what stands there to the logits.",
        words=sequences.WORDS,
        draw=draw,
        truths={"corrupt": needed, "zero": (*needed, f"input->{first}<q>", f"input->{first}<k>")},
        groups={"previous token": (first,), "induction": (second,)},
        function=function,
    )


def function(ids: Sequence[int]) -> list[int | None]:
    """What followed the present token when it came before, where it came exactly once and not just now."""
    found: list[int | None] = []
    for i, token in enumerate(ids):
        earlier = [j for j in range(i) if ids[j] == token]
        usable = len(earlier) == 1 and token != sequences.BOS and earlier[0] + 1 < i
        found.append(ids[earlier[0] + 1] if usable else None)
    return found


def draw(generator: random.Random) -> Pair:
    """Two sequences without a common letter; each ends in a letter that it has had before."""
    clean, corrupt = sequences.two_alphabets(generator, _LETTERS)
    at, other = (generator.randrange(_LETTERS - 1) for _ in range(2))
    return Pair(
        [sequences.BOS, *clean, clean[at]],
        [sequences.BOS, *corrupt, corrupt[other]],
        clean[at + 1],
        corrupt[other + 1],
    )
