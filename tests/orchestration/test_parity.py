"""`parity`: backends that agree pass, one that is subtly wrong does not, and the report says where."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import toy_family as toy
from other_backends import Altered, offer

from mech_interp import bundled
from mech_interp.backends import registry
from mech_interp.errors import CapabilityError, InputError, MissingExtraError
from mech_interp.experiments import registry as families
from mech_interp.experiments.result import Metric
from mech_interp.orchestration import parity_specs
from mech_interp.orchestration.parity import choose_backends, metric_gaps, parity
from mech_interp.orchestration.parity_record import is_intact, record, store
from mech_interp.orchestration.parity_result import ParityReport
from mech_interp.orchestration.session import Session
from mech_interp.sites import Site

QUICK = ["logit_lens", "direct_logit_attribution"]


@pytest.fixture
def session(home: Path) -> Any:
    made = Session(toy.settings(home))
    yield made
    made.close()


def measured(session: Session, *named: str, families: list[str] = QUICK, **options: Any) -> ParityReport:
    return parity("tinyworld", session, named=named, families=families, device="cpu", **options)


def test_hooks_agree_with_the_default_engine(session: Session) -> None:
    """The fast subset of the matrix: every site and two families, on the backend that is always there."""
    report = measured(session, "hooks")
    assert report.holds, report.backends[0].misses
    (hooks,) = report.backends
    assert hooks.sites is not None
    assert {one.kind for one in hooks.sites.sites} == set(families_sites())
    assert {one.family for one in hooks.metrics} == set(QUICK)
    assert max(one.gap for one in hooks.metrics) <= 1e-4
    assert hooks.sites.kl <= 1e-6
    assert not hooks.refused
    assert not hooks.sites.not_shown
    assert min(report.prompts) == 1 < max(report.prompts)


def families_sites() -> list[str]:
    from mech_interp.backends import architectures

    found = architectures.of_config("it", json.loads((bundled.path("tinyworld") / "config.json").read_text()))
    assert found is not None
    return list(found.site_kinds)


def test_a_site_that_is_off_is_named_with_what_follows_from_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = offer(monkeypatch, "off", lambda model: Altered(model, "off", Site("resid_post", 1), 1.01))
    report = measured(session, "off", families=["logit_lens"])
    (off,) = report.backends
    assert not report.holds
    assert any(miss.startswith("resid_post differs by 0.01") for miss in off.misses)
    assert not any(miss.startswith("mlp_out") for miss in off.misses)
    assert off.sites is not None
    assert next(one.layer for one in off.sites.sites if one.kind == "resid_post") == 1
    assert opened[0].closed


def test_a_metric_that_is_off_is_named(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that a method asks for are wrong, while every captured site is right."""

    class WrongWeights(Altered):
        def weights(self, kind: str, layer: int | None = None, head: int | None = None) -> Any:
            found = self.model.weights(kind, layer, head).clone()
            return found * (1 + (kind == "W_E")) + (kind == "W_E")

    offer(monkeypatch, "off", lambda model: WrongWeights(model, "off"))
    (off,) = measured(session, "off", families=["superposition"]).backends
    assert off.sites is not None
    assert max(one.gap for one in off.sites.sites) == 0
    assert off.misses
    assert all(miss.startswith("superposition: ") for miss in off.misses)


def test_a_family_that_breaks_off_is_a_miss(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lens finds out itself that an unembedding is wrong: no number comes out, and that is no excuse."""

    class WrongLens(Altered):
        def unembed(self, resid: Any, token_ids: Any = None) -> Any:
            return self.model.unembed(resid, token_ids) * 1.001

    offer(monkeypatch, "off", lambda model: WrongLens(model, "off"))
    (off,) = measured(session, "off", families=["logit_lens"]).backends
    assert [miss.partition(":")[0] for miss in off.misses] == ["logit_lens broke off"]


def test_other_continuations_are_a_miss(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    class Babbles(Altered):
        def generate(self, prompts: Any, **options: Any) -> Any:
            return self.model.generate(prompts, **{**options, "temperature": 5.0})

    offer(monkeypatch, "babbling", lambda model: Babbles(model, "babbling"))
    (one,) = measured(session, "babbling", families=["superposition"]).backends
    assert one.misses == ["greedy continuations differ"]


def test_a_backend_that_cannot_open_the_model_is_told_not_raised(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Any) -> None:
        raise CapabilityError("It will not have this model.")

    offer(monkeypatch, "fussy", check=refuse)
    report = measured(session, "fussy", "hooks", families=["superposition"])
    assert [one.holds for one in report.backends] == [False, True]
    assert report.backends[0].misses == ["It will not have this model."]
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["backends"][0]["holds"] is False


def test_a_family_that_a_backend_lacks_is_said(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "weightless", capabilities=frozenset({"capture", "generate"}))
    (one,) = measured(session, "weightless").backends
    assert "needs heads, weights" in one.refused["direct_logit_attribution"]
    assert {gap.family for gap in one.metrics} == {"logit_lens"}
    assert one.holds


def test_named_backends_must_be_installed_others_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    absent = dataclasses.replace(registry.BACKENDS["nnsight"], package="no_such_package_here")
    monkeypatch.setitem(registry.BACKENDS, "nnsight", absent)
    chosen, missing = choose_backends(None)
    assert "nnsight" not in chosen
    assert "hooks" in chosen
    assert missing["nnsight"] == "pip install 'mech-interpretability[nnsight]'"
    with pytest.raises(MissingExtraError):
        choose_backends(["nnsight"])
    with pytest.raises(InputError, match="no backend 'hoks'"):
        choose_backends(["hoks"])
    with pytest.raises(InputError, match="another one is needed"):
        choose_backends(["huggingface"])


def metric(value: float | None, **more: Any) -> Metric:
    return Metric(value=value, n=3, reason="" if value is not None else "none", **more)


def test_metrics_are_compared_relative_to_their_size_or_a_hundredth_of_the_largest() -> None:
    wanted = {
        "large": metric(10.0),
        "small": metric(1e-6),
        "gone": metric(None),
        "other": metric(2.0, unit="x"),
    }
    found = {
        "large": metric(10.1),
        "small": metric(2e-6),
        "gone": metric(None),
        "other": metric(None, unit="x"),
    }
    gaps = {one.metric: one.gap for one in metric_gaps("family", wanted, found)}
    assert gaps["large"] == pytest.approx(0.01)
    assert gaps["small"] == pytest.approx(1e-6 / 0.1)
    assert gaps["gone"] == 0
    logits = {"effect": metric(1e-3, unit="logits"), "share": metric(1e-3, unit="fraction")}
    off = {"effect": metric(2e-3, unit="logits"), "share": metric(2e-3, unit="fraction")}
    rounded = {one.metric: one.gap for one in metric_gaps("family", logits, off, logit=20.0)}
    assert rounded == {"effect": pytest.approx(1e-3 / 0.2), "share": pytest.approx(1.0)}
    assert gaps["other"] == math.inf
    missing = metric_gaps("family", wanted, {"more": metric(1.0)})
    assert {one.metric for one in missing if one.gap == math.inf} == {*wanted, "more"}


def test_the_record_is_whole_and_shows_when_it_was_changed(session: Session, tmp_path: Path) -> None:
    document = record(measured(session, "hooks", families=["superposition"]), session)
    path = store(document, tmp_path / "runs")
    assert path.parent == tmp_path / "runs" / "parity"
    assert path.name.startswith("tinyworld-")
    read = json.loads(path.read_text())
    assert is_intact(read)
    assert read["report"]["model"]["weights_sha256"] == session.find("tinyworld", None).weights_hash
    assert {"packages", "python"} <= set(read["environment"])
    read["report"]["backends"][0]["kl"] = 0.5
    assert not is_intact(read)
    from mech_interp.storage import Store

    kept = Store(tmp_path / "runs")  # the store is not disturbed by the folder
    assert kept.runs() == []
    kept.close()


def test_every_family_that_another_backend_can_run_has_a_small_run() -> None:
    elsewhere = [one.capabilities for name, one in registry.BACKENDS.items() if name != registry.DEFAULT]
    comparable = {
        name
        for name in families.built_in()
        if any(set(map(str, families.get(name).needs)) <= able for able in elsewhere)
    }
    assert set(parity_specs.parameters(None)) == comparable - {"toy"}


def test_a_model_without_a_tokenizer_is_asked_by_ids() -> None:
    config = json.loads((bundled.path("tinyworld") / "config.json").read_text())
    prompts = parity_specs.probe_prompts(None, config)
    assert [len(ids) for ids in prompts] == list(parity_specs.LENGTHS)
    assert all(0 <= i < config["vocab_size"] for ids in prompts for i in ids)


def test_an_unknown_family_is_refused(session: Session) -> None:
    with pytest.raises(InputError, match="runs no family 'logit_lense'"):
        measured(session, "hooks", families=["logit_lense"])


@pytest.mark.full
@pytest.mark.parametrize("model", ["tinyworld", "tinyworld-llama", "tinyworld-chat"])
@pytest.mark.parametrize("backend", [name for name in registry.BACKENDS if name != registry.DEFAULT])
def test_the_whole_matrix_on_bundled_models(session: Session, model: str, backend: str) -> None:
    if registry.BACKENDS[backend].package:
        pytest.importorskip(registry.BACKENDS[backend].package)
    report = parity(model, session, named=[backend], device="cpu")
    assert report.holds, report.backends[0].misses
    assert set(report.families) == set(parity_specs.parameters(None)), report.refused
    assert not report.backends[0].refused


@pytest.mark.full
@pytest.mark.parametrize("backend", [name for name in registry.BACKENDS if name != registry.DEFAULT])
def test_the_whole_matrix_on_real_checkpoints(session: Session, backend: str, real_checkpoints: Path) -> None:
    if registry.BACKENDS[backend].package:
        pytest.importorskip(registry.BACKENDS[backend].package)
    compared = 0
    for folder in sorted(real_checkpoints.iterdir()):
        if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file():
            (one,) = parity(str(folder), session, named=[backend], device="cpu").backends
            if one.sites is None:
                assert "cannot" in one.problem, one.problem
                continue
            assert one.holds, (folder.name, one.misses)
            compared += 1
    assert compared
