"""Both packages in one process, in the order that would end it."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import nnsight
from mech_interp import load_model
mlx = load_model("tinyworld", backend="mlx", device="cpu")
theirs = load_model("tinyworld", backend="nnsight", device="cpu")
assert hasattr(object, "save")
found = [model.forward([[1, 2, 3]]).logits for model in (mlx, theirs)]
assert float((found[0] - found[1]).abs().max()) < 1e-2
print("fine")
"""


def test_mlx_opens_after_nnsight_was_imported() -> None:
    pytest.importorskip("mlx.core")
    pytest.importorskip("nnsight")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr
