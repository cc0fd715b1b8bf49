"""Hypotheses about planted models, true ones and wrong ones, and the data sets to scrub them on."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from mech_interp.backends.metrics import LogitDifference
from mech_interp.methods.circuits.scrubbing_hypothesis import Hypothesis, Node
from mech_interp.planted import Planted

Features = dict[str, Hashable]
"""Of one prompt. `elsewhere` tells apart two or three kinds of prompt by something that the answer does not
depend on (a coin where a prompt has nothing of the sort). They are few because an input is drawn in its own
place once in as many times as its kind has prompts."""


@dataclass(frozen=True)
class Claims:
    """Hypotheses about one model.

    Attributes:
        prompts: token ids of the data set. metric: the answer's lead over the wrong output.
        features: columns of the data set.
        true: the mechanism as planted, down to the embedding.
        wrong: the mechanism's last part claimed to depend on something else, and a bystander claimed to
            carry the answer.
    """

    prompts: tuple[tuple[int, ...], ...]
    metric: LogitDifference
    features: Mapping[str, Sequence[Hashable]]
    true: Hypothesis
    wrong: tuple[Hypothesis, ...]


def claims_about(made: Planted, n_pairs: int) -> Claims:
    """The hypotheses about a planted circuit or gate.

    The data set is the clean and the corrupt prompts, each with its own answer; for ``ioi``, whose
    corrupt prompts have no answer, the clean ones alone.
    """
    pairs, read, write = made.pairs(n_pairs), *_MODELS[made.name]
    prompts = [tuple(pairs.clean.row(i)) for i in range(len(pairs))]
    answers, others = [*pairs.answer], [*pairs.wrong]
    if made.name != "ioi":
        prompts += [tuple(pairs.corrupt.row(i)) for i in range(len(pairs))]
        answers, others = [*answers, *pairs.wrong], [*others, *pairs.answer]
    coin = random.Random(0)
    rows: list[Features] = [
        {"answer": answer, "elsewhere": coin.randrange(2), **read(ids)}
        for ids, answer in zip(prompts, answers, strict=True)
    ]
    true = write(made)
    last = true.nodes[true.inputs[0]]
    wrong = (
        _of_one("wrong feature", Node(last.sites, ("elsewhere",))),
        _of_one("wrong part", Node((_bystander(made, last),), ("answer",))),
    )
    return Claims(
        tuple(prompts),
        LogitDifference(tuple(answers), tuple(others)),
        {name: [row[name] for row in rows] for name in rows[0]},
        true,
        wrong,
    )


def _of_one(name: str, node: Node) -> Hypothesis:
    return Hypothesis(("claimed",), {"claimed": node}, name)


def _true(inputs: tuple[str, ...], **nodes: Node) -> Hypothesis:
    return Hypothesis(inputs, nodes, "as planted")


def _bystander(made: Planted, last: Node) -> str:
    """A part of the same kind as the last one of the mechanism that no true edge leaves."""
    used = set(made.nodes) | {head for heads in made.groups.values() for head in heads}
    mlp = last.sites[0].startswith("m")
    free = [str(w) for w in made.graph.writers if (w.kind == "mlp") == mlp and str(w) not in {*used, "input"}]
    return free[-1]


def _copying(made: Planted) -> Hypothesis:
    (head,) = made.groups["previous token"]
    return _true(
        ("copy",),
        copy=Node((head,), ("answer",), ("token",)),
        token=Node((f"input->{head}<v>",), ("answer",)),
    )


def _read_copying(ids: Sequence[int]) -> Features:
    return {"elsewhere": ids[-3] % 2}


def _induction(made: Planted) -> Hypothesis:
    (first,), (second,) = made.groups["previous token"], made.groups["induction"]
    return _true(
        ("induction",),
        induction=Node((second,), ("answer",), ("query", "previous", "value")),
        query=Node((f"input->{second}<q>",), ("last",)),
        previous=Node((f"{first}->{second}<k>",), ("last", "place"), ("token",)),
        token=Node((f"input->{first}<v>",), ("last", "place")),
        value=Node((f"input->{second}<v>",), ("answer", "place")),
    )


def _read_repeated(ids: Sequence[int]) -> Features:
    """The last token, and where it came before."""
    earlier = [*ids[:-1]]
    return {"last": ids[-1], "place": earlier.index(ids[-1]) if ids[-1] in earlier else None}


def _read_induction(ids: Sequence[int]) -> Features:
    return {**_read_repeated(ids), "elsewhere": ids[1] % 2}


def _duplicate(made: Planted) -> Hypothesis:
    (head,) = made.groups["duplicate token"]
    return _true(
        ("duplicate",),
        duplicate=Node((head,), ("answer",), ("query", "key")),
        query=Node((f"input->{head}<q>",), ("last",)),
        key=Node((f"input->{head}<k>",), ("last", "place")),
    )


def _read_duplicate(ids: Sequence[int]) -> Features:
    return {**_read_repeated(ids), "elsewhere": ids[-1] % 2}


def _reverse(made: Planted) -> Hypothesis:
    (length,), (flip,) = made.groups["length"], made.groups["flip"]
    return _true(
        ("flip",),
        flip=Node((flip,), ("answer",), ("source", "value")),
        source=Node((f"m0->{flip}<q>",), ("separator",), ("length",)),
        length=Node((f"{length}->m0",), ("separator",), ("key",)),
        key=Node((f"input->{length}<k>",), ("separator",)),
        value=Node((f"input->{flip}<v>",), ("answer", "separator")),
    )


def _read_reverse(ids: Sequence[int]) -> Features:
    from mech_interp.planted.reverse import SEP

    return {"separator": list(ids).index(SEP), "elsewhere": ids[-1] % 3}


def _proportion(made: Planted) -> Hypothesis:
    (head,) = made.groups["mean"]
    return _true(
        ("mean",),
        mean=Node((head,), ("answer",), ("marks",)),
        marks=Node((f"m0->{head}<v>",), ("answer",), ("tokens",)),
        tokens=Node(("input->m0",), ("answer",)),
    )


def _read_proportion(ids: Sequence[int]) -> Features:
    """Nothing beside the answer: every part of a prompt has to do with how many x there are."""
    return {}


def _ioi(made: Planted) -> Hypothesis:
    (inhibition,), movers = made.groups["s-inhibition"], made.groups["name mover"]
    return _true(
        ("movers",),
        movers=Node(movers, ("answer",), ("inhibited", "key", "value")),
        inhibited=Node((inhibition,), ("subject",), ("name",)),
        name=Node((f"input->{inhibition}<v>",), ("subject",)),
        key=Node(tuple(f"input->{mover}<k>" for mover in movers), ("subject", "place")),
        value=Node(tuple(f"input->{mover}<v>" for mover in movers), ("answer", "place")),
    )


def _read_ioi(ids: Sequence[int]) -> Features:
    from mech_interp.planted.ioi import NAMES

    first, _, giver = (token for token in ids if token in NAMES)
    return {"subject": giver, "place": int(giver == first), "elsewhere": ids[6]}


def _gate(made: Planted) -> Hypothesis:
    (left,), (right,) = made.groups["left"], made.groups["right"]
    return _true(
        ("gate",),
        gate=Node(("m1",), ("answer",), ("left", "right")),
        left=Node((f"{left}->m1",), ("left",), ("left_token",)),
        right=Node((f"{right}->m1",), ("right",), ("right_token",)),
        left_token=Node((f"input->{left}<v>",), ("left",)),
        right_token=Node((f"input->{right}<v>",), ("right",)),
    )


def _read_gate(ids: Sequence[int]) -> Features:
    from mech_interp.planted.gates import TRUE

    return {"left": ids[2] in TRUE, "right": ids[4] in TRUE, "elsewhere": ids[1] % 2}


_MODELS: Mapping[str, tuple[Callable[[Sequence[int]], Features], Callable[[Planted], Hypothesis]]] = {
    "previous-token-copy": (_read_copying, _copying),
    "induction": (_read_induction, _induction),
    "duplicate-token": (_read_duplicate, _duplicate),
    "reverse": (_read_reverse, _reverse),
    "proportion": (_read_proportion, _proportion),
    "ioi": (_read_ioi, _ioi),
    "or-gate": (_read_gate, _gate),
    "and-gate": (_read_gate, _gate),
}
