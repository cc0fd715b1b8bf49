"""MLX: checkpoints of some architectures run by Apple's array library, from the same safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mech_interp.errors import MissingExtraError

if TYPE_CHECKING:
    from mech_interp.backends.mlx.model import MLXModel


def open_folder(
    folder: Path,
    *,
    name: str,
    source: str,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "sdpa",
    allow_pickle: bool = False,
) -> MLXModel:
    """Open a checkpoint folder in MLX; see `mech_interp.load_model` for the arguments.

    Only safetensors are read, whatever `allow_pickle` says. `device` is ``auto`` (the GPU of Apple
    silicon, elsewhere the CPU), ``cpu`` or ``mps``.

    Raises:
        MissingExtraError: when MLX is not installed.
        CapabilityError: for an architecture or a dtype that this backend does not run.
        ModelError, IdentityError: for files that cannot be used, or a model that fails a check.
    """
    try:
        import mlx.core  # noqa: F401  # the bare package installs on Linux too, but does not import
    except ImportError:
        raise MissingExtraError("mlx", "mlx") from None
    from mech_interp.backends.mlx.opening import open_checkpoint

    return open_checkpoint(folder, name=name, source=source, device=device, dtype=dtype, attention=attention)
