"""Tiny models shared by the engine's tests, and the helper modules of tests/support."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SUPPORT = str(Path(__file__).resolve().parent.parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)

ARCHITECTURES = ("gpt2", "llama")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices only lose by being spread over threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Any:
    """A tiny random model in float32, of each architecture."""
    from tiny_models import opened

    return opened(request.param)


@pytest.fixture(scope="session", params=ARCHITECTURES)
def exact(request: pytest.FixtureRequest) -> Any:
    """A tiny random model in float64, of each architecture, with a float64 RMSNorm."""
    from tiny_models import opened

    return opened(request.param, double=True)


@pytest.fixture(scope="session")
def gpt2() -> Any:
    """The tiny GPT-2 in float32."""
    from tiny_models import opened

    return opened("gpt2")


@pytest.fixture(scope="session")
def llama() -> Any:
    """The tiny Llama in float32."""
    from tiny_models import opened

    return opened("llama")


@pytest.fixture(scope="session")
def runs() -> Any:
    """Three runs over ragged prompts; see `tiny_models.three_runs`."""
    from tiny_models import three_runs

    return three_runs()
