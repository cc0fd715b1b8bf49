"""The table of built-in backends, and loading by it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mech_interp import load_model
from mech_interp.backends import registry
from mech_interp.backends.protocol import Capability, InstrumentedModel
from mech_interp.backends.registry import BACKENDS, DEFAULT, built_in
from mech_interp.errors import InputError, MissingExtraError

ROOT = Path(__file__).parents[2]
ABSENT = dataclasses.replace(BACKENDS["nnsight"], package="no_such_package_here.core")


def test_capabilities_are_those_of_the_protocol_and_the_default_has_all() -> None:
    known = {str(one) for one in Capability}
    assert {capability for one in BACKENDS.values() for capability in one.capabilities} == known
    assert BACKENDS[DEFAULT].capabilities == known
    assert next(iter(BACKENDS)) == DEFAULT


def test_every_extra_is_one_of_the_package() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {one.extra for one in BACKENDS.values()} - {""} <= set(extras)
    for one in BACKENDS.values():
        assert bool(one.extra) == bool(one.package)


def test_mlx_reads_what_the_table_says() -> None:
    from mech_interp.backends.mlx.facts import READERS

    assert set(BACKENDS["mlx"].models) == set(READERS)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_model_opens_on_it_with_the_capabilities_of_the_table(name: str) -> None:
    if BACKENDS[name].package:
        pytest.importorskip(BACKENDS[name].package)
    model = load_model("tinyworld-llama", backend=name, device="cpu")
    try:
        assert isinstance(model, InstrumentedModel)
        assert model.info.backend == name
        assert {str(one) for one in model.info.capabilities} == BACKENDS[name].capabilities
        assert model.info.attention in BACKENDS[name].attention
        assert model.info.weights_hash == load_model("tinyworld-llama", device="cpu").info.weights_hash
    finally:
        if name != DEFAULT:
            model.close()  # type: ignore[attr-defined]


def test_a_missing_package_is_one_sentence_and_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BACKENDS, "nnsight", ABSENT)
    with pytest.raises(MissingExtraError) as raised:
        load_model("/no/such/folder", backend="nnsight")
    assert "'no_such_package_here', which is not installed" in raised.value.message
    assert raised.value.hint == "Install it with: pip install 'mech-interpretability[nnsight]'"
    assert not ABSENT.installed


def test_an_unknown_backend_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="no backend 'nnsigt'") as raised:
        load_model("tinyworld", backend="nnsigt")
    assert "nnsight" in raised.value.hint
    with pytest.raises(InputError) as raised:
        built_in("zzz", others=["mine"])
    assert raised.value.hint.endswith("mlx, mine.")


def test_attention_is_what_the_backend_runs() -> None:
    assert BACKENDS["transformerlens"].attention_for("sdpa") == "eager"
    assert BACKENDS["hooks"].attention_for("eager") == "eager"


def test_the_table_imports_no_backend() -> None:
    import subprocess
    import sys

    code = "import sys, json; from mech_interp.backends import registry; [b.installed for b in "
    code += "registry.BACKENDS.values()]; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformer_lens", "nnsight", "mlx.core"} & set(json.loads(done.stdout))
