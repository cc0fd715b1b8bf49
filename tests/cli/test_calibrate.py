"""`mech calibrate`: the fast part of the certificate, what it leaves behind, and that it can fail."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mech_interp.methods.circuits.certificate import claims, edges, identities, nodes, nulls, scrubs
from mech_interp.methods.circuits.certificate.cases import Case
from mech_interp.methods.circuits.certificate.claims import Claims
from mech_interp.orchestration.calibrate import SECTIONS
from mech_interp.orchestration.calibrate_record import is_intact

UNSOUND = 8


def missed(done: Any) -> set[str]:
    """Sections with a missed bar."""
    assert done.code == UNSOUND, done.err
    return {sentence.partition(":")[0] for sentence in done.json["certificate"]["missed"]}


def test_the_quick_certificate_keeps_every_bar_and_is_stored(cli: Any) -> None:
    done = cli("calibrate", "--quick", "--home", "runs", "-o", "certificate.json", "--format", "json")
    assert done.code == 0, done.json["certificate"]["missed"]
    (kept,) = Path("runs/certificates").glob("quick-*.json")
    stored = json.loads(kept.read_text(encoding="utf-8"))
    assert stored == json.loads(Path("certificate.json").read_text(encoding="utf-8"))
    assert {**stored, "file": str(kept)} == done.json
    assert is_intact(stored)
    certificate = stored["certificate"]
    assert tuple(dict.fromkeys(one["section"] for one in certificate["measures"])) == tuple(SECTIONS)
    for section in set(SECTIONS) - {"nodes"}:  # which are shown without a bar
        assert any(one["bar"] for one in certificate["measures"] if one["section"] == section), section
    assert certificate["holds"] is True
    assert certificate["bars"] > 80
    assert certificate["models"]["reverse, 50 nats, draw 0"]
    assert {"torch", "transformers"} <= set(stored["environment"]["packages"])
    certificate["measures"][0]["value"] = 0.5
    assert not is_intact(stored)


def test_tables_are_printed(cli: Any) -> None:
    done = cli("calibrate", "--quick", "--only", "gates,identities", "--home", "runs")
    assert done.code == 0, done.err
    for text in ("OR and AND", "or-gate, denoising", "Identities", "random llama, float32", "bars kept"):
        assert text in done.out
    assert "Causal scrubbing" not in done.out


def test_an_unknown_section_is_refused_before_anything_is_measured(cli: Any) -> None:
    done = cli("calibrate", "--only", "gate")
    assert done.code == 2
    assert "no section 'gate'" in done.err
    assert "gates" in done.err
    assert cli("calibrate", "--only", ",").code == 2
    assert not Path("artifacts").exists()


def test_a_sabotaged_score_misses_the_bar(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_blind(case: Case) -> Any:
        scores = edges.exact_scores(case)
        return np.where(np.arange(scores.shape[1]) == scores.shape[1] - 1, 0.0, scores)

    monkeypatch.setitem(edges.SCORERS, "exact edge patching", half_blind)
    done = cli("calibrate", "--quick", "--only", "exact", "--format", "json")
    assert missed(done) == {"exact"}
    shown = cli("calibrate", "--quick", "--only", "exact")
    assert shown.code == UNSOUND
    assert "bars missed" in shown.out


def test_sabotaged_pruning_misses_its_bars(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = edges.acdc

    def forgetful(task: Any, loss: Any, tau: float) -> Any:
        found = honest(task, loss, tau)
        found.edges[0] = False
        return found

    monkeypatch.setattr(edges, "acdc", forgetful)
    done = cli("calibrate", "--quick", "--only", "acdc,gates", "--format", "json")
    assert missed(done) == {"acdc", "gates"}


def test_gradients_that_see_less_miss_the_bar(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in edges.INTEGRATED:
        monkeypatch.setitem(edges.SCORERS, variant, lambda case: 1.0 * case.task.graph.possible)
    done = cli("calibrate", "--quick", "--only", "gradients", "--format", "json")
    assert missed(done) == {"gradients"}


def test_path_patching_that_is_off_misses_its_bars(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = nodes.direct_edges
    monkeypatch.setattr(nodes, "direct_edges", lambda case: 1.001 * honest(case)[..., ::-1])
    done = cli("calibrate", "--quick", "--only", "paths,nodes", "--format", "json")
    assert missed(done) == {"paths"}
    certificate = done.json["certificate"]
    assert len(certificate["missed"]) == certificate["bars"]
    areas = {one["value"] for one in certificate["measures"] if one["section"] == "nodes"}
    assert min(areas) < 0.8 < max(areas) == 1  # OR hides from single patches


def test_a_test_without_adjustment_finds_too_much_in_nulls(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def naive(effects: np.ndarray, noise: float) -> np.ndarray:
        error = effects.std(0, ddof=1) / np.sqrt(len(effects))
        return np.abs(effects.mean(0)) > 2.365 * error + noise  # t of 7 degrees of freedom at 0.05

    monkeypatch.setitem(nulls.TESTS, "sign-flip max-T", naive)
    done = cli("calibrate", "--quick", "--only", "discovery", "--format", "json")
    assert missed(done) == {"discovery"}


def test_a_wrong_hypothesis_does_not_pass_as_the_true_one(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def exchanged(made: Any, n_pairs: int) -> Claims:
        found = claims.claims_about(made, n_pairs)
        return dataclasses.replace(found, true=found.wrong[0], wrong=(found.true,))

    monkeypatch.setattr(scrubs, "claims_about", exchanged)
    done = cli("calibrate", "--quick", "--only", "scrubbing", "--format", "json")
    assert missed(done) == {"scrubbing"}
    measured = done.json["certificate"]["measures"]
    assert len(measured) == len(done.json["certificate"]["missed"])


def test_scores_that_are_off_by_little_break_the_identities(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = identities.edge_scores
    monkeypatch.setattr(identities, "edge_scores", lambda *given: 1.0001 * honest(*given))
    done = cli("calibrate", "--quick", "--only", "identities", "--format", "json")
    assert missed(done) == {"identities"}
    certificate = done.json["certificate"]
    assert len(certificate["missed"]) == certificate["bars"] == len(certificate["measures"])
