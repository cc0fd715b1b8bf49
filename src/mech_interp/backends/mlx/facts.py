"""What a config says about how its model computes, for the architectures that this backend runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mech_interp.backends.huggingface.layouts.base import Sizes
from mech_interp.backends.mlx.rotary import inverse_frequencies
from mech_interp.errors import CapabilityError

# The library's names of activations, by the curve they draw.
CURVES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


@dataclass(frozen=True)
class Facts:
    """How a model computes.

    Attributes:
        title: what people call the architecture.
        sizes: counts.
        norm, eps: kind of its norms, and what they add to the variance.
        gain_offset: added to the stored gains of its norms.
        curve: the MLP's activation; see `CURVES`.
        scales: what multiplies q·k, per layer.
        windows: how many keys a query sees, its own included, per layer (None: all).
        frequencies: the angle of each rotated pair of features per position (None: no rotary).
        gated, post_norms, qk_norms: whether the MLP has a linear branch, the sublayers norms on their
            output, and queries and keys norms of their own.
        qkv_bias, out_bias, mlp_bias: which projections have biases.
        score_cap, logit_cap: softcaps of attention scores and logits (None: none).
        embed_scale: multiplies the embedding.
        tied: whether embedding and unembedding are one matrix.
    """

    model_type: str
    title: str
    architecture: str
    sizes: Sizes
    norm: Literal["layer", "rms"]
    eps: float
    curve: str
    scales: tuple[float, ...]
    tied: bool
    windows: tuple[int | None, ...]
    frequencies: np.ndarray | None = None
    gain_offset: float = 0.0
    gated: bool = True
    post_norms: bool = False
    qk_norms: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    score_cap: float | None = None
    logit_cap: float | None = None
    embed_scale: float = 1.0

    @property
    def missing(self) -> dict[str, str]:
        """Site kinds that the architecture lacks, with the reason; as the default engine has it."""
        found: dict[str, str] = {}
        if self.frequencies is None:
            found |= {f"rot_{x}": f"{self.title} has no rotary embedding; use {x}" for x in "qk"}
        else:
            found["pos_embed"] = f"{self.title} has no learned position embedding"
        why = f"the MLP of {self.title} is not a mixture of experts"
        found |= dict.fromkeys(("router_logits", "expert_indices", "expert_weights"), why)
        if not self.gated:
            found["mlp_pre_linear"] = f"the MLP of {self.title} is not gated"
        return found


def facts_of(config: Any, name: str) -> Facts:
    """The facts of a library config.

    Raises:
        CapabilityError: for an option that this backend does not cover.
    """
    if getattr(config, "quantization_config", None):
        raise _refused(name, "quantised weights")
    return READERS[config.model_type](config, name)


def _gpt2(config: Any, name: str) -> Facts:
    if config.add_cross_attention:
        raise _refused(name, "cross-attention")
    layers, d_head = range(config.n_layer), config.n_embd // config.n_head
    scale = d_head**-0.5 if config.scale_attn_weights else 1.0
    by_layer = config.scale_attn_by_inverse_layer_idx
    return Facts(
        model_type="gpt2",
        title="GPT-2",
        architecture="GPT2LMHeadModel",
        sizes=Sizes(
            n_layers=config.n_layer,
            n_heads=config.n_head,
            n_kv_heads=config.n_head,
            d_model=config.n_embd,
            d_head=d_head,
            d_mlp=config.n_inner or 4 * config.n_embd,
            vocabulary=config.vocab_size,
            context=config.n_positions,
        ),
        norm="layer",
        eps=config.layer_norm_epsilon,
        curve=_curve(config.activation_function, name),
        scales=tuple(scale / (layer + 1) if by_layer else scale for layer in layers),
        windows=(None,) * config.n_layer,
        tied=config.tie_word_embeddings,
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    )


def _rotary_decoder(
    config: Any, name: str, title: str, architecture: str, curve: str, **changes: Any
) -> Facts:
    """What Llama and the architectures made after it have in common."""
    heads, d_model = config.num_attention_heads, config.hidden_size
    d_head = getattr(config, "head_dim", None) or d_model // heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise _refused(name, f"layers of the type {kind!r}")
    facts: dict[str, Any] = {
        "norm": "rms",
        "eps": config.rms_norm_eps,
        "scales": (d_head**-0.5,) * config.num_hidden_layers,
        "windows": tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds),
        "frequencies": inverse_frequencies(config.rope_parameters, d_head, name),
        "tied": config.tie_word_embeddings,
    }
    sizes = Sizes(
        n_layers=config.num_hidden_layers,
        n_heads=heads,
        n_kv_heads=config.num_key_value_heads,
        d_model=d_model,
        d_head=d_head,
        d_mlp=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
    )
    facts |= changes
    return Facts(
        model_type=config.model_type,
        title=title,
        architecture=architecture,
        sizes=sizes,
        curve=_curve(curve, name),
        **facts,
    )


def _llama(config: Any, name: str) -> Facts:
    bias = bool(config.attention_bias)
    biases = {"qkv_bias": bias, "out_bias": bias, "mlp_bias": bool(config.mlp_bias)}
    return _rotary_decoder(config, name, "Llama", "LlamaForCausalLM", config.hidden_act, **biases)


def _qwen2(config: Any, name: str) -> Facts:
    return _rotary_decoder(config, name, "Qwen2", "Qwen2ForCausalLM", config.hidden_act, qkv_bias=True)


def _qwen3(config: Any, name: str) -> Facts:
    bias = bool(config.attention_bias)
    options = {"qkv_bias": bias, "out_bias": bias, "qk_norms": True}
    return _rotary_decoder(config, name, "Qwen3", "Qwen3ForCausalLM", config.hidden_act, **options)


def _gemma2(config: Any, name: str) -> Facts:
    if getattr(config, "use_bidirectional_attention", None):
        raise _refused(name, "attention in both directions")
    bias = bool(config.attention_bias)
    return _rotary_decoder(
        config,
        name,
        "Gemma 2",
        "Gemma2ForCausalLM",
        config.hidden_activation,
        qkv_bias=bias,
        out_bias=bias,
        gain_offset=1.0,
        post_norms=True,
        scales=(config.query_pre_attn_scalar**-0.5,) * config.num_hidden_layers,
        score_cap=config.attn_logit_softcapping,
        logit_cap=config.final_logit_softcapping,
        embed_scale=config.hidden_size**0.5,
    )


READERS: dict[str, Callable[[Any, str], Facts]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
}


def _curve(activation: str, name: str) -> str:
    if activation not in CURVES:
        raise _refused(name, f"the activation {activation!r}")
    return CURVES[activation]


def _refused(name: str, what: str) -> CapabilityError:
    return CapabilityError(
        f"{name} has {what}, which the mlx backend does not run.", "Use the backend huggingface."
    )
