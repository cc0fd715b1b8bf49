"""Grades: the published circuit as data, hand-computed recalls and ROC areas, references of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mech_interp.errors import InputError
from mech_interp.graph import Circuit, CircuitGraph
from mech_interp.methods.circuits.grade import (
    circuits_auc,
    edge_auc,
    grade_heads,
    heads_of,
    load_reference,
    ranking_auc,
    reference_from,
    references,
)
from mech_interp.rendering.terminal import to_text

GRAPH = CircuitGraph(2, 2, 2)


def test_the_published_circuit() -> None:
    """26 heads in 7 groups, the well-known ones in their places."""
    ioi = load_reference("ioi-gpt2-small")
    assert "ioi-gpt2-small" in references()
    assert len(ioi.groups) == 7
    assert len(ioi.heads) == sum(map(len, ioi.groups.values())) == 26
    assert set(ioi.groups["name mover"]) == {(9, 9), (10, 0), (9, 6)}
    assert set(ioi.groups["negative name mover"]) == {(10, 7), (11, 10)}
    assert (10, 10) in ioi.groups["backup name mover"]
    assert "2211.00593" in ioi.source


def test_perfect_and_half_grades() -> None:
    ioi = load_reference("ioi-gpt2-small")
    perfect = grade_heads(ioi.heads, ioi)
    assert perfect.overall.value == perfect.precision.value == 1.0
    assert perfect.p < 1e-20
    found = [(9, 9), (10, 0), (5, 5), (11, 11)]
    grade = grade_heads(found, ioi)
    assert grade.recall["name mover"].value == pytest.approx(2 / 3)
    assert grade.recall["induction"].value == pytest.approx(1 / 4)
    assert grade.recall["s-inhibition"].value == 0
    assert grade.overall.value == pytest.approx(3 / 26)
    assert grade.precision.value == pytest.approx(3 / 4)
    assert grade.chance == pytest.approx(4 / 144)
    assert grade.outside == ((11, 11),)
    # P(3 or 4 of 4 draws without replacement are among 26 of 144), counted by hand.
    three = 4 * (26 * 25 * 24 * 118) / (144 * 143 * 142 * 141)
    four = (26 * 25 * 24 * 23) / (144 * 143 * 142 * 141)
    assert grade.p == pytest.approx(three + four)
    assert "name mover" in to_text(grade.view(), 120)
    nothing = grade_heads([], ioi)
    assert nothing.precision is None
    assert nothing.p == 1.0


def test_a_circuit_counts_for_its_connected_heads() -> None:
    circuit = Circuit.named(GRAPH, ["input->a0.h1<q>", "a0.h1->logits", "a1.h0->logits", "input->a0.h0<v>"])
    assert heads_of(circuit) == [(0, 1)]
    reference = reference_from({"early": ["0.1", "a0.h0"], "late": ["L1H1"]})
    grade = grade_heads(circuit, reference)
    assert grade.total == 4
    assert grade.recall["early"].value == 0.5
    with pytest.raises(InputError, match="another model"):
        grade_heads(circuit, load_reference("ioi-gpt2-small"))


def test_references_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('movers: ["1.10", a2.h0]\n')
    assert load_reference(path).groups == {"movers": ((1, 10), (2, 0))}
    path = tmp_path / "mine.json"
    path.write_text('{"groups": {"movers": [[1, 2]]}, "source": "a  note"}')
    assert load_reference(path).source == "a note"
    for text, message in (
        ("movers: [9.10]", "by the number 9.1"),
        ("movers: 9", "no list"),
        ('movers: ["9.1", "9.1"]', "twice"),
        ("[1, 2]", "no mapping"),
        ("movers: [x y z", "cannot be read"),
        ('movers: ["head nine"]', "names no head"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_reference(path)
    with pytest.raises(InputError, match="Did you mean ioi-gpt2-small"):
        load_reference("ioi-gpt2")
    with pytest.raises(InputError, match="number of heads of the model is unknown"):
        grade_heads([(0, 0)], reference_from({"a": ["0.0"]}))


def test_ranking_areas_by_hand() -> None:
    truth = np.array([True, True, False, False])
    assert ranking_auc(np.array([4.0, 3.0, 2.0, 1.0]), truth) == 1.0
    assert ranking_auc(np.array([4.0, 1.0, 2.0, 3.0]), truth) == 0.5
    assert ranking_auc(np.zeros(4), truth) == 0.0  # ties count against
    assert ranking_auc(np.array([1.0, 0.0, 0.0, 0.0]), truth) == 0.5
    with pytest.raises(InputError, match="true and false"):
        ranking_auc(np.zeros(2), np.array([True, True]))


def test_edge_areas_use_magnitudes_of_possible_edges() -> None:
    truth = Circuit.named(GRAPH, ["input->m0", "m0->logits"])
    scores = np.full(GRAPH.possible.shape, 99.0)
    scores[GRAPH.possible] = 0.1
    scores[truth.edges] = -3.0
    assert edge_auc(scores, truth) == 1.0
    scores[GRAPH.edge("input->m1")] = 5.0
    n_false = GRAPH.n_edges - 2
    assert edge_auc(scores, truth) == pytest.approx(1 - 1 / n_false)


def test_areas_of_threshold_sweeps_by_hand() -> None:
    """Points (1/n, 1/2) and (2/n, 1): right first, then up."""
    truth = Circuit.named(GRAPH, ["input->m0", "m0->logits"])
    one = Circuit.named(GRAPH, ["input->m0", "input->m1"])
    both = Circuit.named(GRAPH, ["input->m0", "m0->logits", "input->m1", "m0->m1"])
    n = GRAPH.n_edges - 2
    expected = (1 / n) * 0 + (1 / n) * 0.5 + (1 - 2 / n) * 1.0
    assert circuits_auc([both, one], truth) == pytest.approx(expected)
    assert circuits_auc([truth], truth) == 1.0
    assert circuits_auc([], truth) == 0.0
    dominated = Circuit.named(GRAPH, ["input->m1", "m0->m1", "a0.h0->m1"])
    assert circuits_auc([both, one, dominated], truth) == pytest.approx(expected)


def test_thresholding_scores_gives_the_same_area() -> None:
    """Oracle: every distinct score as a threshold, then the sweep's area."""
    generator = np.random.default_rng(0)
    truth = Circuit.top(GRAPH, generator.normal(size=GRAPH.possible.shape), 6)
    scores = np.round(generator.normal(size=GRAPH.possible.shape) + truth.edges, 1)
    circuits = [
        Circuit(GRAPH, (np.abs(scores) >= level) & GRAPH.possible) for level in np.unique(np.abs(scores))
    ]
    assert circuits_auc(circuits, truth) == pytest.approx(edge_auc(scores, truth))
