"""Llama: separate projections, grouped-query attention, rotary positions, RMSNorm, gated MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import Block, Layout, Rotary, Sizes, split_heads


class LlamaBlock(Block):
    """A `LlamaDecoderLayer` of transformers, in pieces."""

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

    def rotate(self, q: Tensor, k: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        return rotate_halves(q, *rotary), rotate_halves(k, *rotary)

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
        attention, mlp = self.attention, self.module.mlp
        heads, kv_heads = self.sizes.n_heads, self.sizes.n_kv_heads
        found = {
            "W_Q": split_heads(attention.q_proj.weight.T, heads),
            "W_K": split_heads(attention.k_proj.weight.T, kv_heads),
            "W_V": split_heads(attention.v_proj.weight.T, kv_heads),
            "W_O": attention.o_proj.weight.T.reshape(heads, -1, self.sizes.d_model),
            "W_gate": mlp.gate_proj.weight.T,
            "W_in": mlp.up_proj.weight.T,
            "W_out": mlp.down_proj.weight.T,
            "ln1.w": self.module.input_layernorm.weight,
            "ln2.w": self.module.post_attention_layernorm.weight,
        }
        biases = {
            "b_Q": (attention.q_proj.bias, heads),
            "b_K": (attention.k_proj.bias, kv_heads),
            "b_V": (attention.v_proj.bias, kv_heads),
        }
        found |= {name: bias.view(n, -1) for name, (bias, n) in biases.items() if bias is not None}
        flat = {"b_O": attention.o_proj, "b_gate": mlp.gate_proj, "b_in": mlp.up_proj, "b_out": mlp.down_proj}
        return found | {name: linear.bias for name, linear in flat.items() if linear.bias is not None}


class LlamaLayout(Layout):
    """`LlamaForCausalLM`."""

    model_type = "llama"

    def __init__(self, module: Any) -> None:
        config = module.config
        self.module = module
        self.sizes = Sizes(
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            d_model=config.hidden_size,
            d_head=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            d_mlp=config.intermediate_size,
            vocabulary=config.vocab_size,
            context=config.max_position_embeddings,
        )
        self.blocks = [LlamaBlock(block, self.sizes) for block in module.model.layers]

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.module.model.embed_tokens(ids)
        return out

    def rotary(self, like: Tensor, positions: Tensor) -> Rotary | None:
        cos, sin = self.module.model.rotary_emb(like, position_ids=positions)
        return cos, sin

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.module.model.norm
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        head: nn.Linear = self.module.lm_head
        return head

    def weights(self) -> dict[str, Tensor]:
        return {
            "W_E": self.module.model.embed_tokens.weight,
            "W_U": self.module.lm_head.weight.T,
            "ln_final.w": self.module.model.norm.weight,
        }

    @property
    def missing(self) -> dict[str, str]:
        return {"pos_embed": "Llama encodes positions by rotary embedding inside attention"}


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding over split halves.

    x is [row, position, head, d_head], cos and sin are [row, position, d_head].
    Source: Su et al. 2021 (RoFormer), in the split-half form that Llama checkpoints are stored for.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * cos[..., None, :] + turned * sin[..., None, :]
