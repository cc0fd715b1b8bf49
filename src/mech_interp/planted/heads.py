"""Heads that several planted models have."""

from __future__ import annotations

from collections.abc import Sequence

from mech_interp.planted.parts import Copy, Head, Match
from mech_interp.planted.stream import Stream


def previous_token(stream: Stream, target: str, gap: float) -> Head:
    """Attends to the position before its own and copies the token there into `target`."""
    match = Match(stream.read("position"), stream.shifted("position", 1), gap)
    return Head([match], [Copy(stream.read("token"), stream[target])])


def induction(stream: Stream, key: str, copies: Sequence[Copy], gap: float) -> Head:
    """Attends where subspace `key` (the token before) holds the present token; else to the start."""
    match = Match(stream.read("token"), stream.read(key), 2 * gap)
    return Head([match, rest(stream, gap)], copies)


def duplicate(stream: Stream, target: str, gap: float, tokens: Sequence[int] | None = None) -> Head:
    """Attends to an earlier position with the present token, else to the start; one into `target` if so.

    The present position holds the present token too, which is why its own position counts against it.
    `tokens` are those looked for, all by default.
    """
    same_token = Match(stream.read("token", tokens), stream.read("token", tokens), 2 * gap)
    same_place = Match(stream.read("position"), -stream.read("position"), 2 * gap)
    return Head([same_token, same_place, rest(stream, gap)], [mark(stream, target)])


def rest(stream: Stream, nats: float) -> Match:
    """The start of the prompt as a place to attend to where nothing scores more."""
    return Match(stream.constant(), stream.flag("position", [0]), nats)


def mark(stream: Stream, target: str) -> Copy:
    """One into `target` from every position but the start."""
    others = range(1, stream.size("position"))
    return Copy(stream.flag("position", others), stream[target])
