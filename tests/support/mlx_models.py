"""Tiny random checkpoints in folders, for the tests of MLX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Every architecture that the backend runs, and the options of theirs that change what is computed.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2 with other options": (
        "gpt2",
        {
            "activation_function": "gelu",
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
            "layer_norm_epsilon": 1e-2,
        },
    ),
    "llama": ("llama", {}),
    "llama with as many keys": ("llama", {"num_key_value_heads": 4}),
    "llama 3.1": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 50.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 12,
            "hidden_act": "relu",
        },
    ),
    "llama with stretched angles": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}},
    ),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"attention_bias": True}),
    "gemma2": ("gemma2", {}),
}


@dataclass(frozen=True)
class Pair:
    """One checkpoint in both engines."""

    folder: Path
    mlx: Any
    default: Any


def save(folder: Path, variant: str, **options: Any) -> Any:
    """A tiny random model of a variant, written to a folder in the library's format."""
    from tiny_models import randomise

    from mech_interp.backends.huggingface.layouts import tiny_module

    model_type, changes = VARIANTS[variant]
    module = randomise(tiny_module(model_type, **changes), seed=7)
    module.save_pretrained(folder, **options)
    return module


def open_both(folder: Path, **options: Any) -> Pair:
    """Open a folder in both engines, with attention step by step in the default one."""
    from mech_interp.backends import mlx
    from mech_interp.backends.huggingface import checkpoint

    known = {"name": folder.name, "source": str(folder)}
    return Pair(
        folder,
        mlx.open_folder(folder, **known, **options),
        checkpoint.open_folder(folder, device="cpu", attention="eager", **known),
    )
