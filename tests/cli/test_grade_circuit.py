"""`mech grade-circuit` on files: counts by hand, refusals with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mech_interp.cli.main import main
from mech_interp.graph import Circuit, CircuitGraph
from mech_interp.graph_io import SavedCircuit, save, write_eap_ig

GRAPH = CircuitGraph(12, 12, 12)
EDGES = ["input->a9.h9<q>", "a9.h9->logits", "input->a0.h0<v>", "a0.h0->logits"]


@pytest.fixture
def circuit(tmp_path: Path) -> Path:
    """A name mover and a head of no group, each on a path of its own."""
    return save(tmp_path / "circuit.json", SavedCircuit(Circuit.named(GRAPH, EDGES)))


def told(capsys: Any, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return dict(found)


def test_recall_and_precision_are_counted(circuit: Path, capsys: Any) -> None:
    found = told(capsys, "grade-circuit", str(circuit), "--reference", "ioi-gpt2-small")
    assert found["recall"]["value"] == pytest.approx(1 / 26)
    assert found["precision"]["value"] == pytest.approx(1 / 2)
    assert found["outside"] == ["0.0"]
    assert sum("9.9" in group["found"] for group in found["groups"].values()) == 1


def test_an_eap_ig_graph_is_graded_the_same(circuit: Path, tmp_path: Path, capsys: Any) -> None:
    other = write_eap_ig(tmp_path / "graph.json", SavedCircuit(Circuit.named(GRAPH, EDGES)), 768)
    own, theirs = (told(capsys, "grade-circuit", str(path)) for path in (circuit, other))
    assert {**own, "circuit": ""} == {**theirs, "circuit": ""}


def test_a_reference_of_ones_own(circuit: Path, tmp_path: Path, capsys: Any) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text('movers: ["9.9", "0.0"]\n', encoding="utf-8")
    assert told(capsys, "grade-circuit", str(circuit), "--reference", str(mine))["recall"]["value"] == 1.0


def test_people_see_groups_and_counts(circuit: Path, capsys: Any) -> None:
    assert main(["grade-circuit", str(circuit)]) == 0
    shown = capsys.readouterr().out
    assert "9.9" in shown
    assert "Heads against" in shown


@pytest.mark.parametrize(
    ("content", "words"),
    [("nonsense", "cannot be read"), ("{}", "no EAP-IG graph")],
)
def test_files_that_hold_no_circuit_are_refused(
    tmp_path: Path, capsys: Any, content: str, words: str
) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content, encoding="utf-8")
    assert main(["grade-circuit", str(path)]) != 0
    assert words in capsys.readouterr().err


def test_a_circuit_of_another_model_is_refused(tmp_path: Path, capsys: Any) -> None:
    small = CircuitGraph(4, 8, 8)
    path = save(tmp_path / "small.json", SavedCircuit(Circuit.named(small, ["input->logits"])))
    assert main(["grade-circuit", str(path)]) != 0
    assert "another model" in capsys.readouterr().err
