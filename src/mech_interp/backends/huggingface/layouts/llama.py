"""Llama: separate projections, grouped-query attention, rotary positions, RMSNorm, gated MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import Block, Port, Sizes, in_heads, split_heads
from mech_interp.backends.huggingface.layouts.plain import TINY, PlainLayout, sizes_of


class LlamaBlock(Block):
    """A `LlamaDecoderLayer` of transformers, in pieces; other architectures change some of them."""

    rotary_kind: str | None = "default"

    def __init__(self, module: Any, sizes: Sizes) -> None:
        self.module = module
        self.attention = module.self_attn
        self.sizes = sizes
        self.scale = float(module.self_attn.scaling)

    def norm1(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.input_layernorm(x)
        return out

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads, kv_heads = self.sizes.n_heads, self.sizes.n_kv_heads
        return (
            self.attention.q_proj(x).unflatten(-1, (heads, -1)),
            self.attention.k_proj(x).unflatten(-1, (kv_heads, -1)),
            self.attention.v_proj(x).unflatten(-1, (kv_heads, -1)),
        )

    def attention_output(self, z: Tensor) -> Tensor:
        out: Tensor = self.attention.o_proj(z.flatten(-2))
        return out

    def norm2(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.post_attention_layernorm(x)
        return out

    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.module.mlp.gate_proj(x), self.module.mlp.up_proj(x)

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        out: Tensor = self.module.mlp.act_fn(pre) * linear
        return out

    def mlp_out(self, post: Tensor) -> Tensor:
        out: Tensor = self.module.mlp.down_proj(post)
        return out

    def weights(self) -> dict[str, Tensor]:
        mlp = self.module.mlp
        found = {
            "W_gate": mlp.gate_proj.weight.T,
            "W_in": mlp.up_proj.weight.T,
            "W_out": mlp.down_proj.weight.T,
        }
        biases = {"b_gate": mlp.gate_proj, "b_in": mlp.up_proj, "b_out": mlp.down_proj}
        found |= {name: linear.bias for name, linear in biases.items() if linear.bias is not None}
        return self.attention_weights() | found

    def attention_weights(self) -> dict[str, Tensor]:
        """The block's parameters without the MLP's."""
        attention = self.attention
        heads, kv_heads = self.sizes.n_heads, self.sizes.n_kv_heads
        found = {
            "W_Q": split_heads(attention.q_proj.weight.T, heads),
            "W_K": split_heads(attention.k_proj.weight.T, kv_heads),
            "W_V": split_heads(attention.v_proj.weight.T, kv_heads),
            "W_O": attention.o_proj.weight.T.reshape(heads, -1, self.sizes.d_model),
        }
        biases = {
            "b_Q": (attention.q_proj.bias, heads),
            "b_K": (attention.k_proj.bias, kv_heads),
            "b_V": (attention.v_proj.bias, kv_heads),
        }
        found |= {name: bias.view(n, -1) for name, (bias, n) in biases.items() if bias is not None}
        found |= self.norm_weights()
        return found if attention.o_proj.bias is None else found | {"b_O": attention.o_proj.bias}

    def norm_weights(self) -> dict[str, Tensor]:
        """The factors of the block's norms."""
        return {
            "ln1.w": self.module.input_layernorm.weight,
            "ln2.w": self.module.post_attention_layernorm.weight,
        }

    @property
    def attention_module(self) -> nn.Module:
        module: nn.Module = self.attention
        return module

    def ports(self) -> dict[str, Port]:
        mlp = self.module.mlp
        return self.sublayer_ports() | {
            "mlp_pre": Port(mlp.gate_proj),
            "mlp_pre_linear": Port(mlp.up_proj),
            "mlp_post": Port(mlp.down_proj, "input"),
        }

    def sublayer_ports(self) -> dict[str, Port]:
        """The block's ports without those inside its MLP."""
        block, attention, mlp = self.module, self.attention, self.module.mlp
        return {
            "resid_pre": Port(block, "input"),
            "z": Port(attention.o_proj, "input", in_heads(self.sizes.n_heads)),
            "attn_out_own": Port(attention),
            "mlp_out_own": Port(mlp),
            "resid_post": Port(block),
            **self.projection_ports(),
            **self.norm_ports(),
        }

    def projection_ports(self) -> dict[str, Port]:
        """The ports of q, k and v."""
        attention = self.attention
        heads, kv_heads = in_heads(self.sizes.n_heads), in_heads(self.sizes.n_kv_heads)
        return {
            "q": Port(attention.q_proj, view=heads),
            "k": Port(attention.k_proj, view=kv_heads),
            "v": Port(attention.v_proj, view=kv_heads),
        }

    def norm_ports(self) -> dict[str, Port]:
        """The ports that depend on where the block's norms stand."""
        block = self.module
        return {
            "ln1": Port(block.input_layernorm),
            "attn_out": Port(self.attention),
            "resid_mid": Port(block.post_attention_layernorm, "input"),
            "ln2": Port(block.post_attention_layernorm),
            "mlp_out": Port(block.mlp),
        }


class LlamaLayout(PlainLayout):
    """`LlamaForCausalLM`."""

    model_type = "llama"
    title = "Llama"
    tiny: ClassVar[Mapping[str, Any]] = {**TINY, "intermediate_size": 40, "num_key_value_heads": 2}
    gated = True
    rotary_positions = True
    norm: Literal["layer", "rms", "none"] = "rms"

    def __init__(self, module: Any) -> None:
        self.module = module
        config = self.config
        self.sizes = sizes_of(
            config,
            d_mlp=config.intermediate_size,
            n_kv_heads=config.num_key_value_heads,
            d_head=getattr(config, "head_dim", None) or None,
            context=_context(config),
        )
        if self.sizes.context < config.max_position_embeddings:
            self.notice = (
                f"Prompts are limited to {self.sizes.context} of {config.max_position_embeddings} tokens: "
                "the rope scaling of this checkpoint (longrope) turns all positions of longer ones otherwise."
            )
        self.blocks = [LlamaBlock(block, self.sizes) for block in self.decoder.layers]
        self.embedding, self.rotary_table = self.decoder.embed_tokens, self.decoder.rotary_emb
        self.final_norm, self.unembedding = self.decoder.norm, module.lm_head

    @property
    def config(self) -> Any:
        """The config of the decoder (in models of several modalities, a part of the whole config)."""
        return self.module.config

    @property
    def decoder(self) -> Any:
        """The library's module of everything before the unembedding."""
        return self.module.model

    def ports(self) -> dict[str, Port]:
        # Where the embedding is scaled on its way, only the first block's input is what was added.
        return super().ports() | {"embed": Port(self.decoder.layers[0], "input")}


def layer_windows(config: Any) -> list[int | None]:
    """The sliding window of each layer, where `layer_types` says which layers have one."""
    return [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]


def _context(config: Any) -> int:
    """The longest prompt for which every position is embedded the same way whatever its prompt's length.

    All rope scalings of the library are fixed per position up to here. Past it, ``dynamic`` and
    ``longrope`` turn all positions of a prompt by its length, so that values computed for a prefix would
    not be those of the whole prompt.
    """
    context = int(config.max_position_embeddings)
    scaling = getattr(config, "rope_parameters", None) or {}
    for one in [scaling, *scaling.values()]:
        if isinstance(one, Mapping) and one.get("rope_type") == "longrope":
            context = min(context, int(one["original_max_position_embeddings"]))
    return context
