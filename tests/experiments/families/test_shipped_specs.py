"""The ready specs: they read, their parameters suit their families, and the page lists them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mech_interp.config import Spec, expand, read_specs, resolve_parameters, spec_files
from mech_interp.errors import CapabilityError
from mech_interp.experiments import ModelFacts, get, registry

ROOT = Path(__file__).resolve().parents[3]
FILES = spec_files(ROOT / "experiments")
CHECKPOINTS = ROOT / "src" / "mech_interp" / "bundled" / "checkpoints"
BUNDLED = ("tinyworld", "tinyworld-llama", "tinyworld-chat")
HUB = (
    "gpt2",
    "EleutherAI/pythia-70m",
    "EleutherAI/pythia-160m",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen2.5-1.5B",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen3-0.6B",
    "meta-llama/Llama-3.2-1B",
    "google/gemma-2-2b",
)


@pytest.fixture(scope="module")
def specs() -> dict[str, Spec]:
    return {spec.name: spec for file in FILES for spec in read_specs(file)}


def test_every_file_holds_the_spec_of_its_name(specs: dict[str, Spec]) -> None:
    assert sorted(specs) == sorted(file.stem for file in FILES)
    for spec in specs.values():
        assert spec.description, spec.name
        assert ("bundled" if spec.model in BUNDLED else "hub") in spec.tags, spec.name


def test_parameters_suit_their_families(specs: dict[str, Spec]) -> None:
    for spec in specs.values():
        for child in expand(spec):
            resolve_parameters(child, get(child.family).Params)


def test_every_family_has_a_spec_for_a_bundled_model_and_every_model_has_one(specs: dict[str, Spec]) -> None:
    assert {spec.family for spec in specs.values() if spec.model == "tinyworld"} == set(registry.built_in())
    assert {spec.family for spec in specs.values() if spec.model == "tinyworld-llama"} == set(
        registry.built_in()
    )
    assert {spec.model for spec in specs.values()} == {*BUNDLED, *HUB}
    assert "circuit-patching-smoke" in specs
    assert "logit-lens-facts-tinyworld" in specs


@pytest.mark.parametrize("model", BUNDLED)
def test_specs_of_bundled_models_pass_their_checks(model: str, specs: dict[str, Spec]) -> None:
    folder = CHECKPOINTS / model
    if not (folder / "config.json").is_file():
        pytest.skip(f"the bundled checkpoint {model} is not there yet")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    facts = ModelFacts.from_config(model, json.loads((folder / "config.json").read_text()))
    # Tasks that draw from the whole vocabulary take seconds and have tests of their own.
    slow = ("induction", "greater_than")
    for spec in specs.values():
        if spec.model == model and spec.parameters.get("task") not in slow:
            for child in expand(spec)[:2]:
                family: Any = get(child.family)
                family.check(resolve_parameters(child, family.Params), facts, tokenizer)


def test_architectures_without_a_layout_are_refused(tmp_path: Path) -> None:
    from mech_interp.backends.huggingface.checkpoint import open_folder
    from mech_interp.backends.huggingface.layouts import supported

    for kind in {"gpt_neox", "qwen2", "qwen3", "gemma2"} - set(supported()):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(CapabilityError, match=f"architecture '{kind}'"):
            open_folder(tmp_path, name="model", source="model")


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "experiment_docs.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
