"""Heads and MLPs by what they look for and what they copy, and the distractors beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mech_interp.planted.stream import Read, Stream

# Subspaces that every stream has for its distractors: what they write is read by other distractors
# alone, and `shift` moves all logits alike.
DISTRACTION = {"junk": 6, "shift": 1}
# How much distractors write: not so much that they feed on each other from layer to layer, which would
# cost the rest of the stream its precision.
_LOUDNESS = 0.4


@dataclass(frozen=True)
class Match:
    """One term of a head's scores: `nats` times the scalar product of what query and key read."""

    query: Read
    key: Read
    nats: float


@dataclass(frozen=True)
class Copy:
    """What a head reads at its source, and where it puts it: `write` is [k, d_model]."""

    value: Read
    write: Tensor


@dataclass(frozen=True)
class Head:
    """A head that adds up terms of scores, and copies."""

    matches: Sequence[Match]
    copies: Sequence[Copy]

    @property
    def width(self) -> int:
        """Features that it needs."""
        scores = sum(match.query.weight.shape[1] for match in self.matches)
        return max(scores, sum(copy.value.weight.shape[1] for copy in self.copies))


@dataclass(frozen=True)
class Unit:
    """One hidden unit of an MLP: relu(x @ `read` + `bias`), written to `write`; both [d_model]."""

    read: Tensor
    bias: float
    write: Tensor


@dataclass(frozen=True)
class Layer:
    """The parts of a layer that do something for the answer: heads by name, hidden units."""

    heads: dict[str, Head] = field(default_factory=dict)
    units: Sequence[Unit] = ()


@dataclass(frozen=True)
class HeadWeights:
    """Q, K and V as [d_model, d_head] with biases [d_head], O as [d_head, d_model]."""

    q: Read
    k: Read
    v: Read
    o: Tensor


def head_weights(head: Head, stream: Stream, d_head: int) -> HeadWeights:
    """The weights of a head, its inner coordinates turned at random."""
    queries = _joined([_times(match.query, match.nats) for match in head.matches], d_head)
    keys = _joined([match.key for match in head.matches], d_head)
    values = _joined([copy.value for copy in head.copies], d_head)
    out = torch.zeros(d_head, stream.d_model, dtype=torch.float64)
    written = torch.cat([copy.write for copy in head.copies])
    out[: len(written)] = written
    inner, carried = stream.rotation(d_head), stream.rotation(d_head)
    return HeadWeights(
        _turned(queries, inner), _turned(keys, inner), _turned(values, carried), carried.T @ out
    )


def distractor_head(stream: Stream, d_head: int) -> HeadWeights:
    """A head that attends by and copies a random mixture of everything, for distractors alone to read."""
    zeros = torch.zeros(d_head, dtype=torch.float64)
    scale = 0.6 / d_head**0.25
    q, k = (Read(scale * stream.noise(stream.d_model, d_head), zeros) for _ in range(2))
    v = Read(0.5 * stream.noise(stream.d_model, d_head), zeros)
    out = _LOUDNESS / d_head**0.5 * stream.noise(d_head, len(_aside(stream)))
    return HeadWeights(q, k, v, out @ _aside(stream))


def distractor_unit(stream: Stream) -> Unit:
    """A hidden unit that reads a random mixture of everything, for distractors alone to read."""
    read, bias = 0.5 * stream.noise(stream.d_model), float(0.2 * stream.noise(1))
    return Unit(read, bias, 0.5 * _LOUDNESS * stream.noise(len(_aside(stream))) @ _aside(stream))


def _aside(stream: Stream) -> Tensor:
    return torch.cat([stream[name] for name in DISTRACTION])


def _times(read: Read, factor: float) -> Read:
    return Read(factor * read.weight, factor * read.bias)


def _turned(read: Read, rotation: Tensor) -> Read:
    return Read(read.weight @ rotation, read.bias @ rotation)


def _joined(reads: Sequence[Read], width: int) -> Read:
    """Several maps side by side, filled up with zeros."""
    weight, bias = torch.cat([r.weight for r in reads], 1), torch.cat([r.bias for r in reads])
    missing = width - len(bias)
    return Read(torch.nn.functional.pad(weight, (0, missing)), torch.nn.functional.pad(bias, (0, missing)))
