"""Tiny random checkpoints in folders, each opened by MLX and by the default engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of each variant of `mlx_models`, made when first asked for."""
    from mlx_models import save

    made: dict[str, Path] = {}

    def original(variant: str) -> Path:
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp("mlx") / variant.replace(" ", "-")
            save(made[variant], variant)
        return made[variant]

    return original


@pytest.fixture(scope="session")
def pairs(originals: Callable[[str], Path]) -> Callable[[str], Any]:
    """Each variant in both engines, in float32; opened when first asked for."""
    from mlx_models import open_both

    opened: dict[str, Any] = {}

    def pair(variant: str) -> Any:
        if variant not in opened:
            opened[variant] = open_both(originals(variant))
        return opened[variant]

    return pair
