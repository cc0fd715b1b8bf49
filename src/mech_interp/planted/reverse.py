"""Reverse: ``<bos> x1 … xn <sep>`` is continued by ``xn … x1``.

The classic compiled task (Lindner et al. 2023), for attention that looks back only: the length is found
by a head, the place to copy from is worked out by an MLP, a second head copies.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from mech_interp.planted.assembly import assemble, readout
from mech_interp.planted.model import Pair, Planted
from mech_interp.planted.parts import DISTRACTION, Copy, Head, Layer, Match, Unit
from mech_interp.planted.stream import Stream

WORDS = ("<bos>", "<sep>", *"abcdefghijkl")
BOS, SEP = 0, 1
LETTERS = tuple(range(2, len(WORDS)))
LONGEST = 5
_CONTEXT = 2 * LONGEST + 2
_LOGIT = 8.0


def build(gap: float, seed: int, dtype: torch.dtype | None) -> Planted:
    """Find the separator, work out the mirrored place, copy from there."""
    words = len(WORDS)
    sizes = {"token": words, "position": _CONTEXT, "end": _CONTEXT, "source": _CONTEXT, "out": words}
    stream = Stream(seed, **sizes, **DISTRACTION)
    length = Head(
        [Match(stream.constant(), stream.flag("token", [SEP]), gap)],
        [Copy(stream.read("position"), stream["end"])],
    )
    flip = Head(
        [Match(stream.read("source"), stream.read("position"), gap)],
        [Copy(stream.read("token"), stream["out"])],
    )
    layers = [Layer({"length": length}, units(stream)), Layer({"flip": flip})]
    made = assemble(stream, layers, readout(stream, "out", words, _LOGIT), heads_per_layer=3, dtype=dtype)
    first, second = made.heads["length"], made.heads["flip"]
    varying = (
        f"input->{first}<k>",
        f"{first}->m0",
        f"m0->{second}<q>",
        f"input->{second}<v>",
        f"{second}->logits",
    )
    fixed = (f"input->{first}<v>", "input->m0", f"input->{second}<k>")
    return Planted(
        name="reverse",
        gap=gap,
        seed=seed,
        kind="circuit",
        module=made.module,
        mechanism=f"{first} attends to the separator and writes its position; m0 works out from it and the "
        f"present position where the mirrored token stands; {second} attends there and copies it.",
        words=WORDS,
        draw=draw,
        ablation="zero",
        truths={"zero": (*varying, *fixed), "corrupt": varying},
        groups={"length": (first,), "flip": (second,)},
        function=function,
    )


def units(stream: Stream) -> list[Unit]:
    """One hidden unit for each position of the separator and present position: the place to copy from."""
    end, here, source = (stream[name] for name in ("end", "position", "source"))
    return [
        Unit(2 * (end[separator] + here[now]), -3.0, source[2 * separator - now - 1])
        for separator in range(2, LONGEST + 2)
        for now in range(separator, 2 * separator - 1)
    ]


def function(ids: Sequence[int]) -> list[int | None]:
    """From the separator on, the letters before it in reverse; nothing before it and after the last."""
    if SEP not in ids:
        return [None] * len(ids)
    at = list(ids).index(SEP)
    due: list[int | None] = [None] * at
    due += [*ids[1:at][::-1]]
    return (due + [None] * len(ids))[: len(ids)]


def draw(generator: random.Random) -> Pair:
    """Two lengths that both have an output due at the last position, of letters that share none."""
    last = generator.randint(4, 2 * LONGEST - 2)
    places = [at for at in range(2, LONGEST + 2) if at <= last <= 2 * at - 2]
    if len(places) < 2:
        return draw(generator)
    separators = generator.sample(places, 2)
    letters = generator.sample(LETTERS, sum(separators) - 2)
    (clean, answer), (corrupt, wrong) = (
        _prompt(chosen, last) for chosen in (letters[: separators[0] - 1], letters[separators[0] - 1 :])
    )
    return Pair(clean, corrupt, answer, wrong)


def _prompt(letters: list[int], last: int) -> tuple[list[int], int]:
    """A prompt whose last position is `last`, with what was due before it filled in, and what is due."""
    whole = [BOS, *letters, SEP, *letters[::-1]]
    return whole[: last + 1], whole[last + 1]
