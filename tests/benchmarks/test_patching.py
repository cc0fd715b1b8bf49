from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("TQDM_DISABLE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")  # what the script sets is undone afterwards
    names = ("setting", "sides", "sweeps", "timing", "memory", "report")
    modules = {name: importlib.import_module(f"compare.{name}") for name in names}
    return SimpleNamespace(patching=importlib.import_module("patching"), **modules)


def run(bench: SimpleNamespace, path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    arguments = ["--shape", "toy", "--repeats", "1", "--no-memory", "--json", str(path), *options]
    code = bench.patching.main(arguments)
    return code, json.loads(path.read_text())


def test_report_has_the_promised_keys(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = run(bench, tmp_path / "out.json", "--peers", "hooks", "--everything")
    assert code == 0
    for dotted in bench.patching.HEADLINES:
        assert dotted in report
    for sweep in (report["resid"], report["heads"], *report["workload_b"].values()):
        assert sweep["ratio_hooks"] > 0
        assert sweep["ratios"]["hooks"]["min"] <= sweep["ratio_hooks"] <= sweep["ratios"]["hooks"]["max"]
        assert 0 < sweep["tolerance"] <= 1e-5
        assert sweep["max_abs_diff"] <= sweep["tolerance"] < sweep["spread_of_cells"]
    assert report["overhead"]["forward"] > 0
    assert report["overhead.capture"] == report["overhead"]["capture"] > 0
    assert report["max_abs_diff"] == max(
        s["max_abs_diff"] for s in (report["resid"], report["heads"], *report["workload_b"].values())
    )
    shown = capsys.readouterr().out
    assert "plain hooks" in shown
    assert "all tokens differ" in shown
    assert "DISAGREE" not in shown


def wrong_by(bench: SimpleNamespace, error: float) -> Any:
    class Wrong(bench.sides.Hooks):  # type: ignore[misc, name-defined]
        def run(self, sweep: str, workload: Any, cells: Any) -> torch.Tensor:
            found: torch.Tensor = super().run(sweep, workload, cells)
            found[-1] += error
            return found

    return Wrong


def test_a_side_that_disagrees_has_no_ratio_and_fails(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.sides.SIDES, "hooks", wrong_by(bench, 1e-4))
    code, report = run(bench, tmp_path / "out.json", "--peers", "hooks")
    assert code == 1
    assert report["resid"]["ratio_hooks"] is None
    assert report["heads"]["ratio_hooks"] is None
    assert "hooks" not in report["resid"]["ratios"]
    assert any("hooks" in problem for problem in report["disagreements"])


def test_a_result_that_is_no_number_disagrees(bench: SimpleNamespace) -> None:
    shape = bench.setting.SHAPES["toy"]
    sides = {"ours": bench.sides.Ours(shape), "hooks": wrong_by(bench, float("nan"))(shape)}
    work = bench.setting.workload("one_token", shape)
    found = bench.sweeps.run_sweep(
        "heads", work, sides, shape, repeats=1, stride=1, bar=None, say=lambda text: None
    )
    assert found["ratio_hooks"] is None
    assert found["max_abs_diff"] == float("inf")


def test_a_peer_that_is_not_installed_is_left_out_with_the_reason(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.sides.PACKAGES, "hooks", "no_such_package_anywhere")
    code, report = run(bench, tmp_path / "out.json", "--peers", "hooks")
    assert code == 0
    assert "extra" in report["missing"]["hooks"]
    assert report["resid.ratio_transformerlens"] is None


def test_peers_on_some_cells_are_compared_with_the_same_cells(bench: SimpleNamespace) -> None:
    shape = bench.setting.SHAPES["toy"]
    sides = {name: bench.sides.SIDES[name](shape) for name in ("ours", "hooks")}
    work = bench.setting.workload("all_tokens", shape)
    for sweep in ("resid", "heads"):
        found = bench.sweeps.run_sweep(
            sweep, work, sides, shape, repeats=1, stride=5, bar=1e9, say=lambda text: None
        )
        assert found["ratio_hooks"] is not None
        assert found["met"] is None  # the bar is against a peer that did not run
    cells = bench.sides.cells_of("heads", shape, 5)
    assert cells == [(0, 0), (1, 1), (2, 2)]
    whole = sides["ours"].run("heads", work, bench.sides.cells_of("heads", shape))
    assert float((whole[::5] - whole[1::5][: len(cells)]).abs().max()) > 1e-4  # cells tell apart


def test_workloads_differ_where_they_say(bench: SimpleNamespace) -> None:
    shape = bench.setting.SHAPES["toy"]
    one = bench.setting.workload("one_token", shape)
    assert (one.clean != one.corrupt).any(0).nonzero().flatten().tolist() == [5]
    assert bool((one.clean != one.corrupt)[:, 5].all())
    every = bench.setting.workload("all_tokens", shape)
    assert bool((every.clean != every.corrupt).all())
    assert bool((one.answers[:, 0] != one.answers[:, 1]).all())
    assert int(torch.stack((one.clean, every.corrupt)).max()) < shape.vocab_size - 1
    first, second = (bench.setting.random_module(shape).state_dict() for _ in range(2))
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_sides_take_turns_and_ratios_pair_repeats(bench: SimpleNamespace) -> None:
    order: list[str] = []

    def side(name: str) -> Any:
        def run() -> torch.Tensor:
            order.append(name)
            return torch.zeros(1)

        return run

    samples = bench.timing.in_turn({"a": side("a"), "b": side("b")}, 3, {"b": 1000.0})
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert len(samples["a"]) == len(samples["b"]) == 3
    assert min(s.wall for s in samples["b"]) > 0
    ratio = bench.timing.Ratio.of([10.0, 40.0, 30.0], [1.0, 2.0, 1.0])
    assert (ratio.median, ratio.smallest, ratio.largest) == (20.0, 10.0, 30.0)


@pytest.mark.slow
def test_peak_memory_is_of_its_own_process(bench: SimpleNamespace) -> None:
    held = torch.ones(300 << 18)  # 300 MB here must not be seen there
    found = bench.memory.peak_of("hooks", "toy", 1)
    assert found["peak_mb"] == pytest.approx(found["opened_mb"] + found["sweep_mb"])
    assert 50 < found["peak_mb"] < bench.memory._resident_peak() - 100
    assert bool(held[0] == 1)
    assert "reason" in bench.memory.peak_of("hooks", "no-such-shape", 1)


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["transformerlens", "nnsight"])
def test_the_peers_agree(bench: SimpleNamespace, tmp_path: Path, peer: str) -> None:
    pytest.importorskip(bench.sides.PACKAGES[peer])
    code, report = run(bench, tmp_path / "out.json", "--peers", peer, "--everything")
    assert code == 0
    assert report["resid"][f"ratio_{peer}"] > 0
    assert report["heads"][f"ratio_{peer}"] > 0
