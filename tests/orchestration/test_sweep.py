"""Many runs of one spec: planned, executed, resumed, stopped, reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toy_family as toy

from mech_interp.config import expand, read_specs
from mech_interp.errors import InputError
from mech_interp.orchestration import (
    find_sweep,
    plan_sweep,
    run_spec,
    run_sweep,
    states,
    with_axes,
    write_specs,
)
from mech_interp.orchestration.errors import InterruptedRunError
from mech_interp.orchestration.session import Session
from mech_interp.orchestration.sweep_reports import report_sweep
from mech_interp.storage import RunFolder, Store

GRID = ["seed=0,1", "parameters.shift=[0, 0.5]"]


def test_axes_are_read_as_yaml(model: Path) -> None:
    spec = with_axes(toy.spec(model), ["parameters.layer=0,1", "attention=sdpa,eager", "seed=[3, 4]"])
    assert spec.matrix is not None
    assert spec.matrix.grid == {
        "parameters.layer": [0, 1],
        "attention": ["sdpa", "eager"],
        "seed": [3, 4],
    }
    assert len(expand(spec)) == 8


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([], "at least one axis"),
        (["seed"], "no axis"),
        (["seed="], "no axis"),
        (["=1"], "no axis"),
        (["seed=1", "seed=2"], "given twice"),
        (["sed=1,2"], "sed"),
        (["seed=1,[2"], "--axis seed"),
    ],
)
def test_axes_that_do_not_read_are_refused(model: Path, axes: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        with_axes(toy.spec(model), axes)
    assert words in str(caught.value)


def test_every_child_is_run_once_and_the_same_call_finds_them_done(model: Path, home: Path) -> None:
    spec, settings = with_axes(toy.spec(model), GRID), toy.settings(home)
    told: list[tuple[str, int, int]] = []
    first = run_sweep(spec, settings, on_child=lambda s, i, n: told.append((s.status, i, n)))
    assert (first.ran, first.reused, first.failed, first.is_complete) == (4, 0, 0, True)
    assert told == [("complete", i, 4) for i in range(4)]
    again = run_sweep(spec, settings)
    assert (again.ran, again.reused) == (0, 4)
    assert [child.run for child in again.children] == [child.run for child in first.children]
    runs = Store(home).runs(f"matrix = {first.sweep.id}")
    assert len(runs) == 4
    values = [RunFolder(run.path).receipt()["matrix"]["values"] for run in runs]
    assert {json.dumps(value) for value in values} == {
        json.dumps({"seed": seed, "parameters.shift": shift}) for seed in (0, 1) for shift in (0, 0.5)
    }


def test_a_child_equals_the_run_of_its_spec(model: Path, home: Path, tmp_path: Path) -> None:
    spec = with_axes(toy.spec(model), GRID)
    outcome = run_sweep(spec, toy.settings(home))
    for child, state in zip(expand(spec), outcome.children, strict=True):
        alone = run_spec(child, toy.settings(tmp_path / "alone"))
        assert alone.key == state.child.key
        assert alone.folder is not None
        assert RunFolder(alone.folder).metrics()["mean"]["value"] == state.metrics["mean"]


def test_a_run_made_before_is_part_of_the_sweep(model: Path, home: Path) -> None:
    single = run_spec(toy.spec(model, seed=1, shift=0.5), toy.settings(home))
    outcome = run_sweep(with_axes(toy.spec(model), GRID), toy.settings(home))
    assert (outcome.ran, outcome.reused) == (3, 1)
    assert single.run_id in [child.run for child in outcome.children]


def test_children_that_cannot_run_are_told_before_any_runs(model: Path, home: Path) -> None:
    spec = with_axes(toy.spec(model), ["parameters.layer=0,9"])
    plan = plan_sweep(spec, toy.settings(home))
    assert [child.error is None for child in plan.children] == [True, False]
    assert not home.exists()
    with pytest.raises(InputError, match=r"1 of 2 runs of toy-run cannot run.*layer is 9"):
        run_sweep(spec, toy.settings(home), on_failure="stop")
    assert not home.exists()
    outcome = run_sweep(spec, toy.settings(home))
    assert [child.status for child in outcome.children] == ["complete", "invalid"]
    assert (outcome.failed, outcome.is_complete) == (1, False)
    assert "layer is 9" in str(outcome.children[1].error)


@pytest.mark.parametrize(
    ("policy", "statuses"),
    [
        ("continue", ["complete", "failed", "complete"]),
        ("stop", ["complete", "failed", "waiting"]),
    ],
)
def test_what_follows_a_failure(model: Path, home: Path, policy: Any, statuses: list[str]) -> None:
    spec = toy.spec(model).changed(
        {"matrix": {"list": [{"seed": 1}, {"parameters.trouble": "bug"}, {"seed": 2}]}}
    )
    outcome = run_sweep(spec, toy.settings(home), on_failure=policy)
    assert [child.status for child in outcome.children] == statuses
    assert outcome.stopped == (policy == "stop")
    assert outcome.children[1].error == "ZeroDivisionError: a bug"


def test_a_child_that_failed_is_tried_again(model: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = with_axes(toy.spec(model, trouble="bug"), ["seed=0,1"])
    assert run_sweep(spec, toy.settings(home)).failed == 2
    monkeypatch.setattr(toy, "_trouble", lambda what: None)
    outcome = run_sweep(spec, toy.settings(home))
    assert (outcome.ran, outcome.failed, outcome.is_complete) == (2, 0, True)


def test_an_interrupted_sweep_goes_on_where_it_stopped(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, settings = with_axes(toy.spec(model), GRID), toy.settings(home)
    unit, calls = toy.Toy._unit, [0]

    def work(self: Any, context: Any, index: int) -> Any:
        calls[0] += 1
        if calls[0] == 7:  # in the second child
            raise KeyboardInterrupt
        return unit(self, context, index)

    monkeypatch.setattr(toy.Toy, "_unit", work)
    with pytest.raises(InterruptedRunError):
        run_sweep(spec, settings)
    store = Store(home)
    plan = find_sweep(home, "toy-run")
    assert [one.status for one in states(plan, store)] == ["complete", "interrupted", "waiting", "waiting"]
    outcome = run_sweep(spec, settings)
    assert (outcome.ran, outcome.reused) == (3, 1)
    assert calls[0] == 4 * 4 + 1  # the unit that was ended, and no other, was computed again


def test_the_record_names_the_children_and_is_found_by_name_or_id(model: Path, home: Path) -> None:
    spec = with_axes(toy.spec(model), GRID)
    outcome = run_sweep(spec, toy.settings(home))
    before = outcome.sweep.path.read_bytes()
    run_sweep(spec, toy.settings(home))
    assert outcome.sweep.path.read_bytes() == before
    for text in ("toy-run", outcome.sweep.id, outcome.sweep.id[:-2]):
        assert find_sweep(home, text).id == outcome.sweep.id
    assert find_sweep(home, "toy-run").children[0].values == {
        "seed": 0,
        "parameters.shift": 0,
    }
    with pytest.raises(InputError, match="no sweep 'other'"):
        find_sweep(home, "other")
    run_sweep(with_axes(toy.spec(model), ["seed=5,6"]), toy.settings(home))
    with pytest.raises(InputError, match="fits 2 sweeps"):
        find_sweep(home, "toy-run")


def test_a_sweep_can_be_written_as_specs(model: Path, tmp_path: Path) -> None:
    spec = with_axes(toy.spec(model), GRID)
    paths = write_specs(spec, tmp_path / "specs")
    assert [read_specs(path)[0] for path in paths] == expand(spec)


def test_a_sweep_is_reported_with_its_axes(model: Path, home: Path) -> None:
    spec = toy.spec(model).changed(
        {"matrix": {"list": [{"seed": 1}, {"parameters.trouble": "bug"}, {"parameters.sane": False}]}}
    )
    outcome = run_sweep(spec, toy.settings(home))
    session = Session(toy.settings(home))
    text = report_sweep(outcome.sweep, session.store)
    assert "3 runs: 1 complete, 1 failed, 1 void." in text
    assert "ZeroDivisionError: a bug" in text
    assert "controls failed: identity" in text
    rows = [line for line in text.splitlines() if line.startswith("| run-")]
    assert len(rows) == 1  # only the complete one is quoted
    assert outcome.children[0].run in rows[0]
    session.close()


def test_a_spec_without_a_matrix_is_no_sweep(model: Path, home: Path) -> None:
    with pytest.raises(InputError, match="no matrix"):
        run_sweep(toy.spec(model), toy.settings(home))
