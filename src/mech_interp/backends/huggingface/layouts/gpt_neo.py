"""GPT-Neo: unscaled scores in float32, local and global attention, learned positions, LayerNorm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mech_interp.backends.huggingface.layouts.plain import PlainLayout, SeparateBlock, sizes_of


class GPTNeoBlock(SeparateBlock):
    """A `GPTNeoBlock` of transformers, in pieces."""

    scale = 1.0
    wide_scores = True

    def __init__(self, module: Any, n_heads: int, window: int) -> None:
        own, mlp = module.attn.attention, module.mlp
        super().__init__(module, own, n_heads)
        self.window = window if module.attn.attention_type == "local" else None
        self.first, self.second = module.ln_1, module.ln_2
        self.q, self.k, self.v, self.out = own.q_proj, own.k_proj, own.v_proj, own.out_proj
        self.up, self.act, self.down, self.mlp_end = mlp.c_fc, mlp.act, mlp.c_proj, mlp


class GPTNeoLayout(PlainLayout):
    """`GPTNeoForCausalLM`."""

    model_type = "gpt_neo"
    title = "GPT-Neo"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "max_position_embeddings": 24,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["local", "global", "local"], 1]],
        "window_size": 5,
    }
    learned_positions = True

    def __init__(self, module: Any) -> None:
        config, stack = module.config, module.transformer
        self.module = module
        self.sizes = sizes_of(config, d_mlp=config.intermediate_size or 4 * config.hidden_size)
        self.blocks = [GPTNeoBlock(block, config.num_heads, config.window_size) for block in stack.h]
        self.embedding, self.positions = stack.wte, stack.wpe
        self.final_norm, self.unembedding = stack.ln_f, module.lm_head
