"""ACDC over edges: the circuit that is left when nothing more can go unnoticed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mech_interp.experiments.acdc_running import AcdcFamily, AcdcParams, search_edges
from mech_interp.experiments.context import Context
from mech_interp.methods.circuits.acdc_result import AcdcResult
from mech_interp.methods.circuits.common import CircuitTask


class AcdcEdgeParams(AcdcParams):
    """Parameters of `acdc_edge`."""

    order: Literal["reverse", "forward", "random"] = Field(
        default="reverse", description="Order of the writers at a reader; reverse begins with the latest."
    )


class AcdcEdge(AcdcFamily[AcdcEdgeParams]):
    """Removes edges from the logits backwards."""

    name, version = "acdc_edge", 2
    summary = "The edges that a behaviour needs, found by removing all others one by one (ACDC)."
    Params = AcdcEdgeParams

    def search(
        self, context: Context[AcdcEdgeParams], task: CircuitTask, tau: float, label: str
    ) -> AcdcResult:
        """One search over edges."""
        return search_edges(context, task, tau, context.params.order, label)


FAMILY = AcdcEdge()
