"""Reports from stored values."""

from __future__ import annotations

from typing import Any

import pytest

from mech_interp.reports.across import Line, across, sweep_report
from mech_interp.reports.markdown import bounds, cell, number, table
from mech_interp.reports.run_report import Picture, Told, run_report

METRIC = {"value": 0.51234, "interval": [0.4, 0.6], "n": 40, "unit": "logits", "level": 0.95}


def told(**changes: Any) -> Told:
    plain: dict[str, Any] = {
        "run": "run-000001-aaaaaaaa",
        "status": "complete",
        "spec": {"name": "first", "family": "toy", "backend": "huggingface", "seed": 3},
        "receipt": {"key": "f" * 64, "model": {"id": "tiny", "weights_sha256": "e" * 64}, "dtype": "float32"},
        "metrics": {"effect": METRIC},
    }
    return Told(**{**plain, **changes})


def test_a_number_is_told_with_its_interval_n_unit_and_control() -> None:
    control = {"name": "unrelated | pair", "value": 0.01, "interval": [-0.1, 0.1]}
    text = run_report(told(metrics={"effect": {**METRIC, "control": control}}))
    assert "| `effect` | 0.5123 | [0.4, 0.6] | 40 | logits | 0.01 [-0.1, 0.1] (unrelated \\| pair) |" in text
    assert "Intervals are at 95%." in text


def test_a_missing_interval_says_why() -> None:
    metric = {"value": 1.0, "interval": None, "n": 3, "unit": "", "reason": "3 groups are too few"}
    assert "| `effect` | 1 | none: 3 groups are too few | 3 |" in run_report(told(metrics={"effect": metric}))


def test_evidence_and_controls_are_shown_beside_the_claim() -> None:
    text = run_report(
        told(
            findings=[
                {"sentence": "It works.", "evidence": ["effect", "cells", "map"], "controls": ["random"]}
            ],
            controls=[{"name": "random", "expected": "0", "value": 0.2, "passed": False, "sanity": False}],
            tables={"cells": "tables/cells.csv"},
            pictures=[Picture("map", "figures/map.png", "Effects", "n = 40")],
        )
    )
    lines = text.splitlines()
    start = lines.index("- It works.")
    assert lines[start + 1 : start + 5] == [
        "  - Evidence: `effect` = 0.5123 logits [0.4, 0.6], n = 40",
        "  - Evidence: table [cells](tables/cells.csv)",
        "  - Evidence: figure [map](figures/map.png)",
        "  - Control: random: 0.2, expected 0; **failed**",
    ]
    assert "![Effects](figures/map.png)" in lines
    assert "**Void.**" not in text


def test_a_void_run_says_so_before_anything_else() -> None:
    control = {"name": "self patch", "expected": "0", "value": 1.0, "passed": False, "sanity": True}
    text = run_report(told(status="void", controls=[control], notes={"question": "Why?"}))
    assert text.index("**Void.** A sanity control failed (self patch)") < text.index("**Question.**")


@pytest.mark.parametrize(
    ("direction", "threshold", "verdict"),
    [
        ("above", 0.3, "confirmed: 0.5123"),
        ("above", 0.5, "undecided: the interval holds the threshold"),
        ("above", 0.7, "refuted"),
        ("below", 0.7, "confirmed"),
        ("below", 0.3, "refuted"),
    ],
)
def test_a_prediction_is_judged_by_the_interval(direction: str, threshold: float, verdict: str) -> None:
    said = {"claim": "It is large.", "metric": "effect", "direction": direction, "threshold": threshold}
    spec = {"name": "first", "family": "toy", "hypothesis": said}
    assert f"It is {verdict}" in run_report(told(spec=spec))
    missing = {**said, "metric": "other"}
    assert "so it is undecided" in run_report(told(spec={**spec, "hypothesis": missing}))


def test_what_would_change_the_conclusion_how_to_check_and_what_was_left_out() -> None:
    text = run_report(told(notes={"caveats": ["More prompts."], "notes": ["1 dropped."]}, left_out=("big",)))
    assert "- More prompts." in text
    assert "- Not kept, because the run's files would exceed artifact_policy.max_artifact_bytes: big." in text
    assert "- 1 dropped." in text
    assert "`mech replay run-000001-aaaaaaaa`" in text


def test_cells_never_break_a_table() -> None:
    rows = list(table(["a", "b"], [["x|y\nz", "already \\| escaped"]]))
    assert rows == ["| a | b |", "| --- | --- |", "| x\\|y z | already \\| escaped |"]
    assert [number(value) for value in (None, 3, 3.0, 1234567.8, 0.00012349, float("inf"))] == [
        "none",
        "3",
        "3",
        "1.235e+06",
        "0.0001235",
        "inf",
    ]
    assert (bounds(None), bounds([0, 0.5]), cell(True), cell(None)) == ("", " [0, 0.5]", "yes", "")


def line(run: str, **changes: Any) -> Line:
    plain: dict[str, Any] = {
        "run": run,
        "name": "n",
        "family": "toy",
        "model": "tiny",
        "status": "complete",
        "metrics": {"effect": METRIC},
    }
    return Line(**{**plain, **changes})


def test_runs_are_told_by_family_and_only_complete_ones_quoted() -> None:
    void = line("r2", status="void", failed_controls=["c"])
    text = across([line("r1", findings=["It works."]), void, line("r3", family="o")])
    assert "3 runs: 2 complete, 1 void." in text
    first = [row.split(" | ")[0] for row in text.splitlines() if row.startswith("| r")]
    assert first == ["| run", "| r1", "| run", "| r3"]
    assert "| run | name | model | effect (logits) |" in text
    assert "- It works. (r1)" in text
    assert "- r2 (n) is void; controls failed: c" in text


def test_a_sweep_has_a_column_for_each_axis_and_says_what_is_missing() -> None:
    lines = [line("r1", values={"seed": 0, "kind": "z"}), line("r2", values={"seed": 1, "kind": "q"})]
    text = sweep_report("patching", ["seed", "kind"], lines, ["patching-seed-2"])
    assert "| run | model | seed | kind | effect (logits) |" in text
    assert "| r2 | tiny | 1 | q | 0.5123 [0.4, 0.6], n = 40 |" in text
    assert text.endswith("## Not run yet\n\n- patching-seed-2\n")
