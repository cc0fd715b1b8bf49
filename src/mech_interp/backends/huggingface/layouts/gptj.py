"""GPT-J: parallel sublayers under one norm, rotary over neighbouring pairs, scores in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
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
from mech_interp.backends.huggingface.layouts.parts import activate, norm_weights


class GPTJBlock(Block):
    """A `GPTJBlock` of transformers, in pieces."""

    wide_scores = True
    rotary_kind = "default"
    parallel = True
    shared_norm = True

    def __init__(self, module: Any, n_heads: int) -> None:
        self.module = module
        self.attention = module.attn
        self.n_heads = n_heads
        self.scale = 1 / float(module.attn.scale_attn)

    def norm1(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.ln_1(x)
        return out

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, heads = self.attention, (self.n_heads, -1)
        return (
            own.q_proj(x).unflatten(-1, heads),
            own.k_proj(x).unflatten(-1, heads),
            own.v_proj(x).unflatten(-1, heads),
        )

    def rotate(self, q: Tensor, k: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        cos, sin = rotary["default"]
        return rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)

    def attention_output(self, z: Tensor) -> Tensor:
        out: Tensor = self.attention.out_proj(z.flatten(-2))
        return out

    def norm2(self, x: Tensor) -> Tensor:
        return self.norm1(x)

    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.module.mlp.fc_in(x), None

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        return activate(self.module.mlp.act, pre)

    def mlp_out(self, post: Tensor) -> Tensor:
        out: Tensor = self.module.mlp.fc_out(post)
        return out

    def weights(self) -> dict[str, Tensor]:
        own, mlp = self.attention, self.module.mlp
        found = {
            "W_Q": split_heads(own.q_proj.weight.T, self.n_heads),
            "W_K": split_heads(own.k_proj.weight.T, self.n_heads),
            "W_V": split_heads(own.v_proj.weight.T, self.n_heads),
            "W_O": own.out_proj.weight.T.reshape(self.n_heads, -1, own.out_proj.weight.shape[0]),
            "W_in": mlp.fc_in.weight.T,
            "b_in": mlp.fc_in.bias,
            "W_out": mlp.fc_out.weight.T,
            "b_out": mlp.fc_out.bias,
        }
        return found | norm_weights("ln1", self.module.ln_1)

    @property
    def attention_module(self) -> nn.Module:
        module: nn.Module = self.attention
        return module

    def ports(self) -> dict[str, Port]:
        block, own, mlp = self.module, self.attention, self.module.mlp
        heads = in_heads(self.n_heads)
        return {
            "resid_pre": Port(block, "input"),
            "ln1": Port(block.ln_1),
            "q": Port(own.q_proj, view=heads),
            "k": Port(own.k_proj, view=heads),
            "v": Port(own.v_proj, view=heads),
            "z": Port(own.out_proj, "input", heads),
            "attn_out_own": Port(own),
            "attn_out": Port(own),
            "mlp_pre": Port(mlp.fc_in),
            "mlp_post": Port(mlp.fc_out, "input"),
            "mlp_out_own": Port(mlp),
            "mlp_out": Port(mlp),
            "resid_post": Port(block),
        }


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding over neighbouring pairs of the leading features; the rest pass unchanged.

    x is [row, position, head, d_head]; cos and sin are [row, position, turned], each angle twice.
    Source: Su et al. 2021 (RoFormer), section 3.2.2.
    """
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    quarter = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    out = turned * cos[..., None, :] + quarter * sin[..., None, :]
    return torch.cat((out, kept), dim=-1) if kept.shape[-1] else out


class GPTJLayout(Layout):
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
        config = module.config
        self.module = module
        self.sizes = Sizes(
            n_layers=config.n_layer,
            n_heads=config.n_head,
            n_kv_heads=config.n_head,
            d_model=config.n_embd,
            d_head=config.n_embd // config.n_head,
            d_mlp=config.n_inner or 4 * config.n_embd,
            vocabulary=config.vocab_size,
            context=config.n_positions,
        )
        self.blocks = [GPTJBlock(block, config.n_head) for block in module.transformer.h]

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.module.transformer.wte(ids)
        return out

    def rotary(self, like: Tensor, positions: Tensor) -> Rotary | None:
        # Every attention module keeps the same table: sines of all angles, then their cosines.
        table = self.module.transformer.h[0].attn.embed_positions
        sin, cos = table[positions].to(like).chunk(2, dim=-1)
        return {"default": (cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1))}

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.module.transformer.ln_f
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        head: nn.Linear = self.module.lm_head
        return head

    def weights(self) -> dict[str, Tensor]:
        stack, head = self.module.transformer, self.module.lm_head
        found = {"W_E": stack.wte.weight, "W_U": head.weight.T, "b_U": head.bias}
        return found | norm_weights("ln_final", stack.ln_f)

    def ports(self) -> dict[str, Port]:
        stack = self.module.transformer
        return {
            "embed": Port(stack.wte),
            "ln_final": Port(stack.ln_f),
            "logits": Port(self.module.lm_head),
        }
