"""Sizes from real configs, and refusals before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mech_interp.errors import InputError, ModelError
from mech_interp.experiments.facts import ModelFacts

CONFIGS = Path(__file__).resolve().parents[2] / "src/mech_interp/bundled/checkpoints"
GPT2 = {"model_type": "gpt2", "n_layer": 4, "n_head": 8, "n_embd": 128, "n_inner": None, "n_positions": 64}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}


def facts(config: dict, **more: object) -> ModelFacts:
    return ModelFacts.from_config("toy", {**config, "vocab_size": 100, **more})


def test_both_dialects_are_read():
    assert facts(GPT2) == ModelFacts("toy", "gpt2", 4, 8, 8, 128, 16, 512, 100, 64)
    assert facts(LLAMA) == ModelFacts("toy", "llama", 2, 8, 2, 64, 16, 96, 100, 128)
    outer = {"model_type": "two_part", "text_config": {**LLAMA, "vocab_size": 100}}
    assert ModelFacts.from_config("toy", outer).n_layers == 2


def test_real_configs(real_checkpoints):
    found = sorted(real_checkpoints.glob("*/config.json"))
    models = [path for path in found if "vocab_size" in json.loads(path.read_text())]
    assert models
    for path in models:
        from transformers import AutoConfig

        ours = ModelFacts.from_config(path.parent.name, json.loads(path.read_text()))
        theirs = AutoConfig.from_pretrained(path.parent)
        assert (ours.n_layers, ours.n_heads) == (theirs.num_hidden_layers, theirs.num_attention_heads)
        assert (ours.d_model, ours.vocabulary) == (theirs.hidden_size, theirs.vocab_size)
        assert ours.n_kv_heads == (getattr(theirs, "num_key_value_heads", None) or theirs.num_attention_heads)


@pytest.mark.parametrize("missing", ["n_layer", "n_head", "n_embd", "vocab_size"])
def test_a_config_without_sizes_is_refused(missing):
    config = {key: value for key, value in {**GPT2, "vocab_size": 9}.items() if key != missing}
    with pytest.raises(ModelError, match="does not state"):
        ModelFacts.from_config("toy", config)


def test_layers_and_sites():
    toy = facts(LLAMA)
    assert [toy.check_layer(layer) for layer in (0, 1, -1, -2)] == [0, 1, 1, 0]
    assert str(toy.check_site("z.1.7")) == "blocks.1.attn.hook_z[7]"
    assert str(toy.check_site("logits")) == "unembed.hook_out"
    for layer in (2, -3):
        with pytest.raises(InputError, match=r"layer is -?\d, but toy has 2 layers"):
            toy.check_layer(layer)
    for site, said in (
        ("z.2", "2 layers"),
        ("z.1.8", "8 heads"),
        ("k.1.2", "2 heads"),
        ("zz.1", "names no site"),
    ):
        with pytest.raises(InputError, match=said):
            toy.check_site(site)
