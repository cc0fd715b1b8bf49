"""MLX: checkpoints of some architectures run by Apple's array library, from the same safetensors files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
        with _plain_objects():
            import mlx.core  # noqa: F401  # the bare package installs on Linux too, but does not import
    except ImportError:
        raise MissingExtraError("mlx", "mlx") from None
    from mech_interp.backends.mlx.opening import open_checkpoint

    return open_checkpoint(folder, name=name, source=source, device=device, dtype=dtype, attention=attention)


@contextmanager
def _plain_objects() -> Iterator[None]:
    """Take away, for a moment, the method that nnsight adds to every object of the process.

    While it is there the first import of MLX would end the process (nnsight 0.8.1, MLX 0.32.4).
    """
    nnsight = sys.modules.get("nnsight")
    if nnsight is None or not hasattr(object, "save") or "mlx.core" in sys.modules:
        yield
        return
    from nnsight._c import mount, unmount

    unmount("save")
    try:
        yield
    finally:
        mount(nnsight.save, "save")
