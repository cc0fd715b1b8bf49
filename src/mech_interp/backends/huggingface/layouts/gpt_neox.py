"""GPT-NeoX and Pythia: parallel sublayers with a norm each, fused qkv by head, partial rotary, LayerNorm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mech_interp.backends.huggingface.layouts.fused import GroupedBlock
from mech_interp.backends.huggingface.layouts.plain import TINY, PlainLayout, sizes_of


class GPTNeoXBlock(GroupedBlock):
    """A `GPTNeoXLayer` of transformers, in pieces."""

    rotary_kind = "default"

    def __init__(self, module: Any, n_heads: int) -> None:
        super().__init__(module, module.attention, n_heads)
        self.scale = float(module.attention.scaling)
        self.parallel = bool(module.use_parallel_residual)
        self.act = module.mlp.act


class GPTNeoXLayout(PlainLayout):
    """`GPTNeoXForCausalLM`."""

    model_type = "gpt_neox"
    title = "GPT-NeoX (Pythia)"
    tiny: ClassVar[Mapping[str, Any]] = {**TINY, "intermediate_size": 40, "rotary_pct": 0.5}
    rotary_positions = True

    def __init__(self, module: Any) -> None:
        config, stack = module.config, module.gpt_neox
        self.module = module
        self.sizes = sizes_of(config, d_mlp=config.intermediate_size)
        self.blocks = [GPTNeoXBlock(block, self.sizes.n_heads) for block in stack.layers]
        self.embedding, self.rotary_table = stack.embed_in, stack.rotary_emb
        self.final_norm, self.unembedding = stack.final_layer_norm, module.lm_head
