"""Previous-token copy: the output at every position is the token before it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from mech_interp.planted import heads, sequences
from mech_interp.planted.assembly import assemble, readout
from mech_interp.planted.model import Pair, Planted
from mech_interp.planted.parts import DISTRACTION, Layer
from mech_interp.planted.stream import Stream

_LENGTH = 7
_LOGIT = 8.0


def build(gap: float, seed: int, dtype: torch.dtype | None) -> Planted:
    """One head attends to the position before and copies its token to the logits."""
    words = len(sequences.WORDS)
    stream = Stream(seed, token=words, position=sequences.CONTEXT, out=words, **DISTRACTION)
    layers = [Layer({"copy": heads.previous_token(stream, "out", gap)}), Layer()]
    made = assemble(stream, layers, readout(stream, "out", words, _LOGIT), heads_per_layer=3, dtype=dtype)
    copy = made.heads["copy"]
    needed = (f"input->{copy}<v>", f"{copy}->logits")
    return Planted(
        name="previous-token-copy",
        gap=gap,
        seed=seed,
        kind="circuit",
        module=made.module,
        mechanism=f"{copy} attends to the position before its own and copies the token there to the logits.",
        words=sequences.WORDS,
        draw=_draw,
        truths={"corrupt": needed, "zero": (*needed, f"input->{copy}<q>", f"input->{copy}<k>")},
        groups={"previous token": (copy,)},
        function=function,
    )


def function(ids: Sequence[int]) -> list[int | None]:
    """The token before each; at the start, itself."""
    return [ids[max(0, i - 1)] for i in range(len(ids))]


def _draw(generator: random.Random) -> Pair:
    clean, corrupt = sequences.two_alphabets(generator, _LENGTH)
    return Pair([sequences.BOS, *clean], [sequences.BOS, *corrupt], clean[-2], corrupt[-2])
