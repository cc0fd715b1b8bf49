"""What several layouts share: fused projections in head groups, ALiBi slopes, small helpers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mech_interp.backends.huggingface.layouts.base import Block, Port, in_heads


class FusedBlock(Block):
    """A block with one projection for q, k and v, by the names of GPT-NeoX, BLOOM and Falcon.

    The projection holds, for each key/value head, its query heads, its key and its value. `first` and
    `second` are the norms before attention and MLP; `second` is None where one norm serves both.
    """

    def __init__(self, module: Any, attention: Any, n_heads: int, n_kv_heads: int) -> None:
        self.module, self.attention = module, attention
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.first: Any = getattr(module, "input_layernorm", None)
        self.second: Any = getattr(module, "post_attention_layernorm", None)

    def _grouped(self, x: Tensor) -> Tensor:
        """[..., features] as [..., kv_head, query heads + 2, d_head]."""
        return x.view(*x.shape[:-1], self.n_kv_heads, self.n_heads // self.n_kv_heads + 2, -1)

    def norm1(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x)
        return out

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused = self._grouped(self.attention.query_key_value(x))
        return fused[..., :-2, :].flatten(-3, -2), fused[..., -2, :], fused[..., -1, :]

    def attention_output(self, z: Tensor) -> Tensor:
        out: Tensor = self.attention.dense(z.flatten(-2))
        return out

    def norm2(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(x)
        return out

    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.module.mlp.dense_h_to_4h(x), None

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        return activate(self.module.mlp.act, pre)

    def mlp_out(self, post: Tensor) -> Tensor:
        out: Tensor = self.module.mlp.dense_4h_to_h(post)
        return out

    def weights(self) -> dict[str, Tensor]:
        fused, dense, mlp = self.attention.query_key_value, self.attention.dense, self.module.mlp
        d_model = fused.weight.shape[1]
        # [d_model, kv_head, query heads + 2, d_head]
        w = self._grouped(fused.weight.T)
        found = {
            "W_Q": w[:, :, :-2].flatten(1, 2).transpose(0, 1),
            "W_K": w[:, :, -2].transpose(0, 1),
            "W_V": w[:, :, -1].transpose(0, 1),
            "W_O": dense.weight.T.reshape(self.n_heads, -1, d_model),
            "W_in": mlp.dense_h_to_4h.weight.T,
            "W_out": mlp.dense_4h_to_h.weight.T,
        }
        if fused.bias is not None:
            b = self._grouped(fused.bias)
            found |= {"b_Q": b[:, :-2].flatten(0, 1), "b_K": b[:, -2], "b_V": b[:, -1]}
        found |= present(b_O=dense.bias, b_in=mlp.dense_h_to_4h.bias, b_out=mlp.dense_4h_to_h.bias)
        found |= norm_weights("ln1", self.first)
        return found if self.second is None else found | norm_weights("ln2", self.second)

    @property
    def attention_module(self) -> nn.Module:
        module: nn.Module = self.attention
        return module

    def ports(self) -> dict[str, Port]:
        fused, dense, mlp = self.attention.query_key_value, self.attention.dense, self.module.mlp
        found = {
            "resid_pre": Port(self.module, "input"),
            "ln1": Port(self.first),
            "k": Port(fused, view=lambda x: self._grouped(x)[..., -2, :]),
            "v": Port(fused, view=lambda x: self._grouped(x)[..., -1, :]),
            "z": Port(dense, "input", in_heads(self.n_heads)),
            # The library's own attention and MLP may hand out their sum with the residual stream.
            "attn_out_own": Port(dense),
            "attn_out": Port(dense),
            "mlp_pre": Port(mlp.dense_h_to_4h),
            "mlp_post": Port(mlp.dense_4h_to_h, "input"),
            "mlp_out_own": Port(mlp.dense_4h_to_h),
            "mlp_out": Port(mlp.dense_4h_to_h),
            "resid_post": Port(self.module),
        }
        if self.n_kv_heads == self.n_heads:
            found["q"] = Port(fused, view=lambda x: self._grouped(x)[..., 0, :])
        elif self.n_kv_heads == 1:
            found["q"] = Port(fused, view=lambda x: self._grouped(x)[..., 0, :-2, :])
        # Otherwise queries lie in several runs of the projection, and no view joins them.
        if self.second is not None:
            found["ln2"] = Port(self.second)
            if not self.parallel:
                found["resid_mid"] = Port(self.second, "input")
        return found


def activate(act: Any, pre: Tensor) -> Tensor:
    """The library's activation; its tanh GELU by the fused kernel where that agrees to rounding."""
    if type(act).__name__ == "NewGELUActivation" and pre.dtype in (torch.float32, torch.float64):
        # Spelled out it takes eight passes over memory; narrow types round between those, so keep them.
        return functional.gelu(pre, approximate="tanh")
    out: Tensor = act(pre)
    return out


def present(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The tensors that are there, by name."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def norm_weights(name: str, norm: Any) -> dict[str, Tensor]:
    """Factor and offset of a LayerNorm as `name`.w and `name`.b, where it has them."""
    return {f"{name}.{key}": value for key, value in present(w=norm.weight, b=norm.bias).items()}


def head_biases(n_heads: int, **linears: Any) -> dict[str, Tensor]:
    """The biases of projections to heads, [head, d_head], where they have one."""
    found = present(**{name: linear.bias for name, linear in linears.items()})
    return {name: bias.view(n_heads, -1) for name, bias in found.items()}


def alibi_slopes(n_heads: int, device: torch.device) -> Tensor:
    """Slopes of ALiBi by head, float32: a geometric sequence, with every other of the next one behind.

    Source: Press et al. 2022 (Train Short, Test Long), in the form used for BLOOM.
    """
    whole = 2 ** math.floor(math.log2(n_heads))

    def sequence(n: int, exponents: Tensor) -> Tensor:
        base = torch.full((), 2 ** -(2 ** (3 - math.log2(n))), dtype=torch.float32, device=device)
        return base.pow(exponents)

    first = sequence(whole, torch.arange(1, whole + 1, device=device))
    rest = torch.arange(1, max(1, 2 * (n_heads - whole)), 2, device=device)
    return torch.cat((first, sequence(2 * whole, rest)))


def by_key(slopes: Tensor, query_positions: Tensor, n_keys: int, dtype: torch.dtype) -> Tensor:
    """slopes [head] times the key's position, [1, head, query, key].

    The softmax sees no difference to slopes times the distance, as scores of one query move together.
    """
    keys = torch.arange(n_keys, device=query_positions.device)
    bias = (slopes.to(keys.device)[:, None] * keys).to(dtype)
    return bias[None, :, None].expand(-1, -1, query_positions.shape[1], -1)
