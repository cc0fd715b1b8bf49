"""The wheel that others install: what it holds, and the main job run from it, far from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / "src" / "mech_interp" / "bundled" / "checkpoints"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this tree, built with the hatchling that the dev extra installed."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {
        "mech_interp",
        "mech_interpretability",
    }
    assert not [name for name in names if "test" in Path(name).name and name.startswith("mech_interp/")]
    assert "mech_interp/py.typed" in names


def test_wheel_holds_every_module_and_checkpoint(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "mech_interp"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    missing = {f"mech_interp/{path.relative_to(package).as_posix()}" for path in files} - names
    assert missing == set()
    weights = [name for name in names if name.endswith(".safetensors")]
    assert len(weights) >= 1, "the main job needs a bundled model"
    assert wheel.stat().st_size < 20e6


def test_sdist_holds_what_a_checkout_needs(tmp_path):
    """Someone who unpacks the source release can run `make test`, bundled models included."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = [ROOT / name for name in ("Makefile", "constraints.txt", "LICENSE", "README.md", ".ci/run")]
    checkpoints = [path for path in CHECKPOINTS.rglob("*") if path.is_file()]
    for path in [*needed, *checkpoints, *(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        assert path.relative_to(ROOT).as_posix() in names


def run(*command: object, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def home(tmp_path):
    """An empty environment; removed afterwards even when the test fails, since it grows past a gigabyte."""
    folder = tmp_path / "env"
    venv.create(folder, with_pip=True)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_runs_from_the_wheel_in_an_empty_environment(wheel, home, tmp_path):
    """Everything is installed anew from the package registry, as for a first user."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    outside = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    python = home / "bin" / "python"
    run(python, *install, "-c", ROOT / "constraints.txt", wheel, cwd=cwd, env=outside)

    where = run(python, "-c", "import mech_interp; print(mech_interp.__file__)", cwd=cwd, env=outside)
    assert Path(where.strip()).is_relative_to(home)
    assert run(home / "bin" / "mech", "--version", cwd=cwd, env=outside).startswith("mech 0.1.0,")

    printed = run(home / "bin" / "mech", "demo", "--format", "json", cwd=cwd, env=outside)
    summary = json.loads(printed)
    folder = cwd / "mech-demo"
    assert summary == json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert {path.name for path in folder.iterdir()} >= {"summary.md", "summary.json", "summary.png"}
    assert (folder / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert summary["seconds"] > 0
    assert len(summary["findings"]) >= 3
    for finding in summary["findings"]:
        assert {"value", "interval", "n", "control"} <= set(finding)
