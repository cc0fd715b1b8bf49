"""Tiny tasks for the tests of circuits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from edge_models import in_double

from mech_interp.backends.metrics import LogitDifference
from mech_interp.backends.tokens import Tokens
from mech_interp.methods.circuits.common import CircuitTask

ARCHITECTURES = ("gpt2", "llama", "gpt_neox")


def token_task(model: Any, n: int = 10, *, seed: int = 0, length: int = 5, **changes: Any) -> CircuitTask:
    """Random pairs that differ in one token in the middle; the answer is what the clean run prefers."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, 97, (n, length), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 2] = (corrupt[:, 2] + torch.randint(1, 90, (n,), generator=generator)) % 97
    runs = [Tokens.from_lists(ids.tolist()) for ids in (clean, corrupt)]
    ends = [model.forward(tokens, logits="last").logits for tokens in runs]
    # Zero and mean ablation do not know the corrupt prompts: there the clean run's own answers are read.
    moved = ends[0] - (ends[1] if changes.get("ablation", "corrupt") == "corrupt" else 0)
    metric = LogitDifference(tuple(moved.argmax(-1).tolist()), tuple(moved.argmin(-1).tolist()))
    groups = tuple(f"g{i}" for i in range(n))
    return CircuitTask(model, *runs, metric, groups, "logit_difference", "random pairs", **changes)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A tiny random model in float64."""
    with in_double(request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def gpt2() -> Iterator[Any]:
    """One architecture, where one is enough."""
    with in_double("gpt2") as opened:
        yield opened


@pytest.fixture(scope="session")
def make_task() -> Callable[..., CircuitTask]:
    """`token_task`."""
    return token_task
