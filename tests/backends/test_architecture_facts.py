"""What is known of a model before its weights are read equals what it says once it is open."""

from __future__ import annotations

import pytest

from mech_interp.backends import architectures
from mech_interp.backends.huggingface.layouts import supported, tiny_module
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.registry import BACKENDS
from mech_interp.errors import CapabilityError, ModelError


@pytest.fixture(scope="module")
def every() -> dict[str, architectures.Architecture]:
    return {one.model_type: one for one in architectures.every()}


def test_all_architectures_are_listed(every: dict[str, architectures.Architecture]) -> None:
    assert tuple(every) == supported()


@pytest.mark.parametrize("model_type", supported())
def test_facts_from_a_config_are_those_of_the_opened_model(
    model_type: str, every: dict[str, architectures.Architecture]
) -> None:
    module = tiny_module(model_type)
    info = open_module(module).info
    for facts in (every[model_type], architectures.of_config("it", module.config.to_dict())):
        assert facts is not None
        assert dict(facts.missing_kinds) == dict(info.missing_kinds)
        assert dict(facts.missing_sites) == dict(info.missing_sites)
        assert facts.sizes.n_layers == info.n_layers
        assert (facts.sizes.n_heads, facts.sizes.n_kv_heads) == (info.n_heads, info.n_kv_heads)
        assert facts.sizes.context == info.context


@pytest.mark.parametrize(
    ("model_type", "notes"),
    [
        ("gpt2", {"LayerNorm", "learned positions"}),
        ("gpt_neox", {"parallel blocks", "rotary positions of 4 of 8 features"}),
        ("gptj", {"parallel blocks with one norm"}),
        ("gemma2", {"post-norms", "local and global layers", "score softcap", "logit softcap", "RMSNorm"}),
        ("gemma3_text", {"norms on queries and keys", "two rotary bases"}),
        ("gpt_neo", {"scores not scaled"}),
        ("mixtral", {"mixture of experts", "sliding window", "grouped-query attention"}),
        ("bloom", {"score bias by distance (ALiBi)"}),
        ("smollm3", {"some layers without positions"}),
    ],
)
def test_notes_say_what_is_special(
    model_type: str, notes: set[str], every: dict[str, architectures.Architecture]
) -> None:
    assert notes <= set(every[model_type].notes)
    plain = set(every["llama"].notes)
    assert not plain & (notes - {"RMSNorm", "grouped-query attention"})


def test_a_config_that_describes_no_model_is_refused() -> None:
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 5, "vocab_size": "many"}
    with pytest.raises(ModelError, match="describes no llama model"):
        architectures.of_config("mine", config)


def test_an_architecture_without_a_layout_runs_at_block_level_only() -> None:
    config = {"model_type": "codegen"}
    assert architectures.of_config("mine", config) is None
    for name in BACKENDS:
        refused = architectures.refusal(name, config)
        assert (refused is None) == (name in architectures.BLOCK_LEVEL), name
    with pytest.raises(CapabilityError, match="no layout") as raised:
        architectures.check_runs("transformerlens", "mine", config)
    assert raised.value.hint == "Use backend: huggingface or hooks."


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "nosuch"}, "the library lacks it too"),
        ({"model_type": "codegen", "auto_map": {}}, "code that comes with a checkpoint is never run"),
    ],
)
def test_what_nothing_can_open_is_refused_with_what_can_be(config: dict[str, object], words: str) -> None:
    with pytest.raises(CapabilityError, match=words) as raised:
        architectures.check_runs("huggingface", "mine", config)
    assert "gpt2" in raised.value.hint


def test_what_a_backend_does_not_show_is_known_before_loading() -> None:
    """Hooks cannot reach inside GPT-J's attention: scores are missing there, patterns can only be read."""
    config = tiny_module("gptj").config.to_dict()
    plain = architectures.on_backend("huggingface", "mine", config)
    hooked = architectures.on_backend("hooks", "mine", config)
    assert plain is not None
    assert hooked is not None
    assert "attn_scores" not in plain.missing_kinds
    assert "attn_scores" in hooked.missing_kinds
    assert "pattern" in hooked.capture_only
    assert "pattern" in hooked.site_kinds


def test_mlx_names_what_it_reads() -> None:
    assert architectures.refusal("mlx", {"model_type": "qwen2"}) is None
    assert "it reads gpt2" in str(architectures.refusal("mlx", {"model_type": "bloom"}))
