"""Commands called in this process, in an empty folder, with a toy family that needs no model."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mech_interp.cli.main import main

SUPPORT = str(Path(__file__).resolve().parent.parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)

SPECS = """\
name: toy-run
family: toy
model: {model}
device: cpu
tags: [paper]
parameters: {{units: 3}}
---
name: toy-void
family: toy
model: {model}
device: cpu
parameters: {{units: 2, sane: false}}
---
name: toy-broken
family: toy
model: {model}
device: cpu
parameters: {{units: 2, trouble: mech}}
---
name: toy-sweep
family: toy
model: {model}
device: cpu
parameters: {{units: 2}}
matrix: {{parameters.shift: [0.0, 1.5], seeds: 2}}
"""


@dataclass(frozen=True)
class Done:
    """What a command returned and printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.err.splitlines()[-1])["error"]


Cli = Callable[..., Done]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`cli("runs", "--limit", "3")` in an empty folder, with no settings but the defaults."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("MECH_")]:
        monkeypatch.delenv(name)
    # What survives a power cut is tested with the store; waiting for the disk here only takes time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkpoint."""
    import toy_family

    return toy_family.checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def toy(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Specs of the toy family in `experiments/`; returns the current folder."""
    import toy_family

    from mech_interp.orchestration.session import Session

    toy_family.install()
    # Asking for the environment takes long, and has tests of its own.
    monkeypatch.setattr(Session, "environment", lambda self: {"python": "3.11", "packages": {}, "threads": 1})
    folder = Path.cwd() / "experiments"
    folder.mkdir()
    (folder / "toy.yaml").write_text(SPECS.format(model=model))
    yield Path.cwd()
    toy_family.uninstall()


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of `stored` are kept, to be made once and copied for each test."""
    return tmp_path_factory.mktemp("stored") / "artifacts"


@pytest.fixture
def stored(toy: Path, cli: Cli, _made: Path) -> list[str]:
    """Ids of three runs: complete with seed 0, complete with seed 1, void."""
    if not _made.exists():
        for code, given in ((0, ["toy-run"]), (0, ["toy-run", "--set", "seed=1"]), (8, ["toy-void"])):
            done = cli("run", *given, "--home", _made)
            assert done.code == code, done.err
    shutil.copytree(_made, "artifacts")
    return sorted(path.name for path in Path("artifacts").glob("run-*"))
