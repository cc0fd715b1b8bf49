"""What every test may use: the installed command, and real checkpoints where this machine has them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each worker: workers that share cores only slow each other down. Set before torch
    # is imported, and inherited by the commands that tests start.
    os.environ["OMP_NUM_THREADS"] = "1"

with contextlib.suppress(ImportError):
    # Before any test imports nnsight, which adds a method to every object: imported after that, MLX ends the
    # process. Where the package itself meets that order it helps itself; see the backend mlx.
    import mlx.core  # noqa: F401

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs deaf to Ctrl-C, which tests send; what they start inherits it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

Mech = Callable[..., "subprocess.CompletedProcess[str]"]


def command() -> list[str]:
    """How to start `mech`: the installed script, or the module where only the source is on the path."""
    script = Path(sys.executable).with_name("mech")
    return [str(script)] if script.exists() else [sys.executable, "-m", "mech_interp"]


@pytest.fixture
def mech(tmp_path: Path) -> Mech:
    """Run `mech ARGUMENTS` in an empty folder, as a person would; returns the completed process."""
    folder = tmp_path / "cwd"
    folder.mkdir()

    def run(*arguments: str, env: Mapping[str, str] | None = None, timeout: float = 120) -> object:
        plain = {"COLUMNS": "100", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
        return subprocess.run(
            [*command(), *arguments],
            cwd=folder,
            env={**os.environ, **plain, **(env or {})},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
        )

    return run  # type: ignore[return-value]


@pytest.fixture(scope="session")
def real_checkpoints() -> Path:
    """The folder of checkpoints trained by others, beside the checkout; skips where there is none."""
    folder = ROOT.parent / "shared" / "models"
    if not folder.is_dir():
        pytest.skip("no real checkpoints: ../shared/models is not on this machine")
    return folder
