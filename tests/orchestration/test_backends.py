"""Which backends there are, and what is refused before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import toy_family as toy
from other_backends import Altered, offer

from mech_interp.backends import registry
from mech_interp.config.spec import Spec
from mech_interp.errors import CapabilityError, InputError, MissingExtraError
from mech_interp.orchestration import backends, preflight, run_spec
from mech_interp.orchestration.backends import Place
from mech_interp.orchestration.prepare import prepare
from mech_interp.orchestration.session import Session

ABSENT = dataclasses.replace(registry.BACKENDS["nnsight"], package="no_such_package_here")


def spec(family: str = "activation_capture", **changes: Any) -> Spec:
    parameters = {"prompts": ["The capital of France is", "The capital of Peru is"], "layers": [0]}
    given = {"name": "try", "family": family, "model": "tinyworld", "device": "cpu", "parameters": parameters}
    return Spec.from_dict({**given, **changes})


def key(home: Path, **changes: Any) -> str:
    session = Session(toy.settings(home))
    try:
        return prepare(spec(**changes), session).key
    finally:
        session.close()


def test_those_of_mech_and_those_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "mine")
    assert backends.names() == [*registry.BACKENDS, "mine"]
    assert backends.backend("mine").summary == "made up"
    with pytest.raises(InputError, match="no backend 'mime'") as raised:
        backends.backend("mime")
    assert "mine" in raised.value.hint


def test_a_package_cannot_take_the_place_of_a_built_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "hooks")
    assert backends.backend("hooks").summary == registry.BACKENDS["hooks"].summary


def test_a_missing_package_is_refused_in_preflight_and_run(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setitem(registry.BACKENDS, "nnsight", ABSENT)
    wanted = spec(backend="nnsight")
    found = {check.name: check for check in preflight(wanted, toy.settings(home))}
    assert found["backend"].status == "failed"
    assert found["backend"].hint.endswith("pip install 'mech-interpretability[nnsight]'")
    assert found["architecture"].status == "skipped"
    with pytest.raises(MissingExtraError):
        run_spec(wanted, toy.settings(home))
    assert not home.exists()


def test_a_capability_that_is_missing_names_the_backends_that_have_it(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    opened = offer(monkeypatch, "blind", capabilities=frozenset({"weights"}))
    with pytest.raises(CapabilityError, match="needs capture, which the backend blind cannot do") as raised:
        run_spec(spec(backend="blind"), toy.settings(home))
    assert raised.value.hint.startswith("Use backend: huggingface or hooks")
    assert not opened


def test_a_model_that_can_less_than_its_backend_is_refused_before_computing(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    def lame(model: Any) -> Any:
        made = Altered(model, "lame")
        made.info = dataclasses.replace(made.info, capabilities=frozenset(), notice="It is lame.")
        return made

    offer(monkeypatch, "lame", lame)
    with pytest.raises(CapabilityError, match="lame cannot do for tinyworld") as raised:
        run_spec(spec(backend="lame"), toy.settings(home))
    assert raised.value.hint == "It is lame."


def test_the_backend_is_part_of_the_key_and_the_same_spec_runs_on_it(home: Path) -> None:
    done = {name: run_spec(spec(backend=name), toy.settings(home)) for name in ("huggingface", "hooks")}
    assert done["huggingface"].key != done["hooks"].key
    assert done["huggingface"].run_id != done["hooks"].run_id
    metrics = [json.loads((one.folder / "metrics.json").read_text()) for one in done.values() if one.folder]
    assert metrics[0].keys() == metrics[1].keys()
    for name, metric in metrics[0].items():
        assert metrics[1][name]["value"] == pytest.approx(metric["value"], rel=1e-4), name
    receipt = json.loads((done["hooks"].folder / "receipt.json").read_text())  # type: ignore[operator]
    assert receipt["backend"] == "hooks"
    again = run_spec(spec(backend="hooks"), toy.settings(home))
    assert (again.run_id, again.how) == (done["hooks"].run_id, "stored")


def test_one_way_of_attention_is_one_key(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    offer(monkeypatch, "plain", attention=("eager",))
    assert key(home, backend="plain", attention="sdpa") == key(home, backend="plain", attention="eager")
    assert key(home, attention="sdpa") != key(home, attention="eager")


@pytest.mark.parametrize(
    ("offered", "asked", "words"),
    [
        ({"dtypes": ("float32",)}, {"dtype": "float64"}, "does not compute in float64"),
        ({"devices": ("mps",)}, {"device": "cpu"}, "does not run on cpu"),
    ],
)
def test_a_place_that_a_backend_cannot_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, home: Path, offered: dict[str, Any], asked: dict[str, Any], words: str
) -> None:
    opened = offer(monkeypatch, "narrow", **offered)
    with pytest.raises(CapabilityError, match=words):
        run_spec(spec(backend="narrow", **asked), toy.settings(home))
    assert not opened


def test_a_session_closes_the_model_that_it_replaces_but_not_one_that_was_lent(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    opened = offer(monkeypatch, "mine")
    session = Session(toy.settings(home))
    first = session.load(prepare(spec(backend="mine"), session))
    assert session.load(prepare(spec(backend="mine"), session)) is first
    assert not first.closed  # type: ignore[attr-defined]
    session.load(prepare(spec(backend="mine", dtype="float64"), session))
    assert [one.closed for one in opened] == [True, False]
    lent = Altered(opened[1].model, "lent")
    session.adopt(lent)  # type: ignore[arg-type]
    assert opened[1].closed
    session.close()
    assert not lent.closed


@pytest.mark.parametrize(
    ("family", "parameters", "words"),
    [
        ("circuit_patching", {"task": "facts", "n": 8, "kind": "rot_q"}, "no rotary embedding"),
        ("circuit_patching", {"task": "facts", "n": 8, "sites": ["router_logits.0"]}, "mixture of experts"),
        ("activation_capture", {"prompts": ["a"], "sites": ["mlp_pre_linear"]}, "is not gated"),
        ("superposition", {"weights": ["mlp_gate"]}, "is not gated"),
    ],
)
def test_a_site_that_the_architecture_lacks_is_refused_with_the_reason(
    home: Path, family: str, parameters: dict[str, Any], words: str
) -> None:
    wanted = spec(family, parameters=parameters)
    found = {check.name: check for check in preflight(wanted, toy.settings(home))}
    assert found["sites and answers"].status == "failed"
    assert words in found["sites and answers"].detail
    with pytest.raises(InputError, match=words):
        run_spec(wanted, toy.settings(home))
    assert not home.exists()


def test_a_family_that_needs_heads_is_refused_where_the_model_runs_at_block_level(tmp_path: Path) -> None:
    folder = toy.checkpoint(tmp_path / "codegen")
    (folder / "config.json").write_text(json.dumps({**toy.CONFIG, "model_type": "codegen"}))
    wanted = spec("superposition", model=str(folder), parameters={})
    with pytest.raises(CapabilityError, match=r"needs weights, which .* offers on no backend"):
        run_spec(wanted, toy.settings(tmp_path / "runs"))


def test_the_run_key_names_the_attention_that_runs(tmp_path: Path) -> None:
    """Gemma 2 caps its scores, which the library cannot fuse: a spec that asks for sdpa is keyed as eager."""
    from mech_interp.backends.huggingface.layouts import tiny_module
    from mech_interp.orchestration.models import find_model
    from mech_interp.orchestration.prepare import _fused_or_not

    for name, attention in (("gemma2", "eager"), ("llama", "sdpa")):
        tiny_module(name).save_pretrained(tmp_path / name)
        found = find_model(str(tmp_path / name))
        place = Place("cpu", "float32", "sdpa")
        assert _fused_or_not(place, found).attention == attention
