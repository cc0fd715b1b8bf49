"""Llama: separate projections, grouped-query attention, rotary positions, RMSNorm, gated MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import (
    Block,
    Layout,
    Port,
    Rotary,
    Sizes,
    in_heads,
    split_heads,
)


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
            "ln1.w": self.module.input_layernorm.weight,
            "ln2.w": self.module.post_attention_layernorm.weight,
        }
        biases = {
            "b_Q": (attention.q_proj.bias, heads),
            "b_K": (attention.k_proj.bias, kv_heads),
            "b_V": (attention.v_proj.bias, kv_heads),
        }
        found |= {name: bias.view(n, -1) for name, (bias, n) in biases.items() if bias is not None}
        return found if attention.o_proj.bias is None else found | {"b_O": attention.o_proj.bias}

    @property
    def attention_module(self) -> nn.Module:
        module: nn.Module = self.attention
        return module

    def ports(self) -> dict[str, Port]:
        block, attention, mlp = self.module, self.attention, self.module.mlp
        heads, kv_heads = in_heads(self.sizes.n_heads), in_heads(self.sizes.n_kv_heads)
        return {
            "resid_pre": Port(block, "input"),
            "ln1": Port(block.input_layernorm),
            "q": Port(attention.q_proj, view=heads),
            "k": Port(attention.k_proj, view=kv_heads),
            "v": Port(attention.v_proj, view=kv_heads),
            "z": Port(attention.o_proj, "input", heads),
            "attn_out_own": Port(attention),
            "attn_out": Port(attention),
            "resid_mid": Port(block.post_attention_layernorm, "input"),
            "ln2": Port(block.post_attention_layernorm),
            "mlp_pre": Port(mlp.gate_proj),
            "mlp_pre_linear": Port(mlp.up_proj),
            "mlp_post": Port(mlp.down_proj, "input"),
            "mlp_out_own": Port(mlp),
            "mlp_out": Port(mlp),
            "resid_post": Port(block),
        }


class LlamaLayout(Layout):
    """`LlamaForCausalLM`."""

    model_type = "llama"
    title = "Llama"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "max_position_embeddings": 24,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    gated = True
    rotary_positions = True
    norm = "rms"

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
        return {"default": (cos, sin)}

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

    def ports(self) -> dict[str, Port]:
        # Where the embedding is scaled on its way, only the first block's input is what was added.
        return {
            "embed": Port(self.module.model.layers[0], "input"),
            "ln_final": Port(self.module.model.norm),
            "logits": Port(self.module.lm_head),
        }
