"""A model that is computed wrongly is found out at load, whatever its size."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mech_interp.backends import mlx
from mech_interp.backends.mlx import facts
from mech_interp.errors import IdentityError

pytest.importorskip("mlx.core", reason="MLX is not installed")
files, opening, twin = (
    importlib.import_module(f"mech_interp.backends.mlx.{name}") for name in ("files", "opening", "twin")
)

IDS = [[5, 17, 2, 90, 33, 8, 41], [3, 1, 4]]


def open_it(folder: Path) -> Any:
    return mlx.open_folder(folder, name="it", source=str(folder))


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "another activation": ("gpt2", {"curve": "gelu"}),
    "another scale": ("gpt2", {"scales": (0.3, 0.3, 0.3)}),
    "larger epsilon": ("gpt2", {"eps": 0.1}),
    "other angles": ("llama 3.1", {"frequencies": np.float32([1.0, 0.5, 0.2, 0.1, 0.05, 0.02])}),
    "no norm on queries": ("qwen3", {"qk_norms": False}),
    "a narrower window": ("qwen3", {"windows": (None, 2, 2)}),
    "norm gains as stored": ("gemma2", {"gain_offset": 0.0}),
    "no score cap": ("gemma2", {"score_cap": None}),
    "no logit cap": ("gemma2", {"logit_cap": None}),
    "embedding as stored": ("gemma2", {"embed_scale": 1.0}),
}


@pytest.mark.parametrize("limit", [opening.LIBRARY_BYTES, 0], ids=["small", "large"])
@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_computation_is_refused_at_load(
    originals: Any, monkeypatch: pytest.MonkeyPatch, case: str, limit: int
) -> None:
    variant, changes = WRONG[case]
    monkeypatch.setattr(opening, "LIBRARY_BYTES", limit)
    right = facts.facts_of

    def wrong(config: Any, name: str) -> Any:
        found = right(config, name)
        # The small twin of a large model has its own counts of layers and features.
        cut = {
            "scales": lambda value: value[: found.sizes.n_layers],
            "windows": lambda value: value[: found.sizes.n_layers],
            "frequencies": lambda value: value[: found.sizes.d_head // 2],
        }
        return replace(found, **{k: cut.get(k, lambda v: v)(v) for k, v in changes.items()})

    assert open_it(originals(variant)) is not None
    monkeypatch.setattr(opening, "facts_of", wrong)
    monkeypatch.setattr(twin, "facts_of", wrong)
    with pytest.raises(IdentityError, match="library's own forward"):
        open_it(originals(variant))


@pytest.mark.parametrize("swap", [("q", "k"), ("gate", "in"), ("ln1", "ln2")])
def test_a_wrong_place_of_a_tensor_is_refused_at_load(
    originals: Any, monkeypatch: pytest.MonkeyPatch, swap: tuple[str, str]
) -> None:
    right, (one, other) = files._rotary_block, swap

    def wrong(take: Any, found: Any, layer: int) -> Any:
        block = right(take, found, layer)
        # One layer alone, and as wide as each other, so that nothing but the numbers can tell.
        if layer == 1:
            block[one], block[other] = block[other], block[one]
        return block

    monkeypatch.setattr(files, "_rotary_block", wrong)
    with pytest.raises(IdentityError, match="library's own forward"):
        open_it(originals("llama with as many keys"))


LARGE: dict[str, dict[str, Any]] = {
    "Llama 3.1 8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 32,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "Qwen2.5 7B": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "num_hidden_layers": 28,
        "max_window_layers": 28,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "vocab_size": 152064,
        "rope_theta": 1000000.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
    "Qwen3 0.6B": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "head_dim": 128,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_hidden_layers": 28,
        "vocab_size": 151936,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
        "eos_token_id": 151645,
    },
    "Gemma 2 2B": {
        "model_type": "gemma2",
        "hidden_size": 2304,
        "head_dim": 256,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 26,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "vocab_size": 256000,
        "pad_token_id": 0,
    },
    "GPT-2 XL": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
}


@pytest.mark.parametrize("name", list(LARGE))
def test_configs_of_large_checkpoints_have_a_twin_that_agrees(tmp_path: Path, name: str) -> None:
    import mlx.core as mx

    (tmp_path / "config.json").write_text(json.dumps(LARGE[name]))
    config = opening.read_config(tmp_path, name)
    twin.check_twin(config, name, mx.default_device(), explicit=False)
    small = twin.shrunken(config)
    kinds = getattr(config, "layer_types", None)
    assert kinds is None or set(small.layer_types) == set(kinds)
    assert facts.facts_of(small, name).curve == facts.facts_of(config, name).curve


def test_large_checkpoints_open_without_the_library_model(
    originals: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_it(originals("gemma2")).forward(IDS).logits
    monkeypatch.setattr(opening, "LIBRARY_BYTES", 0)
    monkeypatch.setattr(opening, "load_folder", None)
    assert torch.equal(open_it(originals("gemma2")).forward(IDS).logits, expected)
