"""Preflight: what is wrong is a line of a table, never an exception, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toy_family as toy

from mech_interp.orchestration import preflight, run_spec
from mech_interp.orchestration.checks import Check, passes


def checked(model: Path, home: Path, **changes: Any) -> dict[str, Check]:
    return {check.name: check for check in preflight(toy.spec(model, **changes), toy.settings(home))}


def test_a_spec_that_can_run_passes_and_nothing_is_written(model: Path, home: Path) -> None:
    found = checked(model, home)
    assert passes(list(found.values()))
    assert {check.status for check in found.values()} <= {"ok", "warning"}
    assert "7 bytes" in found["model"].detail
    assert "none with the key" in found["stored runs"].detail
    assert not home.exists()
    assert json.dumps([check.to_dict() for check in found.values()])


def test_a_stored_run_is_mentioned(model: Path, home: Path) -> None:
    outcome = run_spec(toy.spec(model), toy.settings(home))
    assert checked(model, home)["stored runs"].detail == f"{outcome.run_id} is complete"


@pytest.mark.parametrize(
    ("change", "failed", "words", "skipped"),
    [
        ({"family": "toyy"}, "family", "no family", ["parameters", "architecture", "sites and answers"]),
        ({"layer": 5}, "sites and answers", "layer is 5", ["stored runs"]),
        ({"units": 0}, "parameters", "units", ["sites and answers", "data"]),
        ({"backend": "other"}, "backend", "no backend", ["stored runs"]),
        ({"device": "cuda"}, "device", "no cuda device", ["memory", "stored runs"]),
    ],
)
def test_each_problem_is_its_own_line(
    model: Path, home: Path, change: dict[str, Any], failed: str, words: str, skipped: list[str]
) -> None:
    found = checked(model, home, **change)
    assert [check.name for check in found.values() if check.status == "failed"] == [failed]
    assert words in found[failed].detail
    assert not passes(list(found.values()))
    for name in skipped:
        assert found[name].status == "skipped", name


def test_a_model_that_is_not_there_skips_what_needs_it(home: Path) -> None:
    found = checked(Path("/nowhere/at/all"), home)
    assert found["model"].status == "failed"
    assert found["model"].hint
    skipped = [check.name for check in found.values() if check.status == "skipped"]
    assert skipped == [
        "architecture",
        "device",
        "tokenizer",
        "sites and answers",
        "data",
        "memory",
        "stored runs",
    ]


def test_an_architecture_without_a_layout_is_refused_before_weights_load(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy.Toy, "needs", frozenset({"capture"}))
    (model / "config.json").write_text(json.dumps({**toy.CONFIG, "model_type": "nosuch"}))
    found = checked(model, home)
    assert "'nosuch' has no layout" in found["architecture"].detail
    assert found["architecture"].status == "failed"


def test_more_memory_than_there_is_is_a_warning(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mech_interp.orchestration.memory.available", lambda device: 6)
    found = checked(model, home)["memory"]
    assert (found.status, "6 bytes are free" in found.detail) == ("warning", True)
