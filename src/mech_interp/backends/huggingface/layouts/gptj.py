"""GPT-J: parallel sublayers under one norm, rotary over neighbouring pairs, scores in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Rotary
from mech_interp.backends.huggingface.layouts.plain import PlainLayout, SeparateBlock, sizes_of


class GPTJBlock(SeparateBlock):
    """A `GPTJBlock` of transformers, in pieces."""

    wide_scores = True
    rotary_kind = "default"
    parallel = True
    shared_norm = True

    def __init__(self, module: Any, n_heads: int) -> None:
        own, mlp = module.attn, module.mlp
        super().__init__(module, own, n_heads)
        self.scale = 1 / float(own.scale_attn)
        self.first = module.ln_1
        self.q, self.k, self.v, self.out = own.q_proj, own.k_proj, own.v_proj, own.out_proj
        self.up, self.act, self.down, self.mlp_end = mlp.fc_in, mlp.act, mlp.fc_out, mlp

    def rotate(self, q: Tensor, k: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        cos, sin = rotary["default"]
        return rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding over neighbouring pairs of the leading features; the rest pass unchanged.

    x is [row, position, head, d_head]; cos and sin are [row, position, turned], each angle twice.
    Source: Su et al. 2021 (RoFormer), section 3.2.2.
    """
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    quarter = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    out = turned * cos[..., None, :] + quarter * sin[..., None, :]
    return torch.cat((out, kept), dim=-1) if kept.shape[-1] else out


class GPTJLayout(PlainLayout):
    """`GPTJForCausalLM`."""

    model_type = "gptj"
    title = "GPT-J"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "n_positions": 24,
        "n_embd": 32,
        "n_inner": 40,
        "n_layer": 3,
        "n_head": 4,
        "rotary_dim": 4,
    }
    rotary_positions = True

    def __init__(self, module: Any) -> None:
        config, stack = module.config, module.transformer
        self.module = module
        self.sizes = sizes_of(config, d_mlp=config.n_inner or 4 * config.n_embd)
        self.blocks = [GPTJBlock(block, config.n_head) for block in stack.h]
        self.embedding = stack.wte
        self.final_norm, self.unembedding = stack.ln_f, module.lm_head

    def rotary(self, like: Tensor, positions: Tensor) -> Rotary | None:
        # Every attention module keeps the same table: sines of all angles, then their cosines.
        table = self.module.transformer.h[0].attn.embed_positions
        sin, cos = table[positions].to(like).chunk(2, dim=-1)
        return {"default": (cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1))}
