"""Duplicate-token detection: has the present token come before?"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from mech_interp.planted import heads, sequences
from mech_interp.planted.assembly import Readout, assemble
from mech_interp.planted.model import Pair, Planted
from mech_interp.planted.parts import DISTRACTION, Layer
from mech_interp.planted.stream import Stream

_LETTERS = 7
_LOGIT = 8.0
_OUTPUTS = ("new", "seen")


def build(gap: float, seed: int, dtype: torch.dtype | None) -> Planted:
    """One head attends to an earlier copy of the present token, and says whether it found one."""
    words = len(sequences.WORDS)
    stream = Stream(seed, token=words, position=sequences.CONTEXT, seen=1, **DISTRACTION)
    layers = [Layer({"duplicate": heads.duplicate(stream, "seen", gap)}), Layer()]
    signs = torch.tensor([-_LOGIT, _LOGIT], dtype=torch.float64)
    read = Readout(stream["seen"].T * signs, -signs / 2)
    made = assemble(stream, layers, read, heads_per_layer=3, dtype=dtype)
    head = made.heads["duplicate"]
    needed = (f"input->{head}<q>", f"input->{head}<k>", f"{head}->logits")
    return Planted(
        name="duplicate-token",
        gap=gap,
        seed=seed,
        kind="circuit",
        module=made.module,
        mechanism=f"{head} attends to an earlier copy of the present token, or to the start where there is "
        "none, and writes a mark unless it attends to the start.",
        words=sequences.WORDS,
        outputs=_OUTPUTS,
        draw=_draw,
        truths={"corrupt": needed, "zero": (*needed, f"input->{head}<v>")},
        groups={"duplicate token": (head,)},
        function=function,
    )


def function(ids: Sequence[int]) -> list[int | None]:
    """1 where the token has come before."""
    return [int(token in ids[:i]) for i, token in enumerate(ids)]


def _draw(generator: random.Random) -> Pair:
    """Clean ends in a letter that came before; corrupt, of other letters, does not."""
    clean, corrupt = sequences.two_alphabets(generator, _LETTERS)
    clean[-1] = clean[generator.randrange(_LETTERS - 1)]
    return Pair([sequences.BOS, *clean], [sequences.BOS, *corrupt], 1, 0)
