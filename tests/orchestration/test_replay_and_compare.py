"""Do the same numbers come out again, and what differs between runs?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import toy_family as toy

from mech_interp.errors import InputError, ModelError
from mech_interp.orchestration import compare, replay, run_spec
from mech_interp.orchestration.session import Session
from mech_interp.storage import RunFolder, StorageError, Store
from mech_interp.storage.verify import verify


def made(model: Path, home: Path, **changes: Any) -> RunFolder:
    outcome = run_spec(toy.spec(model, **changes), toy.settings(home))
    assert outcome.folder is not None
    return RunFolder(outcome.folder)


def test_a_run_replays_to_the_same_numbers_and_breaks_no_seal(model: Path, home: Path) -> None:
    run = made(model, home, units=3)
    found = replay(run, toy.settings(home))
    assert (found.agrees, found.grade, found.reasons, found.notes) == (True, "same", (), ())
    assert [(one.name, one.agrees) for one in found.metrics] == [("mean", True), ("count", True)]
    assert found.metrics[0].recorded == found.metrics[0].replayed
    assert verify(run.path) == []
    assert len(Store(home).runs()) == 1  # the replay ran elsewhere
    [saved] = (run.path / "derived" / "replays").iterdir()
    assert json.loads(saved.read_text())["agrees"] is True


def test_numbers_that_do_not_come_out_again_are_named(model: Path, home: Path) -> None:
    found = replay(made(model, home, noise=True), toy.settings(home), save=False)
    assert not found.agrees
    wrong = [one for one in found.metrics if not one.agrees]
    assert [one.name for one in wrong] == ["mean"]
    assert wrong[0].recorded != wrong[0].replayed


@pytest.mark.parametrize(("shift", "agrees"), [(1e-9, True), (1e-3, False)])
def test_the_stated_tolerance_decides(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch, shift: float, agrees: bool
) -> None:
    run = made(model, home)
    unit = toy.Toy._unit

    def moved(self: Any, context: Any, index: int) -> Any:
        found = unit(self, context, index)
        return {**found, "mean": found["mean"] + shift}

    monkeypatch.setattr(toy.Toy, "_unit", moved)
    assert replay(run, toy.settings(home), save=False).agrees is agrees


def test_another_environment_is_graded_and_another_version_noted(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(model, home)
    known = Session(toy.settings(home)).environment()
    elsewhere = {**known, "packages": {**known["packages"], "torch": "99.0"}}
    monkeypatch.setattr(Session, "environment", lambda self: dict(elsewhere))
    monkeypatch.setattr(toy.Toy, "version", 2)
    found = replay(run, toy.settings(home), save=False)
    assert found.grade == "different"
    assert any("torch" in reason and "99.0" in reason for reason in found.reasons)
    assert found.notes == ("The family toy is version 2 now and was 1: its numbers may differ on purpose.",)
    assert found.agrees


def test_the_model_is_looked_for_where_it_was(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    outcome = run_spec(toy.spec(Path("./tiny")), toy.settings(home))
    assert outcome.folder is not None
    monkeypatch.chdir("/")
    assert replay(RunFolder(outcome.folder), toy.settings(home), save=False).agrees


def test_another_model_or_a_missing_one_is_refused(model: Path, home: Path) -> None:
    run = made(model, home)
    toy.checkpoint(model, b"other weights")
    with pytest.raises(ModelError, match=r"is not the one that run-.* used"):
        replay(run, toy.settings(home))
    shutil.rmtree(model)
    with pytest.raises(ModelError, match="no folder"):
        replay(run, toy.settings(home))


def test_a_run_that_was_changed_or_has_no_numbers_is_refused(model: Path, home: Path) -> None:
    run = made(model, home)
    metrics = json.loads((run.path / "metrics.json").read_text())
    metrics["mean"]["value"] += 1
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(StorageError, match=r"no longer what was sealed: metrics\.json"):
        replay(run, toy.settings(home))
    with pytest.raises(ZeroDivisionError):
        run_spec(toy.spec(model, trouble="bug"), toy.settings(home))
    [failed] = Store(home).runs("status = failed")
    with pytest.raises(StorageError, match="is failed, so it has no numbers"):
        replay(failed.open(), toy.settings(home))


def test_only_what_differs_is_shown(model: Path, home: Path) -> None:
    one, two = made(model, home, units=9), made(model, home, units=9, shift=0.5, name="shifted")
    found = compare([one, two])
    assert [(d.what, d.values) for d in found.differences] == [
        ("name", ("toy-run", "shifted")),
        ("parameters.shift", ("0.0", "0.5")),
    ]
    rows = {row.name: row for row in found.metrics}
    assert [cell and cell["n"] for cell in rows["mean"].cells] == [12 * 9 / 4, 12 * 9 / 4]
    assert rows["mean"].unit == "points"
    assert json.loads(json.dumps(found.to_dict()))["runs"][1]["name"] == "shifted"


def test_runs_are_paired_over_the_groups_that_both_measured(model: Path, home: Path) -> None:
    one, two = made(model, home, units=9), made(model, home, units=12, seed=5, shift=2.0)
    three = made(model, home, units=9, seed=6)
    found = compare([one, two, three])
    assert [(pair.left, pair.right, pair.n_groups) for pair in found.paired] == [
        (one.id, two.id, 9),
        (one.id, three.id, 9),
    ]
    groups = [run.metrics()["mean"]["per_group"] for run in (one, two)]
    by_hand = sum(groups[1][name] - groups[0][name] for name in groups[0]) / 9
    assert found.paired[0].difference == pytest.approx(by_hand)
    assert found.paired[0].interval is not None
    assert found.paired[0].interval[0] < by_hand < found.paired[0].interval[1]
    assert found.paired[0].p < 0.05 < found.paired[1].p
    assert found.paired[0].adjusted_p >= found.paired[0].p


def test_what_must_not_be_quoted_is_said(model: Path, home: Path) -> None:
    one, void = made(model, home), made(model, home, sane=False)
    assert compare([one, void]).notes == (f"{void.id} is void: its numbers must not be quoted.",)


def test_a_comparison_needs_different_finished_runs(model: Path, home: Path) -> None:
    run = made(model, home)
    for runs in ([run], [run, run]):
        with pytest.raises(InputError, match="two or more different runs"):
            compare(runs)
    begun = RunFolder.create(home, "key", toy.spec(model).to_yaml(), {})
    with begun, pytest.raises(StorageError, match="has not finished"):
        compare([run, begun])
