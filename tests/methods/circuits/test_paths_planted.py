"""Path patching on models whose circuit is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mech_interp.methods.circuits.common import CircuitTask
from mech_interp.methods.circuits.paths import path_patching

RAW: dict[str, Any] = {"normalise": False, "control_cells": 0}


def planted_map(name: str, **options: Any) -> tuple[set[str], set[str]]:
    """The true edges of a planted model under corrupt values, and those whose path has an effect."""
    planted = pytest.importorskip("mech_interp.planted.registry").build(name)
    pairs = planted.pairs(12)
    groups = tuple(str(i) for i in range(len(pairs)))
    task = CircuitTask(planted.open(check=False), pairs.clean, pairs.corrupt, pairs.metric, groups)
    readers = [str(reader) for reader in planted.graph.readers]
    result = path_patching(task, readers, "all", **options, **RAW)
    size = np.nan_to_num(np.abs(result.differences).mean(0))
    found = np.argwhere(size > 0.02 * size.max())
    return set(planted.truths["corrupt"]), {f"{result.senders[s]}->{result.receivers[r]}" for s, r in found}


PLANTED = ("previous-token-copy", "induction", "duplicate-token", "reverse", "proportion", "ioi", "and-gate")


@pytest.mark.parametrize("name", PLANTED)
def test_direct_edges_are_the_planted_circuit(name: str) -> None:
    true, found = planted_map(name, variant="direct_edge")
    assert true
    assert found == true


@pytest.mark.parametrize("name", ["induction", "ioi", "reverse", "and-gate"])
def test_three_passes_add_only_paths_through_mlps(name: str) -> None:
    true, found = planted_map(name)
    through = {
        f"{left.split('->')[0]}->{right.split('->')[1]}"
        for left in true
        for right in true
        if left.split("->")[1] == right.split("->")[0] and left.split("->")[1].startswith("m")
    }
    assert true <= found <= true | through
    assert bool(found - true) == (name in ("reverse", "and-gate"))


def test_rounding_is_never_significant() -> None:
    planted = pytest.importorskip("mech_interp.planted.registry").build("ioi")
    pairs = planted.pairs(12)
    groups = tuple(str(i) for i in range(len(pairs)))
    task = CircuitTask(planted.open(check=False), pairs.clean, pairs.corrupt, pairs.metric, groups)
    result = path_patching(task, ["logits"], variant="direct_edge", control_cells=0)
    found = {result.senders[s] for s, _ in np.argwhere(result.adjusted_p <= 0.05)}
    assert {f"{head}->logits" for head in found} == {e for e in planted.edges if e.endswith("->logits")}


def test_an_or_gate_hides_from_noising() -> None:
    true, found = planted_map("or-gate", variant="direct_edge", direction="noising")
    assert found < true
    true, found = planted_map("or-gate", variant="direct_edge", direction="denoising")
    assert {edge for edge in true if edge.endswith("->m1")} <= found
