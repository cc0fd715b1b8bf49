"""Phi 1, 1.5 and 2: parallel sublayers under one norm, partial rotary, biases everywhere, LayerNorm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Sizes
from mech_interp.backends.huggingface.layouts.plain import TINY, PlainLayout, SeparateBlock, sizes_of


class PhiBlock(SeparateBlock):
    """A `PhiDecoderLayer` of transformers, in pieces."""

    rotary_kind = "default"
    parallel = True
    shared_norm = True

    def __init__(self, module: Any, sizes: Sizes) -> None:
        own, mlp = module.self_attn, module.mlp
        super().__init__(module, own, sizes.n_heads, sizes.n_kv_heads)
        self.scale = float(own.scaling)
        self.first = module.input_layernorm
        self.q, self.k, self.v, self.out = own.q_proj, own.k_proj, own.v_proj, own.dense
        self.up, self.act, self.down, self.mlp_end = mlp.fc1, mlp.activation_fn, mlp.fc2, mlp

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if not self.attention.qk_layernorm:
            return q, k
        return self.attention.q_layernorm(q), self.attention.k_layernorm(k)


class PhiLayout(PlainLayout):
    """`PhiForCausalLM`."""

    model_type = "phi"
    title = "Phi 1.5 and 2"
    tiny: ClassVar[Mapping[str, Any]] = {**TINY, "intermediate_size": 40, "partial_rotary_factor": 0.5}
    rotary_positions = True

    def __init__(self, module: Any) -> None:
        config, stack = module.config, module.model
        self.module = module
        self.sizes = sizes_of(
            config,
            d_mlp=config.intermediate_size,
            n_kv_heads=config.num_key_value_heads,
            d_head=stack.layers[0].self_attn.head_dim,
        )
        self.blocks = [PhiBlock(block, self.sizes) for block in stack.layers]
        self.embedding, self.rotary_table = stack.embed_tokens, stack.rotary_emb
        self.final_norm, self.unembedding = stack.final_layernorm, module.lm_head
