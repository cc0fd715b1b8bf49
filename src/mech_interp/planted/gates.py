"""OR and AND of two bits that come along two paths.

From the clean prompt (both bits true) no single branch of OR matters and every branch of AND does; from
the corrupt prompt (both false) it is the other way round. Ablating one edge at a time therefore cannot
find both gates whole in one direction.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch

from mech_interp.planted.assembly import Readout, assemble
from mech_interp.planted.model import Pair, Planted
from mech_interp.planted.parts import DISTRACTION, Copy, Head, Layer, Match, Unit
from mech_interp.planted.stream import Stream

WORDS = ("<bos>", "yes", "true", "on", "no", "false", "off", "um", "er", "hm", "well")
BOS, TRUE, FALSE, FILLERS = 0, (1, 2, 3), (4, 5, 6), (7, 8, 9, 10)
_CONTEXT = 8
_BITS = (2, 4)  # positions of the two bits
_LOGIT = 8.0
_OUTPUTS = ("no", "yes")


def build_or(gap: float, seed: int, dtype: torch.dtype | None) -> Planted:
    """min(1, sum / 0.9): full from one branch on, also where soft attention loses a little."""
    return _build("or-gate", (0.0, 0.9), any, gap, seed, dtype)


def build_and(gap: float, seed: int, dtype: torch.dtype | None) -> Planted:
    """0 up to a sum of 1.1, 1 from 1.9 on."""
    return _build("and-gate", (1.1, 1.9), all, gap, seed, dtype)


def _build(
    name: str,
    ramp: tuple[float, float],
    joined: Callable[[Sequence[bool]], bool],
    gap: float,
    seed: int,
    dtype: torch.dtype | None,
) -> Planted:
    sizes = {"token": len(WORDS), "position": _CONTEXT, "left": 1, "right": 1, "result": 1}
    stream = Stream(seed, **sizes, **DISTRACTION)
    branches = {
        side: Head(
            [Match(stream.constant(), stream.flag("position", [at]), gap)],
            [Copy(stream.flag("token", TRUE), stream[side])],
        )
        for side, at in zip(("left", "right"), _BITS, strict=True)
    }
    layers = [Layer(branches), Layer(units=_ramp(stream, *ramp))]
    signs = torch.tensor([-_LOGIT, _LOGIT], dtype=torch.float64)
    read = Readout(stream["result"].T * signs, -signs / 2)
    made = assemble(stream, layers, read, heads_per_layer=3, dtype=dtype)
    left, right = made.heads["left"], made.heads["right"]
    edges = tuple(edge for head in (left, right) for edge in (f"input->{head}<v>", f"{head}->m1"))

    def function(ids: Sequence[int]) -> list[int | None]:
        """From the second bit on, the gate's output."""
        bits = [ids[at] in TRUE for at in _BITS if at < len(ids)]
        return [int(joined(bits)) if i >= max(_BITS) else None for i in range(len(ids))]

    return Planted(
        name=name,
        gap=gap,
        seed=seed,
        kind="gate",
        module=made.module,
        mechanism=f"{left} and {right} each bring one bit to every position; m1 joins them by "
        f"{name.partition('-')[0].upper()}.",
        words=WORDS,
        outputs=_OUTPUTS,
        draw=_draw,
        truths={"corrupt": (*edges, "m1->logits")},
        groups={"left": (left,), "right": (right,)},
        function=function,
    )


def _ramp(stream: Stream, low: float, high: float) -> list[Unit]:
    """From 0 at left + right = `low` to 1 at `high`, and flat outside."""
    slope = 1.0 / (high - low)
    both, result = stream["left"][0] + stream["right"][0], stream["result"][0]
    return [Unit(slope * both, -slope * low, result), Unit(slope * both, -slope * high, -result)]


def _draw(generator: random.Random) -> Pair:
    """Both bits true against both false, with other fillers."""
    clean, corrupt = (
        [BOS, *(generator.choice(kind if i in _BITS else FILLERS) for i in range(1, _CONTEXT))]
        for kind in (TRUE, FALSE)
    )
    return Pair(clean, corrupt, 1, 0)
