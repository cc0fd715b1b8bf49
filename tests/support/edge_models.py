"""Tiny models, prompt pairs and masks shared by the tests of edges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tiny_architectures import all_double, implementations, library_model
from torch import Tensor

from mech_interp.backends.huggingface.layouts import supported
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.huggingface.writers import EDGE_LEVEL
from mech_interp.backends.metrics import LogitDifference
from mech_interp.graph import CircuitGraph

HERE = tuple(name for name in EDGE_LEVEL if name in supported())
CLEAN = [[5, 17, 3, 88, 41, 9], [2, 60, 33, 7]]
CORRUPT = [[5, 71, 3, 12, 41, 9], [2, 61, 90, 7]]
METRIC = LogitDifference((11, 40), (23, 56))


@contextmanager
def in_double(name: str) -> Iterator[HuggingFaceModel]:
    """A tiny random model in float64 throughout, while the context is open."""
    module = library_model(name, implementations(name)[0], seed=3).double()
    with all_double(module):
        yield open_module(module, name=f"tiny-{name}")


def full(graph: CircuitGraph) -> Tensor:
    """Every edge, [writer, reader]."""
    return torch.tensor(graph.possible, dtype=torch.float64)
