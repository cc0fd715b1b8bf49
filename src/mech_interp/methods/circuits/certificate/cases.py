"""Planted models set up for scoring: a task, the truth, and the exact effect of every edge."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mech_interp import planted
from mech_interp.graph import Circuit
from mech_interp.methods.circuits.attribution import exact_edges
from mech_interp.methods.circuits.common import CircuitTask
from mech_interp.methods.common import Floats, rounding
from mech_interp.planted import Pairs, Planted
from mech_interp.planted.model import Ablation

BUDGET = 1 << 27
"""Bytes per batch: small models run faster in batches that fit the processor's cache."""


@dataclass(frozen=True)
class Scope:
    """How much is measured.

    Attributes:
        seeds: draws of every planted model (basis, order of heads, distractors).
        models: circuits and gates scored.
        pairs: prompt pairs per model.
        replicates: of each null; null_seeds: draws of the null they are spread over; null_pairs: pairs each.
        architectures: `model_type` of the random models on which identities are measured, besides planted
            ones.
        prompts: pairs per scrubbing hypothesis; samples: input draws for each prompt.
    """

    name: str = "full"
    seeds: tuple[int, ...] = (0, 1, 2)
    models: tuple[str, ...] = field(
        default_factory=lambda: planted.models("circuit") + planted.models("gate")
    )
    pairs: int = 16
    replicates: int = 200
    null_seeds: int = 8
    null_pairs: int = 8
    architectures: tuple[str, ...] | None = None
    prompts: int = 400
    samples: int = 16

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


QUICK = Scope(
    name="quick",
    seeds=(0,),
    models=("reverse", "proportion", "or-gate", "and-gate"),
    pairs=12,
    replicates=20,
    null_seeds=2,
    architectures=("gpt2", "llama"),
    prompts=100,
    samples=16,
)


@dataclass(frozen=True, eq=False)
class Case:
    """One planted model under one ablation, on its own prompt pairs."""

    made: Planted
    pairs: Pairs
    task: CircuitTask

    @property
    def truth(self) -> Circuit:
        """The true circuit under this ablation."""
        return self.made.truth(self.task.ablation)  # type: ignore[arg-type]  # cases have stated ones alone

    @property
    def noise(self) -> float:
        """What rounding may do to an effect, in nats."""
        return rounding(self.task.model) * max(1.0, float(np.abs(self.task.full).max()))

    def above_noise(self, scores: Floats) -> Floats:
        """The scores, with zeros for those that no exact measurement could tell from zero."""
        return np.where(np.abs(scores) > self.noise, scores, 0.0)

    @cached_property
    def effects(self) -> Floats:
        """What cutting every edge by itself does, exactly, [pair, writer, reader], in nats."""
        return cut_each(self.task)


@dataclass
class Bench:
    """Planted models, each built and opened once."""

    scope: Scope
    _opened: dict[tuple[str, float, int], tuple[Planted, Any]] = field(default_factory=dict)
    _cases: dict[tuple[str, float, int, str], Case] = field(default_factory=dict)

    def opened(self, name: str, gap: float, seed: int) -> tuple[Planted, Any]:
        """A planted model in single precision, and its engine."""
        key = (name, gap, seed)
        if key not in self._opened:
            made = planted.build(name, gap, seed)
            self._opened[key] = (made, made.open())
        return self._opened[key]

    def case(self, name: str, gap: float, seed: int, ablation: Ablation) -> Case:
        """The case of one model under one ablation."""
        key = (name, gap, seed, ablation)
        if key not in self._cases:
            made, model = self.opened(name, gap, seed)
            pairs = made.pairs(self.scope.pairs, seed=seed)
            self._cases[key] = Case(made, pairs, task_of(model, pairs, name, ablation))
        return self._cases[key]

    def hashes(self) -> dict[str, str]:
        """Hashes of the weights of every model opened so far."""
        return {
            f"{name}, {gap:g} nats, draw {seed}": model.info.weights_hash
            for (name, gap, seed), (_, model) in self._opened.items()
        }

    def truths(self, name: str) -> tuple[Ablation, ...]:
        """The ablations under which a model's truth is stated."""
        return tuple(self.opened(name, planted.GAPS[0], self.scope.seeds[0])[0].truths)

    def circuits(self) -> list[str]:
        """Models of the scope that are no gates."""
        return [name for name in self.scope.models if name in planted.models("circuit")]

    def gates(self) -> list[str]:
        """Gates of the scope."""
        return [name for name in self.scope.models if name in planted.models("gate")]


def task_of(model: Any, pairs: Pairs, name: str, ablation: Ablation = "corrupt") -> CircuitTask:
    """Planted pairs as a task, each pair a group of its own."""
    groups = tuple(str(i) for i in range(len(pairs)))
    return CircuitTask(
        model, pairs.clean, pairs.corrupt, pairs.metric, groups, "logit difference", name, ablation
    )


def cut_each(task: CircuitTask) -> Floats:
    """The exact effect of cutting each edge from the full model, [pair, writer, reader]."""
    possible = task.graph.possible
    places = np.argwhere(possible)
    found = np.zeros((len(task), *possible.shape))
    effects = exact_edges(task, places, "noising", range(len(task)), BUDGET)
    found[:, places[:, 0], places[:, 1]] = effects
    return found
