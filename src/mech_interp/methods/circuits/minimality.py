"""Completeness and minimality of a circuit (Wang et al. 2023, section 4).

Complete: with any set K of its nodes knocked out, the circuit behaves as the model does with K knocked
out. Minimal: every node of it matters, alone or once others of its group are gone. A node is knocked out
by ablating every edge that leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mech_interp.backends.protocol import Progress
from mech_interp.errors import InputError
from mech_interp.graph import Circuit
from mech_interp.methods.circuits.common import CircuitTask
from mech_interp.methods.circuits.faithfulness import check_graph, metric_of_circuits
from mech_interp.methods.common import Floats, brief, count_note, interval_note
from mech_interp.statistics import EstimateArray, bootstrap_columns
from mech_interp.views import Bars, Table, View

SHARE = 0.01
"""A node matters when it moves the metric by one per cent of m(all) - m(none)."""


@dataclass(frozen=True, eq=False)
class CompletenessResult:
    """Knock-outs K of a circuit's nodes.

    Attributes:
        knocked: names of the nodes of every K; the empty K first.
        circuit_values, model_values: the metric of C without K and of the model without K, [K, n].
        full, empty: the metric of the model, and with everything ablated, [n].
    """

    knocked: tuple[tuple[str, ...], ...]
    circuit_values: Floats
    model_values: Floats
    full: Floats
    empty: Floats
    groups: tuple[str, ...]
    seed: int = 0

    @cached_property
    def incompleteness(self) -> EstimateArray:
        """m(C without K) - m(model without K), as shares of m(all) - m(none), for every K."""
        gap = self.full - self.empty
        apart = (self.circuit_values - self.model_values).T
        return bootstrap_columns(apart, gap, groups=self.groups, seed=self.seed)

    @property
    def worst(self) -> int:
        """The number of the K with the largest |difference|."""
        return int(np.abs(self.incompleteness.value).argmax())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "method": "completeness",
            "worst": {
                "knocked": list(self.knocked[self.worst]),
                **self.incompleteness.at(self.worst).to_dict(),
            },
            "knock_outs": [
                {"knocked": list(names), "incompleteness": self.incompleteness.at(i).to_dict()}
                for i, names in enumerate(self.knocked)
            ],
        }

    def view(self, k: int = 15) -> View:
        """The worst knock-outs."""
        order = np.argsort(-np.abs(self.incompleteness.value), kind="stable")[:k]
        rows: list[list[str | float]] = [
            [", ".join(self.knocked[i]) or "nothing", brief(self.incompleteness.at(int(i)))] for i in order
        ]
        return Table(
            title="Completeness: where circuit and model part when nodes are knocked out",
            columns=["knocked out", "circuit - model (share of m(all) - m(none))"],
            rows=rows,
            note=f"{len(self.knocked)} sets; {count_note(len(self.full), self.groups)}; "
            f"{interval_note(self.incompleteness)}",
        )


@dataclass(frozen=True, eq=False)
class MinimalityResult:
    """What each node of a circuit adds.

    Attributes:
        nodes: names. knocked: for each node the others gone with which it matters most.
        differences: m(C without K) - m(C without K and the node), [n, node].
    """

    nodes: tuple[str, ...]
    knocked: tuple[tuple[str, ...], ...]
    differences: Floats
    full: Floats
    empty: Floats
    groups: tuple[str, ...]
    seed: int = 0

    @cached_property
    def effects(self) -> EstimateArray:
        """Of every node, as shares of m(all) - m(none); signed."""
        return bootstrap_columns(self.differences, self.full - self.empty, groups=self.groups, seed=self.seed)

    @property
    def idle(self) -> list[str]:
        """Nodes that move the metric by less than one per cent."""
        return [
            name for name, value in zip(self.nodes, self.effects.value, strict=True) if abs(value) < SHARE
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "method": "minimality",
            "idle": self.idle,
            "nodes": [
                {"node": name, "knocked": list(self.knocked[i]), "effect": self.effects.at(i).to_dict()}
                for i, name in enumerate(self.nodes)
            ],
        }

    def view(self, k: int = 30) -> View:
        """Nodes by size of effect."""
        order = np.argsort(-np.abs(self.effects.value), kind="stable")[:k]
        return Bars(
            title="Minimality: what each node of the circuit adds",
            labels=[self.nodes[i] for i in order],
            values=[float(self.effects.value[i]) for i in order],
            intervals=[self.effects.at(int(i)).interval for i in order],
            value_label="effect (share of m(all) - m(none))",
            label_axis="node",
            diverging=True,
            note=f"{len(self.idle)} of {len(self.nodes)} nodes below {SHARE:.0%}; "
            f"{count_note(len(self.full), self.groups)}; {interval_note(self.effects)}",
        )


def completeness(
    task: CircuitTask,
    circuit: Circuit,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    random: int = 10,
    greedy: int = 0,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> CompletenessResult:
    """Compare circuit and model with sets K of the circuit's nodes knocked out.

    K is nothing, each node alone, each of the functional `groups` (names of nodes), `random` sets that
    hold every node with probability one half, and `greedy` steps that each add the node that parts the
    two most.
    """
    task.refuse_vanishing()
    check_graph(task, circuit)
    pruned = circuit.pruned()
    names = _inner_nodes(pruned)
    generator = np.random.default_rng(seed)
    sets: list[tuple[str, ...]] = [(), *((name,) for name in names)]
    sets += [_members(group, members, names) for group, members in (groups or {}).items()]
    sets += [tuple(name for name in names if generator.random() < 0.5) for _ in range(random)]
    everything = Circuit(task.graph, task.graph.possible.copy())

    def both(chosen: Sequence[tuple[str, ...]]) -> tuple[Floats, Floats]:
        circuits = [without(one, knocked) for one in (pruned, everything) for knocked in chosen]
        values = metric_of_circuits(task, circuits, memory_budget, progress)
        return values[: len(chosen)], values[len(chosen) :]

    inside, outside = both(sets)
    grown: tuple[str, ...] = ()
    for _ in range(min(greedy, len(names))):
        tries = [(*grown, name) for name in names if name not in grown]
        one, other = both(tries)
        best = int(np.abs((one - other).mean(1)).argmax())
        grown = tries[best]
        sets.append(grown)
        inside = np.concatenate([inside, one[best][None]])
        outside = np.concatenate([outside, other[best][None]])
    return CompletenessResult(tuple(sets), inside, outside, task.full, task.empty, task.groups, seed)


def minimality(
    task: CircuitTask,
    circuit: Circuit,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> MinimalityResult:
    """What knocking out each node of the circuit does, alone or after the rest of its group.

    For every node the larger effect of K = nothing and K = the other members of its group is kept: heads
    that back each other up show only once the others are gone.
    """
    task.refuse_vanishing()
    check_graph(task, circuit)
    pruned = circuit.pruned()
    names = _inner_nodes(pruned)
    if not names:
        raise InputError("The circuit has no node between embedding and logits.", "Give a larger circuit.")
    mates = [_members(group, members, names) for group, members in (groups or {}).items()]
    trials: list[tuple[str, tuple[str, ...]]] = [(name, ()) for name in names]
    for group in mates:
        trials += [(name, tuple(o for o in group if o != name)) for name in group if len(group) > 1]
    circuits = [without(pruned, knocked) for _, knocked in trials]
    circuits += [without(pruned, (*knocked, name)) for name, knocked in trials]
    values = metric_of_circuits(task, circuits, memory_budget, progress)
    change = values[: len(trials)] - values[len(trials) :]
    best = [
        max((i for i, trial in enumerate(trials) if trial[0] == name), key=lambda i: abs(change[i].mean()))
        for name in names
    ]
    knocked = tuple(trials[i][1] for i in best)
    return MinimalityResult(tuple(names), knocked, change[best].T, task.full, task.empty, task.groups, seed)


def without(circuit: Circuit, nodes: Sequence[str]) -> Circuit:
    """The circuit with every edge that leaves the named nodes ablated, pruned to paths."""
    edges = circuit.edges.copy()
    edges[[circuit.graph.writer(name) for name in nodes]] = False
    return Circuit(circuit.graph, edges).pruned()


def _inner_nodes(circuit: Circuit) -> list[str]:
    return [str(node) for node in circuit.nodes() if node.kind != "input"]


def _members(group: str, members: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """A group's members inside the circuit."""
    found = tuple(name for name in members if name in names)
    if not found:
        raise InputError(f"No node of group {group!r} is in the circuit.", "Leave the group out.")
    return found
