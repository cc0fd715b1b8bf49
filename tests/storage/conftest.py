"""Runs to test with: small, quick to write, with one file of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mech_interp.storage import database
from mech_interp.storage.folder import RunFolder

SPEC = """\
name: {name}
family: {family}
model: {model}
tags: {tags}
parameters: {parameters}
"""


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk shows nothing here, and takes long where other work keeps it busy."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    set_up = database._set_up

    def without_flush(connection: Any, record: object) -> None:
        set_up(connection, record)
        connection.execute("PRAGMA synchronous = OFF")

    monkeypatch.setattr(database, "_set_up", without_flush)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def begin_run(root: Path) -> Callable[..., RunFolder]:
    """Create a run, without results: `begin_run(key, name=..., family=..., receipt={...})`."""

    def begin(key: str = "key", receipt: dict[str, Any] | None = None, **said: Any) -> RunFolder:
        fields = {"name": "demo", "family": "logit_lens", "model": "gpt2", "tags": [], "parameters": {}}
        spec = SPEC.format(**{name: json.dumps(value) for name, value in {**fields, **said}.items()})
        return RunFolder.create(root, key, spec, receipt or {})

    return begin


@pytest.fixture
def results() -> dict[str, Any]:
    """What `finish` takes: one of everything."""
    return {
        "metrics": {
            "rank": {"value": 2.5, "interval": [1.0, 4.0], "n": 32, "unit": "rank", "better": "lower"}
        },
        "tables": {"by_layer": [{"layer": 0, "rank": 3.5}, {"layer": 1, "rank": 1.0}]},
        "tensors": {"blocks.1.attn.hook_z[7]": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "views": {"ranks": {"kind": "lines", "title": "Ranks"}},
        "figures": {"ranks": b"\x89PNG not really"},
        "findings": [{"sentence": "The rank falls.", "evidence": ["by_layer"], "controls": ["shuffled"]}],
        "controls": [{"name": "shuffled", "passed": True}],
        "notes": {"question": "When?"},
        "report": "# Ranks\n",
    }


@pytest.fixture
def finished(begin_run: Callable[..., RunFolder], results: dict[str, Any]) -> RunFolder:
    """A finished run with every kind of file, its units kept."""
    run = begin_run()
    run.save_unit("pair 0", {"effect": 0.25}, {"effects": np.ones(3)})
    run.finish("complete", keep_units=True, **results)
    return run


@pytest.fixture(scope="session")
def selector() -> Callable[..., Callable[[str], set[str]]]:
    """`selector(summaries)(query)`: the ids that a query selects from an index with these runs."""

    def fill(runs: list[Any]) -> Callable[[str], set[str]]:
        from sqlalchemy import select

        from mech_interp.storage import query, query_sql, records, tables
        from mech_interp.storage.database import Database

        database = Database(Path("nowhere"), in_memory=True)
        with database.writing() as connection:
            for run in runs:
                records.put(connection, run)

        def answer(text: str) -> set[str]:
            node = query.parse(text)
            ids = select(tables.runs.c.id)
            with database.reading() as connection:
                found = connection.execute(ids if node is None else ids.where(query_sql.condition(node)))
                return set(found.scalars())

        return answer

    return fill


@pytest.fixture
def work() -> Callable[..., Any]:
    """Run a task of `workers.py` in a process of its own; returns what it prints as JSON."""

    def run(task: str, *arguments: object, timeout: float = 250) -> Any:
        script = Path(__file__).with_name("workers.py")
        command = [sys.executable, str(script), task, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    return run
