"""A hypothesis unrolled into a tree, and the inputs drawn for every place in it."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mech_interp.errors import InputError, nearest
from mech_interp.graph import CircuitGraph, Reader, Writer
from mech_interp.methods.circuits.scrubbing_hypothesis import ROOT, Hypothesis, Part, find_part
from mech_interp.methods.common import Floats, Ints

OWN = "prompt"
"""The feature by which every prompt is a class of its own; always there."""
MOST_USES = 100_000


@dataclass(frozen=True, eq=False)
class Slot:
    """One reader of a node: the use that is heard in place of each important writer, or as a whole."""

    reader: Reader
    heard: Mapping[Writer, Use] = field(default_factory=dict)
    whole: Use | None = None


@dataclass(frozen=True, eq=False)
class Use:
    """One place of the tree; `path` names it: ``logits/mover@logits/previous@a1.h0<k>``.

    A use without slots is a leaf.
    """

    path: str
    part: Part
    slots: tuple[Slot, ...] = ()

    def children(self) -> list[Use]:
        """The uses directly below, each once."""
        found: dict[int, Use] = {}
        for slot in self.slots:
            for child in [*slot.heard.values(), *([slot.whole] if slot.whole else [])]:
                found[id(child)] = child
        return list(found.values())

    def walk(self) -> Iterator[Use]:
        """This use and all below it."""
        yield self
        for child in self.children():
            yield from child.walk()


def unroll(hypothesis: Hypothesis, graph: CircuitGraph) -> Use:
    """The tree of a hypothesis on a graph; its root is the logits.

    Raises:
        InputError: naming the node that matches no site, feeds nothing, or shares an edge with another.
    """
    parts = {name: find_part(name, node, graph) for name, node in hypothesis.nodes.items()}
    count = 0

    def grow(path: str, part: Part, inputs: Sequence[str]) -> Use:
        nonlocal count
        count += 1
        if count > MOST_USES:
            raise InputError(
                f"The hypothesis {hypothesis.name} unrolls into more than {MOST_USES:,} places.",
                "Join nodes that play one role, or leave out inputs.",
            )
        readers = part.readers(graph) if inputs or part.name == ROOT else []
        slots = [_slot(path, part, reader, inputs) for reader in readers]
        for name in inputs:
            if not any(_heard(slot, parts[name]) for slot in slots):
                raise InputError(
                    f"The node {name!r} is given as an input of {part.name!r}, but feeds nothing in it.",
                    "Its sites must be among what the other reads, or come before it.",
                )
        return Use(path, part, tuple(slots))

    def _slot(path: str, part: Part, reader: Reader, inputs: Sequence[str]) -> Slot:
        heard: dict[Writer, Use] = {}
        for name in inputs:
            child = parts[name]
            below = f"{path}/{name}@{reader}"
            if child.reader is not None:
                if child.reader != reader or part.reader is not None:
                    continue
                others = [o for o in inputs if o != name and _enters(parts[o], reader, graph)]
                if others:
                    raise _shared(part.name, name, others[0], str(reader))
                return Slot(reader, whole=grow(below, child, hypothesis.nodes[name].inputs))
            writers = child.feeds(graph, reader)
            for writer in writers:
                if writer in heard or writer in part.writers:
                    other = part.name if writer in part.writers else heard[writer].part.name
                    raise _shared(part.name, name, other, f"{writer}->{reader}")
            if writers:
                use = grow(below, child, hypothesis.nodes[name].inputs)
                heard |= dict.fromkeys(writers, use)
        return Slot(reader, heard)

    return grow(ROOT, Part(ROOT, reader=Reader("logits")), hypothesis.inputs)


def _enters(part: Part, reader: Reader, graph: CircuitGraph) -> bool:
    return part.reader == reader or bool(part.feeds(graph, reader))


def _heard(slot: Slot, part: Part) -> bool:
    return any(use.part is part for use in [*slot.heard.values(), *([slot.whole] if slot.whole else [])])


def _shared(consumer: str, left: str, right: str, what: str) -> InputError:
    return InputError(
        f"{left!r} and {right!r} both stand for {what} as an input of {consumer!r}.",
        "Every part of the model may stand for one node of a hypothesis at a place.",
    )


@dataclass(frozen=True)
class Inputs:
    """The data set of a hypothesis.

    Attributes:
        pools: [prompt] label of the prompts that may stand in for each other: as many tokens, and equal
            in whatever draws are conditioned on.
        features: per feature one label per prompt.
    """

    pools: tuple[Hashable, ...]
    features: Mapping[str, Sequence[Hashable]]

    def __len__(self) -> int:
        return len(self.pools)

    @classmethod
    def of(
        cls, lengths: Sequence[int], features: Mapping[str, Sequence[Hashable]], within: Sequence[str] = ()
    ) -> Inputs:
        """From token counts and columns of the data set.

        Raises:
            InputError: for a column of another length, or an unknown one in `within`.
        """
        n = len(lengths)
        columns: dict[str, Sequence[Hashable]] = {OWN: list(range(n)), **features}
        for name, labels in columns.items():
            if len(labels) != n:
                raise InputError(
                    f"The feature {name!r} has {len(labels)} labels for {n} prompts.", "Give one per prompt."
                )
        check_features(within, columns)
        pools = [(length, *(columns[name][i] for name in within)) for i, length in enumerate(lengths)]
        return cls(tuple(pools), columns)

    def classes(self, depends_on: Sequence[str]) -> Ints:
        """[prompt] number of the class of inputs that agree on some features, inside pools."""
        check_features(depends_on, self.features)
        numbers: dict[Hashable, int] = {}
        labels = [(self.pools[i], *(self.features[name][i] for name in depends_on)) for i in range(len(self))]
        return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)

    def shuffled(self, seed: int) -> Inputs:
        """Features dealt out anew inside every pool, all of a prompt's together."""
        generator = np.random.default_rng(seed)
        order, pools = np.arange(len(self)), self.classes(())
        for pool in np.unique(pools):
            members = np.flatnonzero(pools == pool)
            order[members] = generator.permutation(members)
        return Inputs(self.pools, {name: [own[int(i)] for i in order] for name, own in self.features.items()})


def check_features(names: Sequence[str], known: Mapping[str, Sequence[Hashable]]) -> None:
    """Refuse a feature that the data set does not have."""
    for name in names:
        if name not in known:
            raise InputError(
                f"The data set has no feature {name!r}.",
                nearest(name, known) or f"It has: {', '.join(known)}.",
            )


class Draws:
    """Inputs drawn for each place of a tree, [sample, prompt] numbers of prompts.

    A draw depends on the seed and the place alone, so it is the same however work is batched. Sampling is
    uniform over all agreeing prompts, the reference itself among them.
    """

    def __init__(self, inputs: Inputs, samples: int, seed: int, *, own: bool = False) -> None:
        self.inputs, self.samples, self.seed = inputs, samples, seed
        # Every draw is the reference itself: for the identity that scrubbing with it is the model.
        self._own = own
        self._drawn: dict[str, Ints] = {}
        self._classes: dict[tuple[str, ...], Ints] = {}

    @cached_property
    def references(self) -> Ints:
        """[sample, prompt]: the prompts themselves."""
        return np.tile(np.arange(len(self.inputs)), (self.samples, 1))

    def uniform(self, key: str) -> Floats:
        """[sample, prompt] numbers in [0, 1) that belong to a key."""
        digest = hashlib.sha256(f"{self.seed}|{key}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return generator.random((self.samples, len(self.inputs)))

    def agreeing(self, key: str, depends_on: Sequence[str], reference: Ints) -> Ints:
        """Inputs that agree with the reference inputs [sample, prompt] on some features.

        A key belongs to one place of the tree, so that asking again gives the same draw.
        """
        if self._own:
            return reference
        if key not in self._drawn:
            features = tuple(depends_on)
            if features not in self._classes:
                self._classes[features] = self.inputs.classes(features)
            classes = self._classes[features]
            order = np.argsort(classes, kind="stable")
            sizes = np.bincount(classes)
            starts, own = np.cumsum(sizes) - sizes, classes[reference]
            self._drawn[key] = order[starts[own] + (self.uniform(key) * sizes[own]).astype(np.int64)]
        return self._drawn[key]

    def random(self, key: str) -> Ints:
        """Any inputs of the reference's pool."""
        return self.agreeing(f"{key}|random", (), self.references)
