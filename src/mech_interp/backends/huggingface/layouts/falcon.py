"""Falcon: fused qkv in groups or multi-query, rotary or ALiBi, parallel (with one or two norms) or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Sizes
from mech_interp.backends.huggingface.layouts.fused import GroupedBlock
from mech_interp.backends.huggingface.layouts.parts import alibi_slopes, by_key
from mech_interp.backends.huggingface.layouts.plain import TINY, PlainLayout, sizes_of
from mech_interp.errors import CapabilityError


class FalconBlock(GroupedBlock):
    """A `FalconDecoderLayer` of transformers, in pieces."""

    def __init__(self, module: Any, sizes: Sizes, config: Any) -> None:
        attention = module.self_attention
        super().__init__(module, attention, sizes.n_heads, sizes.n_kv_heads)
        self.act = module.mlp.act
        self.scale = float(attention.inv_norm_factor)
        self.parallel = bool(config.new_decoder_architecture or config.parallel_attn)
        if config.new_decoder_architecture and config.num_ln_in_parallel_attn == 2:
            self.first, self.second = module.ln_attn, module.ln_mlp
        self.shared_norm = self.parallel and self.second is None
        self.slopes: Tensor | None = None
        if config.alibi:
            # The library rounds slopes to bfloat16 whatever the weights are.
            self.slopes = alibi_slopes(sizes.n_heads, self.out.weight.device).bfloat16()
        else:
            self.rotary_kind = "default"

    def score_bias(self, query_positions: Tensor, n_keys: int) -> Tensor | None:
        if self.slopes is None:
            return None
        # Falcon scales the bias together with q·k.
        dtype = self.out.weight.dtype
        return by_key(self.slopes, query_positions, n_keys, torch.bfloat16).to(dtype) * self.scale


class FalconLayout(PlainLayout):
    """`FalconForCausalLM`."""

    model_type = "falcon"
    title = "Falcon"
    tiny: ClassVar[Mapping[str, Any]] = {**TINY, "ffn_hidden_size": 40}

    def __init__(self, module: Any) -> None:
        config, stack = module.config, module.transformer
        if config.alibi and config._attn_implementation == "eager":
            raise CapabilityError(
                "This Falcon checkpoint uses ALiBi, which the library's eager attention adds twice, so that "
                "it computes another model than the one that was trained.",
                "Open it with attention sdpa.",
            )
        self.module = module
        self.rotary_positions = not config.alibi
        n_kv_heads = stack.h[0].self_attention.num_kv_heads
        self.sizes = sizes_of(config, d_mlp=config.ffn_hidden_size, n_kv_heads=n_kv_heads)
        self.blocks = [FalconBlock(block, self.sizes, config) for block in stack.h]
        self.embedding = stack.word_embeddings
        self.rotary_table = stack.rotary_emb if self.rotary_positions else None
        self.final_norm, self.unembedding = stack.ln_f, module.lm_head
