"""`make` without an environment: what it says when Python cannot make one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def fake_python(folder: Path, body: str) -> Path:
    """A stand-in for an interpreter: a shell script that sees the program after -c as $2."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('case "$2" in *version_info*) exit 1;; esac', "mech needs Python 3.11 or newer"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "lacks venv or ensurepip"),
    ],
    ids=["old", "no-venv"],
)
def test_an_unfit_python_gets_one_sentence(tmp_path, body, said):
    python = fake_python(tmp_path, body)
    venv = tmp_path / "venv"
    done = subprocess.run(
        ["make", "-C", ROOT, f"PYTHON={python}", f"VENV={venv}", "install"], capture_output=True, text=True
    )
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert said in lines[0]
    assert not venv.exists()


def test_help_names_the_promised_targets():
    done = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True)
    for target in ("install", "demo", "test", "test-all", "lint", "bench"):
        assert f"make {target} " in done.stdout


def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().rstrip().endswith("make test")
