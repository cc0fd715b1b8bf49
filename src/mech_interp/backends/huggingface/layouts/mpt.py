"""MPT: ALiBi instead of positions, fused qkv that may be clipped, LayerNorm and no biases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Port
from mech_interp.backends.huggingface.layouts.fused import ThirdsBlock
from mech_interp.backends.huggingface.layouts.plain import PlainLayout, sizes_of


class MptBlock(ThirdsBlock):
    """A `MptBlock` of transformers, in pieces."""

    def __init__(self, module: Any) -> None:
        own, mlp = module.attn, module.ffn
        super().__init__(module, own, own.n_heads)
        self.scale = float(own.softmax_scale)
        self.clip: float | None = own.clip_qkv or None
        self.slopes = alibi_slopes(self.n_heads, own.out_proj.weight.device)
        self.first, self.second = module.norm_1, module.norm_2
        self.fused, self.out = own.Wqkv, own.out_proj
        self.up, self.act, self.down = mlp.up_proj, mlp.act, mlp.down_proj
        self.mlp_end = self.down  # the library's MLP hands out its sum with the residual stream

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(x)
        if self.clip is None:
            return q, k, v
        return q.clamp(-self.clip, self.clip), k.clamp(-self.clip, self.clip), v.clamp(-self.clip, self.clip)

    def qkv_ports(self) -> dict[str, Port]:
        return super().qkv_ports() if self.clip is None else {}  # no module shows them clipped

    def score_bias(self, query_positions: Tensor, n_keys: int) -> Tensor | None:
        """Slopes times minus the distance, [row or 1, head, query, key]; float32 whatever the weights."""
        keys = torch.arange(n_keys, device=query_positions.device)
        distance = query_positions[:, None, :, None] - keys
        return self.slopes.to(keys.device)[:, None, None] * -distance


def alibi_slopes(n_heads: int, device: torch.device) -> Tensor:
    """Slopes of ALiBi by head, float32: 2^(-8i/n) for n the next power of two, odd ones behind.

    Source: Press et al. 2022 (Train Short, Test Long), in the form used for MPT.
    """
    n = 2 ** math.ceil(math.log2(n_heads))
    slopes = 1.0 / torch.pow(2, torch.arange(1, n + 1, device=device).float() * (8 / n))
    return slopes if n == n_heads else torch.cat((slopes[1::2], slopes[::2]))[:n_heads]


class MptLayout(PlainLayout):
    """`MptForCausalLM`."""

    model_type = "mpt"
    title = "MPT"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "max_seq_len": 24,
        "d_model": 32,
        "n_layers": 3,
        "n_heads": 4,
    }

    def __init__(self, module: Any) -> None:
        config, stack = module.config, module.transformer
        self.module = module
        self.sizes = sizes_of(config, d_mlp=4 * config.d_model, context=config.max_seq_len)
        self.blocks = [MptBlock(block) for block in stack.blocks]
        self.embedding = stack.wte
        self.final_norm, self.unembedding = stack.norm_f, module.lm_head
