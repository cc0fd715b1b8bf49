"""GPT-2: fused qkv, learned positions, LayerNorm, no rotary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mech_interp.backends.huggingface.layouts.fused import ThirdsBlock
from mech_interp.backends.huggingface.layouts.plain import PlainLayout, sizes_of


class GPT2Block(ThirdsBlock):
    """A `GPT2Block` of transformers, in pieces."""

    def __init__(self, module: Any) -> None:
        own, mlp = module.attn, module.mlp
        super().__init__(module, own, own.num_heads)
        self.scale = float(own.scaling)
        self.first, self.second = module.ln_1, module.ln_2
        self.fused, self.out = own.c_attn, own.c_proj
        self.up, self.act, self.down, self.mlp_end = mlp.c_fc, mlp.act, mlp.c_proj, mlp

    def matrix(self, linear: Any) -> Tensor:
        weight: Tensor = linear.weight  # Conv1D keeps it as [in, out]
        return weight


class GPT2Layout(PlainLayout):
    """`GPT2LMHeadModel`."""

    model_type = "gpt2"
    title = "GPT-2"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "n_positions": 24,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 40,
    }
    learned_positions = True

    def __init__(self, module: Any) -> None:
        config, stack = module.config, module.transformer
        self.module = module
        self.sizes = sizes_of(config, d_mlp=config.n_inner or 4 * config.n_embd)
        self.blocks = [GPT2Block(block) for block in stack.h]
        self.embedding, self.positions = stack.wte, stack.wpe
        self.final_norm, self.unembedding = stack.ln_f, module.lm_head
