from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("TQDM_DISABLE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")  # what the script sets is undone afterwards
    names = ("setting", "attribution", "search", "memory", "report")
    modules = {name: importlib.import_module(f"compare.circuit_{name}") for name in names}
    return SimpleNamespace(circuits=importlib.import_module("circuits"), **modules)


def run(bench: SimpleNamespace, path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    arguments = ["--shape", "toy", "--quick", "--repeats", "1", "--no-memory", "--tau", "1e-4", *options]
    arguments += ["--json", str(path)]
    code = bench.circuits.main(arguments)
    return code, json.loads(path.read_text())


@pytest.fixture
def without_peer(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.setting, "open_peer", lambda shape: None)


@pytest.mark.usefixtures("without_peer")
def test_report_has_the_promised_figures(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = run(bench, tmp_path / "out.json")
    assert code == 0
    assert set(bench.circuits.HEADLINES) <= set(report)
    assert report["eap.forwards"] == report["eap"][0]["forwards_cpu"] > 0
    assert report["acdc.ratio_one_by_one"] == report["acdc"]["ratio_cpu"] > 0
    assert report["eap.ratio_transformerlens"] is None
    assert "extra" in report["peer"]["reason"]
    acdc = report["acdc"]
    assert 0 < acdc["kept"] < acdc["edges"]
    assert acdc["rows"] >= acdc["evaluated"] > 0
    assert acdc["slice"]["difference"] <= acdc["tolerance"]
    assert acdc["slice"]["edges"] == len(acdc["slice"]["cpu"]) > 1
    low, high = acdc["ratio_cpu_spread"]
    assert low <= acdc["ratio_cpu"] <= high
    assert [row["layers"] for row in report["growth"]] == [3, 3, 3, 3]
    assert all("met" not in one or one["met"] is None for one in (*report["eap"], acdc))
    shown = capsys.readouterr().out
    assert "ACDC over the whole graph" in shown
    assert "not judged" in shown
    assert "DISAGREE" not in shown


@pytest.mark.usefixtures("without_peer")
def test_scores_that_are_wrong_are_not_counted(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench.setting.Setting.scores
    monkeypatch.setattr(bench.setting.Setting, "scores", lambda self, **how: 1.01 * right(self, **how))
    code, report = run(bench, tmp_path / "out.json")
    assert code == 1
    assert report["eap.forwards"] is None
    assert any("EAP" in problem for problem in report["disagreements"])


@pytest.mark.usefixtures("without_peer")
def test_decisions_that_are_wrong_are_not_counted(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mech_interp.backends.huggingface.circuit_state import CircuitState

    right = CircuitState.trials

    def wrong(self: CircuitState, *given: Any) -> torch.Tensor:
        values = right(self, *given)
        return values + 1e-4 * torch.randn(len(values), 1)

    monkeypatch.setattr(CircuitState, "trials", wrong)
    code, report = run(bench, tmp_path / "out.json")
    assert code == 1
    assert report["acdc.ratio_one_by_one"] is None
    assert any("ACDC" in problem for problem in report["disagreements"])


def test_the_peer_agrees(bench: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("transformer_lens")
    code, report = run(bench, tmp_path / "out.json")
    assert code == 0
    assert report["peer"]["difference"] <= report["peer"]["tolerance"]
    assert report["peer"]["difference_embedding"] <= report["peer"]["tolerance"]
    assert report["paths"]["difference"] <= report["paths"]["tolerance"] < report["paths"]["spread"]
    assert min(report["eap.ratio_transformerlens"], report["paths.ratio_transformerlens"]) > 0


def test_a_decision_is_taken_from_the_circuit_it_came_up_in(bench: SimpleNamespace) -> None:
    one = SimpleNamespace(reader=5, removed=(0, 2), effects={2: 0.0, 1: 0.5, 0: 0.0})
    later = SimpleNamespace(reader=6, removed=(1,), effects={1: 0.0})
    possible = np.ones((3, 7), dtype=bool)
    engine = SimpleNamespace(graph=SimpleNamespace(possible=possible))
    before, after = bench.search._masks(engine, [later, one], 1, 0)
    assert before[:, 6].tolist() == [1, 0, 1]
    assert before[:, 5].tolist() == [1, 1, 0]
    assert after[:, 5].tolist() == [0, 1, 0]
    assert float(before.sum() - after.sum()) == 1


def test_memory_is_judged_with_the_weights(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"eap": (900.0, 1000.0), "forward_backward": (900.0, 940.0)}

    def peak_of(side: str, *given: Any) -> dict[str, float]:
        opened, peak = peaks[side]
        return {"opened_mb": opened, "peak_mb": peak, "added_mb": peak - opened, "weights_mb": 500.0}

    monkeypatch.setattr(bench.memory, "_peak_of", peak_of)
    found = bench.memory.peaks("toy", "all_tokens", 1)
    assert found["ratio"] == pytest.approx(600 / 540)
    assert found["ratio_added"] == pytest.approx(2.5)
    assert found["met"] is True
    peaks["eap"] = (900.0, 1300.0)
    assert bench.memory.peaks("toy", "all_tokens", 1)["met"] is False
