"""GPT-2: fused qkv, learned positions, LayerNorm, no rotary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mech_interp.backends.huggingface.layouts.base import Block, Layout, Port, Sizes, in_heads, split_heads


class GPT2Block(Block):
    """A `GPT2Block` of transformers, in pieces."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.attention = module.attn
        self.n_heads: int = module.attn.num_heads
        self.scale = float(module.attn.scaling)
        self.tanh_gelu = type(module.mlp.act).__name__ == "NewGELUActivation"

    def norm1(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.ln_1(x)
        return out

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.attention.c_attn(x).unflatten(-1, (3, self.n_heads, -1)).unbind(-3)
        return q, k, v

    def attention_output(self, z: Tensor) -> Tensor:
        out: Tensor = self.attention.c_proj(z.flatten(-2))
        return out

    def norm2(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.ln_2(x)
        return out

    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.module.mlp.c_fc(x), None

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        if self.tanh_gelu and pre.dtype in (torch.float32, torch.float64):
            # The library spells the tanh form out in eight passes over memory; the fused kernel agrees
            # to rounding. Narrower types round between those passes, so they keep the library's own.
            return functional.gelu(pre, approximate="tanh")
        out: Tensor = self.module.mlp.act(pre)
        return out

    def mlp_out(self, post: Tensor) -> Tensor:
        out: Tensor = self.module.mlp.c_proj(post)
        return out

    def weights(self) -> dict[str, Tensor]:
        # Conv1D keeps its weight as [in, out].
        w_q, w_k, w_v = self.attention.c_attn.weight.chunk(3, dim=1)
        b_q, b_k, b_v = self.attention.c_attn.bias.view(3, self.n_heads, -1).unbind(0)
        d_model = w_q.shape[0]
        mlp = self.module.mlp
        return {
            "W_Q": split_heads(w_q, self.n_heads),
            "W_K": split_heads(w_k, self.n_heads),
            "W_V": split_heads(w_v, self.n_heads),
            "W_O": self.attention.c_proj.weight.view(self.n_heads, -1, d_model),
            "b_Q": b_q,
            "b_K": b_k,
            "b_V": b_v,
            "b_O": self.attention.c_proj.bias,
            "W_in": mlp.c_fc.weight,
            "b_in": mlp.c_fc.bias,
            "W_out": mlp.c_proj.weight,
            "b_out": mlp.c_proj.bias,
            "ln1.w": self.module.ln_1.weight,
            "ln1.b": self.module.ln_1.bias,
            "ln2.w": self.module.ln_2.weight,
            "ln2.b": self.module.ln_2.bias,
        }

    @property
    def attention_module(self) -> nn.Module:
        module: nn.Module = self.attention
        return module

    def ports(self) -> dict[str, Port]:
        block, attention, mlp = self.module, self.attention, self.module.mlp
        fused = {
            name: Port(attention.c_attn, view=_part_of_fused(part, self.n_heads))
            for part, name in enumerate("qkv")
        }
        return fused | {
            "resid_pre": Port(block, "input"),
            "ln1": Port(block.ln_1),
            "z": Port(attention.c_proj, "input", in_heads(self.n_heads)),
            "attn_out_own": Port(attention),
            "attn_out": Port(attention),
            "resid_mid": Port(block.ln_2, "input"),
            "ln2": Port(block.ln_2),
            "mlp_pre": Port(mlp.c_fc),
            "mlp_post": Port(mlp.c_proj, "input"),
            "mlp_out_own": Port(mlp),
            "mlp_out": Port(mlp),
            "resid_post": Port(block),
        }


def _part_of_fused(part: int, n_heads: int) -> Callable[[Tensor], Tensor]:
    """A view of q, k or v in [..., 3 * heads * d_head]."""
    return lambda x: x.view(*x.shape[:-1], 3, n_heads, -1).select(-3, part)


class GPT2Layout(Layout):
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
        self.blocks = [GPT2Block(block) for block in module.transformer.h]

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.module.transformer.wte(ids)
        return out

    def pos_embed(self, positions: Tensor) -> Tensor | None:
        out: Tensor = self.module.transformer.wpe(positions)
        return out

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.module.transformer.ln_f
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        head: nn.Linear = self.module.lm_head
        return head

    def weights(self) -> dict[str, Tensor]:
        transformer = self.module.transformer
        return {
            "W_E": transformer.wte.weight,
            "W_pos": transformer.wpe.weight,
            "W_U": self.module.lm_head.weight.T,
            "ln_final.w": transformer.ln_f.weight,
            "ln_final.b": transformer.ln_f.bias,
        }

    def ports(self) -> dict[str, Port]:
        stack = self.module.transformer
        return {
            "embed": Port(stack.wte),
            "pos_embed": Port(stack.wpe),
            "ln_final": Port(stack.ln_f),
            "logits": Port(self.module.lm_head),
        }
