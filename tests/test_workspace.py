"""Stored runs as Python objects."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from mech_interp import workspace
from mech_interp.errors import InputError, MechError

SUPPORT = str(Path(__file__).resolve().parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)

import toy_family as toy  # noqa: E402


@pytest.fixture
def space(tmp_path: Path) -> Iterator[workspace.Workspace]:
    toy.install()
    model = toy.checkpoint(tmp_path / "tiny")
    with workspace.open(tmp_path / "runs", device="cpu") as opened:
        for seed in (0, 1):
            opened.execute(toy.spec(model, seed=seed, units=3, draw=seed == 1))
        yield opened
    toy.uninstall()


def test_runs_are_found_and_read(space: workspace.Workspace) -> None:
    assert [run.record.seed for run in space.runs()] == [1, 0]
    assert [run.record.seed for run in space.runs("seed = 0 and family = toy")] == [0]
    run = space.run(2)
    assert run.id == space.run(run.id).id
    assert run.metrics["mean"].unit == "points"
    assert (run.tables, run.arrays, run.views, run.figures) == (["units"], ["values"], ["bars"], ["bars"])
    assert run.array("values").shape == (3, 3)
    assert run.view("bars").title == "Means"
    assert run.figure("bars").is_file()
    assert run.report.startswith("# toy-run")
    assert run.spec["seed"] == run.receipt["seed"] == 1
    assert run.status == "complete"
    assert run.verify() == []
    assert run.replay(save=False).agrees
    assert [one.metric for one in space.compare(1, 2).paired] == ["mean"]


def test_a_table_is_rows_without_pandas_and_a_frame_with_it(
    space: workspace.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pandas" else real(name, *more)
    )
    rows = space.run(1).table("units")
    assert [row["unit"] for row in rows] == ["group-0", "group-1", "group-2"]
    pandas = types.ModuleType("pandas")
    pandas.DataFrame = lambda rows: ("frame", rows)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: True)
    assert space.run(1).table("units") == ("frame", rows)


def test_what_is_not_there_is_named(space: workspace.Workspace) -> None:
    with pytest.raises(MechError, match="no run '7'"):
        space.run(7)
    with pytest.raises(InputError, match=r"no table 'unit'.*units"):
        space.run(1).table("unit")
    with pytest.raises(InputError, match="Column 8"):
        space.runs("seed ==== 1")


def test_a_file_of_one_spec_can_be_executed(space: workspace.Workspace, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    text = toy.spec(tmp_path / "tiny", seed=1, units=3, draw=True).to_yaml()
    file.write_text(text)
    assert space.execute(file).id == space.run(2).id
    file.write_text(f"{text}---\n{text.replace('toy-run', 'other')}")
    with pytest.raises(InputError, match="holds 2 specs"):
        space.execute(file)
