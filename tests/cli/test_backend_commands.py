"""`mech list-hf-architectures`, `mech parity`, `mech validate --smoke`, `--backend` of the demo's runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from other_backends import Altered, offer

from mech_interp.backends import registry
from mech_interp.backends.huggingface.layouts import supported
from mech_interp.orchestration import smoke as smoke_checks
from mech_interp.orchestration.demo_runs import demo_specs, open_for_demo
from mech_interp.sites import KINDS, Site

FAMILY = ["--families", "superposition", "--device", "cpu"]


def test_architectures_are_listed_from_the_layouts(cli: Any) -> None:
    done = cli("list-hf-architectures", "--format", "json")
    rows = {row["model_type"]: row for row in done.json["architectures"]}
    assert tuple(rows) == supported()
    assert "rot_q" in rows["llama"]["sites"]
    assert rows["gpt2"]["missing"]["rot_q"] == "GPT-2 has no rotary embedding; use q"
    assert rows["smollm3"]["only_in_some_layers"] == ["rot_k", "rot_q"]
    assert all(set(row["sites"]) | set(row["missing"]) == set(KINDS) for row in rows.values())
    assert done.err == ""
    quiet = cli("list-hf-architectures", "--format", "quiet")
    assert quiet.out.split() == list(supported())


def test_one_architecture_is_shown_with_reasons(cli: Any) -> None:
    done = cli("list-hf-architectures", "mixtral")
    assert done.code == 0
    assert "router_logits" in done.out
    assert "mixture of experts" in done.out
    assert cli("list-hf-architectures", "Mixtral").out == done.out
    wrong = cli("list-hf-architectures", "mixtrall")
    assert wrong.code == 2
    assert "mixtral" in wrong.err


def test_parity_prints_a_table_and_keeps_the_report(cli: Any) -> None:
    done = cli("parity", "tinyworld", "--backends", "hooks", *FAMILY, "--home", "runs", "-o", "report.json")
    assert done.code == 0, done.err
    assert "✓ hooks agrees" in done.out
    for line in ("resid_pre", "superposition", "KL (nats)", "greedy continuations"):
        assert line in done.out
    (kept,) = Path("runs/parity").glob("*.json")
    assert json.loads(kept.read_text()) == json.loads(Path("report.json").read_text())
    assert str(kept) in done.out


def test_parity_exits_with_eight_and_says_where_it_differs(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "off", lambda model: Altered(model, "off", Site("mlp_post", 2), 1.5))
    done = cli("parity", "tinyworld", "--backends", "off", *FAMILY, "--home", "runs")
    assert done.code == 8
    assert "✗ off misses 1 bound" in done.out
    assert "mlp_post differs by 0.5" in done.out
    told = cli("parity", "tinyworld", "--backends", "off", *FAMILY, "--home", "runs", "--format", "json")
    assert told.code == 8
    (one,) = told.json["report"]["backends"]
    assert one["sites"]["mlp_post"] == {"gap": pytest.approx(0.5), "layer": 2, "n": 4}


def test_parity_with_a_backend_that_is_not_installed(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {
        name: dataclasses.replace(one, package="no_such_package_here")
        for name, one in registry.BACKENDS.items()
        if one.package
    }
    for name, one in absent.items():
        monkeypatch.setitem(registry.BACKENDS, name, one)
    named = cli("parity", "tinyworld", "--backends", "nnsight")
    assert named.code == 5
    assert "pip install 'mech-interpretability[nnsight]'" in named.err
    left_out = cli("parity", "tinyworld", *FAMILY, "--home", "runs")
    assert left_out.code == 0
    assert "mlx is not installed: pip install 'mech-interpretability[mlx]'" in left_out.out.replace("\n", " ")


def test_smoke_checks_everything_and_passes(cli: Any) -> None:
    done = cli("validate", "--smoke", "--format", "json")
    assert done.code == 0, done.out
    assert done.json["ok"]
    assert done.json["seconds"] < 10
    names = [check["name"] for check in done.json["checks"]]
    assert names == ["registry", "backends", "device", "model", "logits", "hooks", "interventions", "store"]
    assert f"{len(KINDS)} kinds" in next(c["detail"] for c in done.json["checks"] if c["name"] == "hooks")
    assert not Path("artifacts").exists()


def test_smoke_stops_at_the_first_check_that_fails(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke_checks, "PROMPT", "The capital of Peru is")
    done = cli("validate", "--smoke")
    assert done.code == 8
    assert "✗ logits" in done.out
    assert "hooks" not in done.out.partition("✗ logits")[2].partition("force-reinstall")[2]
    assert "force-reinstall" in done.out


def test_smoke_notices_a_shape_that_is_wrong(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS["mlp_post"]
    monkeypatch.setitem(KINDS, "mlp_post", dataclasses.replace(kind, axes=("position", "d_model")))
    done = cli("validate", "--smoke", "--format", "json")
    assert done.code == 8
    last = done.json["checks"][-1]
    assert (last["name"], last["status"]) == ("hooks", "failed")
    assert "hook_post" in last["detail"]


def test_smoke_is_given_alone(cli: Any) -> None:
    assert cli("validate", "--smoke", "--with-models").code == 2


def test_the_demo_runs_on_a_backend_and_refuses_one_that_cannot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import toy_family

    from mech_interp.errors import CapabilityError

    assert {spec.backend for spec in demo_specs("tinyworld", backend="hooks")} == {"hooks"}
    settings = toy_family.settings(tmp_path / "runs")
    model = open_for_demo("tinyworld", settings, backend="hooks", device="cpu")
    assert model.info.backend == "hooks"
    opened = offer(monkeypatch, "still", capabilities=frozenset({"capture", "weights", "heads"}))
    with pytest.raises(CapabilityError, match="circuit_patching needs intervene, rows"):
        open_for_demo("tinyworld", settings, backend="still")
    assert not opened


@pytest.mark.full
@pytest.mark.parametrize("backend", [name for name in registry.BACKENDS if name != registry.DEFAULT])
def test_the_demo_finds_the_same_on_every_backend(cli: Any, backend: str) -> None:
    if registry.BACKENDS[backend].package:
        pytest.importorskip(registry.BACKENDS[backend].package)
    found = []
    for name in (registry.DEFAULT, backend):
        done = cli("demo", "--backend", name, "--device", "cpu", "--format", "json")
        assert done.code == 0, done.err
        found.append(done.json["findings"])
    for ours, theirs in zip(*found, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["finding"] == theirs["finding"]
