"""Phi 1, 1.5 and 2: parallel sublayers under one norm, partial rotary, biases everywhere, LayerNorm."""

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
from mech_interp.backends.huggingface.layouts.parts import activate, head_biases, norm_weights


class PhiBlock(Block):
    """A `PhiDecoderLayer` of transformers, in pieces."""

    rotary_kind = "default"
    parallel = True
    shared_norm = True

    def __init__(self, module: Any, sizes: Sizes) -> None:
        self.module = module
        self.attention = module.self_attn
        self.sizes = sizes
        self.scale = float(module.self_attn.scaling)

    def norm1(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.input_layernorm(x)
        return out

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, heads, kv_heads = self.attention, self.sizes.n_heads, self.sizes.n_kv_heads
        return (
            own.q_proj(x).unflatten(-1, (heads, -1)),
            own.k_proj(x).unflatten(-1, (kv_heads, -1)),
            own.v_proj(x).unflatten(-1, (kv_heads, -1)),
        )

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if not self.attention.qk_layernorm:
            return q, k
        return self.attention.q_layernorm(q), self.attention.k_layernorm(k)

    def attention_output(self, z: Tensor) -> Tensor:
        out: Tensor = self.attention.dense(z.flatten(-2))
        return out

    def norm2(self, x: Tensor) -> Tensor:
        return self.norm1(x)

    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.module.mlp.fc1(x), None

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        return activate(self.module.mlp.activation_fn, pre)

    def mlp_out(self, post: Tensor) -> Tensor:
        out: Tensor = self.module.mlp.fc2(post)
        return out

    def weights(self) -> dict[str, Tensor]:
        own, mlp = self.attention, self.module.mlp
        heads, kv_heads = self.sizes.n_heads, self.sizes.n_kv_heads
        found = {
            "W_Q": split_heads(own.q_proj.weight.T, heads),
            "W_K": split_heads(own.k_proj.weight.T, kv_heads),
            "W_V": split_heads(own.v_proj.weight.T, kv_heads),
            "W_O": own.dense.weight.T.reshape(heads, -1, self.sizes.d_model),
            "b_O": own.dense.bias,
            "W_in": mlp.fc1.weight.T,
            "b_in": mlp.fc1.bias,
            "W_out": mlp.fc2.weight.T,
            "b_out": mlp.fc2.bias,
        }
        found |= head_biases(heads, b_Q=own.q_proj) | head_biases(kv_heads, b_K=own.k_proj, b_V=own.v_proj)
        return found | norm_weights("ln1", self.module.input_layernorm)

    @property
    def attention_module(self) -> nn.Module:
        module: nn.Module = self.attention
        return module

    def ports(self) -> dict[str, Port]:
        block, own, mlp = self.module, self.attention, self.module.mlp
        heads, kv_heads = in_heads(self.sizes.n_heads), in_heads(self.sizes.n_kv_heads)
        return {
            "resid_pre": Port(block, "input"),
            "ln1": Port(block.input_layernorm),
            "q": Port(own.q_proj, view=heads),
            "k": Port(own.k_proj, view=kv_heads),
            "v": Port(own.v_proj, view=kv_heads),
            "z": Port(own.dense, "input", heads),
            "attn_out_own": Port(own),
            "attn_out": Port(own),
            "mlp_pre": Port(mlp.fc1),
            "mlp_post": Port(mlp.fc2, "input"),
            "mlp_out_own": Port(mlp),
            "mlp_out": Port(mlp),
            "resid_post": Port(block),
        }


class PhiLayout(Layout):
    """`PhiForCausalLM`."""

    model_type = "phi"
    title = "Phi 1.5 and 2"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "max_position_embeddings": 24,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "partial_rotary_factor": 0.5,
    }
    rotary_positions = True

    def __init__(self, module: Any) -> None:
        config = module.config
        self.module = module
        self.sizes = Sizes(
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            d_model=config.hidden_size,
            d_head=module.model.layers[0].self_attn.head_dim,
            d_mlp=config.intermediate_size,
            vocabulary=config.vocab_size,
            context=config.max_position_embeddings,
        )
        self.blocks = [PhiBlock(block, self.sizes) for block in module.model.layers]

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.module.model.embed_tokens(ids)
        return out

    def rotary(self, like: Tensor, positions: Tensor) -> Rotary | None:
        cos, sin = self.module.model.rotary_emb(like, position_ids=positions)
        return {"default": (cos, sin)}

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.module.model.final_layernorm
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        head: nn.Linear = self.module.lm_head
        return head

    def weights(self) -> dict[str, Tensor]:
        stack, head = self.module.model, self.module.lm_head
        found = {"W_E": stack.embed_tokens.weight, "W_U": head.weight.T, "b_U": head.bias}
        return found | norm_weights("ln_final", stack.final_layernorm)

    def ports(self) -> dict[str, Port]:
        stack = self.module.model
        return {
            "embed": Port(stack.embed_tokens),
            "ln_final": Port(stack.final_layernorm),
            "logits": Port(self.module.lm_head),
        }
