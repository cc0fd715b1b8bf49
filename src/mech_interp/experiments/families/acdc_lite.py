"""ACDC over nodes: the heads and MLPs that a behaviour needs."""

from __future__ import annotations

from mech_interp.experiments.acdc_running import AcdcFamily, AcdcParams, search_nodes
from mech_interp.experiments.context import Context
from mech_interp.methods.circuits.acdc_result import AcdcResult
from mech_interp.methods.circuits.common import CircuitTask


class AcdcLiteParams(AcdcParams):
    """Parameters of `acdc_lite`."""


class AcdcLite(AcdcFamily[AcdcLiteParams]):
    """Removes heads and MLPs from the latest backwards."""

    name, version = "acdc_lite", 2
    summary = "The heads and MLPs that a behaviour needs, found by removing all others (ACDC over nodes)."
    Params = AcdcLiteParams
    level = "nodes"

    def search(
        self, context: Context[AcdcLiteParams], task: CircuitTask, tau: float, label: str
    ) -> AcdcResult:
        """One search over nodes."""
        return search_nodes(context, task, tau, label)


FAMILY = AcdcLite()
