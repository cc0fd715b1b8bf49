"""Indirect objects: "… N1 and N2 went … S gave it to" is continued by the name that is not S.

The parts are those that Wang et al. (2023) describe in GPT-2 small, in their simplest form: previous
token, duplicate token and induction heads find the repeated name, an S-inhibition head (which needs
both marks) carries it to the end, name movers attend to any other name and copy it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from mech_interp.planted import heads
from mech_interp.planted.assembly import assemble, readout
from mech_interp.planted.model import Pair, Planted
from mech_interp.planted.parts import DISTRACTION, Copy, Head, Layer, Match
from mech_interp.planted.stream import Stream

_OPENINGS = ("then", "so", "later")
_PLACES = ("home", "out", "away")
_THINGS = ("it", "milk", "bread")
_NAMES = ("Ann", "Bob", "Cy", "Dee", "Eve", "Flo", "Gus", "Hal")
WORDS = ("<bos>", *_OPENINGS, "and", "went", *_PLACES, "gave", *_THINGS, "to", *_NAMES)
_ID = {word: i for i, word in enumerate(WORDS)}
NAMES = tuple(_ID[name] for name in _NAMES)
_CONTEXT = 11
_LOGIT = 4.0  # of each name mover


def build(gap: float, seed: int, dtype: torch.dtype | None) -> Planted:
    """Six heads in five groups over four layers."""
    words, names = len(WORDS), len(NAMES)
    sizes = {"token": words, "position": _CONTEXT, "previous": words, "duplicate": 1, "induction": 1}
    stream = Stream(seed, **sizes, inhibited=names, out=names, **DISTRACTION)
    found = [heads.mark(stream, "induction")]
    layers = [
        Layer(
            {
                "duplicate": heads.duplicate(stream, "duplicate", gap, NAMES),
                "previous": heads.previous_token(stream, "previous", gap),
            }
        ),
        Layer({"induction": heads.induction(stream, "previous", found, gap)}),
        Layer({"inhibition": _inhibition(stream, gap)}),
        Layer({"mover 1": _mover(stream, gap), "mover 2": _mover(stream, gap)}),
    ]
    read = readout(stream, "out", words, _LOGIT, NAMES)
    made = assemble(stream, layers, read, heads_per_layer=3, dtype=dtype)
    at = made.heads
    movers = (at["mover 1"], at["mover 2"])
    return Planted(
        name="ioi",
        gap=gap,
        seed=seed,
        kind="circuit",
        module=made.module,
        mechanism=f"At the second mention of a name {at['duplicate']} marks that it came before, and so does "
        f"{at['induction']} through the previous tokens that {at['previous']} writes; {at['inhibition']} "
        f"attends from the end to where both marks are and brings the name; {' and '.join(movers)} attend "
        "to names other than that one and copy them to the logits.",
        words=WORDS,
        draw=_draw,
        truths={"corrupt": _truth(at, movers)},
        groups={
            "previous token": (at["previous"],),
            "duplicate token": (at["duplicate"],),
            "induction": (at["induction"],),
            "s-inhibition": (at["inhibition"],),
            "name mover": movers,
        },
        function=function,
    )


def _inhibition(stream: Stream, gap: float) -> Head:
    """Attends to where both marks are, else to the start, and copies the name there."""
    marks = [Match(stream.constant(), stream.flag(name), 2 * gap) for name in ("duplicate", "induction")]
    copied = Copy(stream.read("token", NAMES), stream["inhibited"])
    return Head([*marks, heads.rest(stream, 3 * gap)], [copied])


def _mover(stream: Stream, gap: float) -> Head:
    """Attends to names, except to the one inhibited, and copies them."""
    names = Match(stream.constant(), stream.flag("token", NAMES), gap)
    but = Match(stream.read("inhibited"), -stream.read("token", NAMES), gap)
    return Head([names, but], [Copy(stream.read("token", NAMES), stream["out"])])


def _truth(at: Mapping[str, str], movers: Sequence[str]) -> tuple[str, ...]:
    """Edges that carry what differs between clean and corrupt prompts."""
    duplicate, previous = at["duplicate"], at["previous"]
    induction, inhibition = at["induction"], at["inhibition"]
    found = [
        f"input->{duplicate}<q>",
        f"input->{duplicate}<k>",
        f"input->{previous}<v>",
        f"{previous}->{induction}<k>",
        f"input->{induction}<q>",
        f"{duplicate}->{inhibition}<k>",
        f"{induction}->{inhibition}<k>",
        f"input->{inhibition}<v>",
    ]
    for mover in movers:
        found += [f"{inhibition}->{mover}<q>", f"input->{mover}<k>", f"input->{mover}<v>"]
        found.append(f"{mover}->logits")
    return tuple(found)


def function(ids: Sequence[int]) -> list[int | None]:
    """At the last position, the name that came once, where exactly one did and another came twice."""
    names = [token for token in ids if token in NAMES]
    once = [token for token in names if names.count(token) == 1]
    right = once[0] if len(once) == 1 and len(names) == 3 else None
    return [*[None] * (len(ids) - 1), right]


def _draw(generator: random.Random) -> Pair:
    """Clean repeats one of its two names; corrupt has three names, and shares none with clean."""
    first, second, *others = generator.sample(NAMES, 5)
    subject = generator.choice((first, second))
    answer = second if subject == first else first
    clean = _prompt(generator, first, second, subject)
    return Pair(clean, _prompt(generator, *others), answer, subject)


def _prompt(generator: random.Random, first: int, second: int, giver: int) -> list[int]:
    opening, place, thing = (_ID[generator.choice(words)] for words in (_OPENINGS, _PLACES, _THINGS))
    middle = [_ID["and"], second, _ID["went"], place]
    return [0, opening, first, *middle, giver, _ID["gave"], thing, _ID["to"]]
