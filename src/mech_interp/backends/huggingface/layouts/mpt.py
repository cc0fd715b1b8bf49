"""MPT: ALiBi instead of positions, fused qkv that may be clipped, LayerNorm and no biases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import Block, Layout, Port, Sizes, in_heads, split_heads
from mech_interp.backends.huggingface.layouts.parts import norm_weights


class MptBlock(Block):
    """A `MptBlock` of transformers, in pieces."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.attention = module.attn
        self.n_heads: int = module.attn.n_heads
        self.scale = float(module.attn.softmax_scale)
        self.clip: float | None = module.attn.clip_qkv or None
        self.slopes = alibi_slopes(self.n_heads, module.attn.out_proj.weight.device)

    def norm1(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.norm_1(x)
        return out

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused = self.attention.Wqkv(x)
        if self.clip is not None:
            fused = fused.clamp(-self.clip, self.clip)
        q, k, v = fused.unflatten(-1, (3, self.n_heads, -1)).unbind(-3)
        return q, k, v

    def score_bias(self, query_positions: Tensor, n_keys: int) -> Tensor | None:
        """Slopes times minus the distance, [row or 1, head, query, key]; float32 whatever the weights."""
        keys = torch.arange(n_keys, device=query_positions.device)
        distance = query_positions[:, None, :, None] - keys
        return self.slopes.to(keys.device)[:, None, None] * -distance

    def attention_output(self, z: Tensor) -> Tensor:
        out: Tensor = self.attention.out_proj(z.flatten(-2))
        return out

    def norm2(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.norm_2(x)
        return out

    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.module.ffn.up_proj(x), None

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        out: Tensor = self.module.ffn.act(pre)
        return out

    def mlp_out(self, post: Tensor) -> Tensor:
        out: Tensor = self.module.ffn.down_proj(post)
        return out

    def weights(self) -> dict[str, Tensor]:
        own, mlp = self.attention, self.module.ffn
        w_q, w_k, w_v = own.Wqkv.weight.T.chunk(3, dim=1)
        found = {
            "W_Q": split_heads(w_q, self.n_heads),
            "W_K": split_heads(w_k, self.n_heads),
            "W_V": split_heads(w_v, self.n_heads),
            "W_O": own.out_proj.weight.T.reshape(self.n_heads, -1, own.hidden_size),
            "W_in": mlp.up_proj.weight.T,
            "W_out": mlp.down_proj.weight.T,
        }
        return found | norm_weights("ln1", self.module.norm_1) | norm_weights("ln2", self.module.norm_2)

    @property
    def attention_module(self) -> nn.Module:
        module: nn.Module = self.attention
        return module

    def ports(self) -> dict[str, Port]:
        block, own, mlp = self.module, self.attention, self.module.ffn
        found = {
            "resid_pre": Port(block, "input"),
            "ln1": Port(block.norm_1),
            "z": Port(own.out_proj, "input", in_heads(self.n_heads)),
            "attn_out_own": Port(own),
            "attn_out": Port(own),
            "resid_mid": Port(block.norm_2, "input"),
            "ln2": Port(block.norm_2),
            "mlp_pre": Port(mlp.up_proj),
            "mlp_post": Port(mlp.down_proj, "input"),
            # The library's MLP hands out its sum with the residual stream.
            "mlp_out_own": Port(mlp.down_proj),
            "mlp_out": Port(mlp.down_proj),
            "resid_post": Port(block),
        }
        if self.clip is None:  # no module shows queries, keys and values after clipping
            found |= {
                name: Port(own.Wqkv, view=_part_of_fused(part, self.n_heads))
                for part, name in enumerate("qkv")
            }
        return found


def _part_of_fused(part: int, n_heads: int) -> Callable[[Tensor], Tensor]:
    """A view of q, k or v in [..., 3 * heads * d_head]."""
    return lambda x: x.view(*x.shape[:-1], 3, n_heads, -1).select(-3, part)


def alibi_slopes(n_heads: int, device: torch.device) -> Tensor:
    """Slopes of ALiBi by head, float32: 2^(-8i/n) for n the next power of two, odd ones behind.

    Source: Press et al. 2022 (Train Short, Test Long), in the form used for MPT.
    """
    n = 2 ** math.ceil(math.log2(n_heads))
    slopes = 1.0 / torch.pow(2, torch.arange(1, n + 1, device=device).float() * (8 / n))
    return slopes if n == n_heads else torch.cat((slopes[1::2], slopes[::2]))[:n_heads]


class MptLayout(Layout):
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
        config = module.config
        self.module = module
        self.sizes = Sizes(
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.n_heads,
            d_model=config.d_model,
            d_head=config.d_model // config.n_heads,
            d_mlp=4 * config.d_model,
            vocabulary=config.vocab_size,
            context=config.max_seq_len,
        )
        self.blocks = [MptBlock(block) for block in module.transformer.blocks]

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.module.transformer.wte(ids)
        return out

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.module.transformer.norm_f
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        head: nn.Linear = self.module.lm_head
        return head

    def weights(self) -> dict[str, Tensor]:
        stack = self.module.transformer
        found = {"W_E": stack.wte.weight, "W_U": self.module.lm_head.weight.T}
        return found | norm_weights("ln_final", stack.norm_f)

    def ports(self) -> dict[str, Port]:
        stack = self.module.transformer
        return {
            "embed": Port(stack.wte),
            "ln_final": Port(stack.norm_f),
            "logits": Port(self.module.lm_head),
        }
