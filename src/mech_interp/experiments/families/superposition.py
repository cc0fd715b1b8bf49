"""Superposition in weights: do directions share dimensions, and more than random ones would?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from mech_interp.backends.protocol import Capability, InstrumentedModel
from mech_interp.errors import InputError
from mech_interp.experiments.context import Context
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.family import Family, FamilyParams
from mech_interp.experiments.interference import geometry, mean_share, random_rows, rows_of
from mech_interp.experiments.parts import check_layers
from mech_interp.experiments.result import Result
from mech_interp.experiments.superposition_report import Measured, report

Weights = Literal["embed", "unembed", "mlp_in", "mlp_gate", "mlp_out"]
_IN_BLOCKS = {"mlp_in": "W_in", "mlp_gate": "W_gate", "mlp_out": "W_out"}


class SuperpositionParams(FamilyParams):
    """Parameters of `superposition`."""

    weights: list[Weights] = Field(
        default=["embed", "unembed", "mlp_in", "mlp_out"],
        min_length=1,
        description="Sets of directions in the residual stream: token embeddings, unembeddings, what each "
        "MLP neuron reads (its gate: mlp_gate) and writes.",
    )
    layers: list[int] | None = Field(
        default=None, min_length=1, description="Layers of the MLP sets, from 0; all by default."
    )
    centre: bool = Field(default=True, description="Take out each set's mean direction first.")
    replicates: int = Field(
        default=10, ge=2, le=1000, description="Random sets of directions of equal lengths."
    )
    sampled: int = Field(
        default=512, ge=2, le=100_000, description="Directions whose nearest other one is looked for."
    )

    @field_validator("weights")
    @classmethod
    def _each_once(cls, value: list[Weights]) -> list[Weights]:
        return list(dict.fromkeys(value))


class Superposition(Family[SuperpositionParams]):
    """Measures feature dimensionality and interference of weight directions."""

    name, version = "superposition", 1
    summary = "How many dimensions embeddings and MLP directions have to themselves (feature dimensionality)."
    needs = frozenset({Capability.WEIGHTS.value})
    Params = SuperpositionParams

    def check(self, params: SuperpositionParams, facts: ModelFacts, tokenizer: Any) -> None:
        """Layers against the config; a gate where the architecture has one."""
        check_layers(facts, params.layers)
        inside = set(params.weights) & set(_IN_BLOCKS)
        for kind in ("mlp_pre", "mlp_pre_linear") if "mlp_gate" in inside else ("mlp_pre",) if inside else ():
            if (why := facts.why_missing(kind)) is not None:
                named = ", ".join(sorted(inside if kind == "mlp_pre" else {"mlp_gate"}))
                raise InputError(
                    f"weights names {named}, which {facts.name} does not have: {why}.",
                    f"Leave {named} out of weights.",
                )

    def run(self, context: Context[SuperpositionParams]) -> Result:
        """Measure, a unit per matrix, and summarise."""
        params, model = context.params, context.model
        layers = list(range(model.info.n_layers)) if params.layers is None else params.layers
        names = list(params.weights)
        if {"embed", "unembed"} <= set(names) and np.array_equal(
            directions(model, "embed", None), directions(model, "unembed", None)
        ):
            names.remove("unembed")
            context.note("The unembedding is the embedding (tied weights), so it is measured once.")
        places = list(_places(names, layers))

        def one(place: tuple[str, int | None]) -> dict[str, Any]:
            return measure(directions(model, *place), params, context.subseed(*place))

        found = context.each(places, lambda place: "/".join(map(str, place)), one, "weight matrices")
        return report(
            [Measured(name, layer, **part) for (name, layer), part in zip(places, found, strict=True)],
            model=model.info.name,
            d_model=model.info.d_model,
            centred=params.centre,
        )


def measure(matrix: npt.NDArray[Any], params: SuperpositionParams, seed: int) -> dict[str, Any]:
    """One set of directions [m, d] beside random sets of the same lengths."""
    own = geometry(rows_of(matrix, centre=params.centre), sampled=params.sampled, seed=seed)
    null = []
    for replicate in range(params.replicates):
        drawn = random_rows(own.lengths, own.d, seed + 1 + replicate)
        twin = geometry(drawn, sampled=params.sampled, seed=seed)
        null.append([twin.dimensionality.mean(), twin.crowding.mean(), twin.closest.mean(), twin.total])
        quantiles = twin.quantiles
    return {
        "n": own.dimensionality.size,
        "d": own.d,
        "zeros": own.zeros,
        "total": own.total,
        "effective_rank": own.effective_rank,
        "mean_share": mean_share(matrix),
        "dimensionality": own.dimensionality.astype(np.float32),
        "crowding": own.crowding.astype(np.float32),
        "closest": own.closest.astype(np.float32),
        "quantiles": own.quantiles,
        "null_quantiles": quantiles,
        "null": np.array(null, dtype=np.float64),
    }


def directions(model: InstrumentedModel, name: str, layer: int | None) -> npt.NDArray[Any]:
    """Directions in the residual stream, [m, d_model], single precision."""
    if layer is None:
        weights = model.weights("W_E") if name == "embed" else model.weights("W_U").T
    else:
        weights = model.weights(_IN_BLOCKS[name], layer)
        weights = weights if name == "mlp_out" else weights.T
    return np.asarray(weights.detach().cpu().float().numpy())


def _places(names: list[Weights], layers: list[int]) -> Iterator[tuple[str, int | None]]:
    for name in names:
        if name in _IN_BLOCKS:
            yield from ((name, layer) for layer in layers)
        else:
            yield name, None


FAMILY = Superposition()
