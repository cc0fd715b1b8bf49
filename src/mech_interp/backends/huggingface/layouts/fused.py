"""Plain blocks with one projection for queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Port, split_heads
from mech_interp.backends.huggingface.layouts.plain import PlainBlock


class ThirdsBlock(PlainBlock):
    """A block whose projection `fused` holds all queries, then all keys, then all values."""

    fused: Any

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.fused(x).unflatten(-1, (3, self.n_heads, -1)).unbind(-3)
        return q, k, v

    def qkv_weights(self) -> dict[str, Tensor]:
        w_q, w_k, w_v = (split_heads(w, self.n_heads) for w in self.matrix(self.fused).chunk(3, dim=1))
        found = {"W_Q": w_q, "W_K": w_k, "W_V": w_v}
        if self.fused.bias is not None:
            b_q, b_k, b_v = self.fused.bias.view(3, self.n_heads, -1).unbind(0)
            found |= {"b_Q": b_q, "b_K": b_k, "b_V": b_v}
        return found

    def qkv_ports(self) -> dict[str, Port]:
        return {name: Port(self.fused, view=_third(part, self.n_heads)) for part, name in enumerate("qkv")}


def _third(part: int, n_heads: int) -> Callable[[Tensor], Tensor]:
    """A view of q, k or v in [..., 3 * heads * d_head]."""
    return lambda x: x.view(*x.shape[:-1], 3, n_heads, -1).select(-3, part)


class GroupedBlock(PlainBlock):
    """A block by the names of GPT-NeoX, BLOOM and Falcon.

    The projection holds, for each key/value head, its query heads, its key and its value.
    """

    def __init__(self, module: Any, attention: Any, n_heads: int, n_kv_heads: int | None = None) -> None:
        super().__init__(module, attention, n_heads, n_kv_heads)
        self.first = getattr(module, "input_layernorm", None)
        self.second = getattr(module, "post_attention_layernorm", None)
        self.fused = attention.query_key_value
        # The library's own attention and MLP may hand out their sum with the residual stream.
        self.out = self.attention_end = attention.dense
        self.up = module.mlp.dense_h_to_4h
        self.down = self.mlp_end = module.mlp.dense_4h_to_h

    def _grouped(self, x: Tensor) -> Tensor:
        """[..., features] as [..., kv_head, query heads + 2, d_head]."""
        return x.view(*x.shape[:-1], self.n_kv_heads, self.n_heads // self.n_kv_heads + 2, -1)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused = self._grouped(self.fused(x))
        return fused[..., :-2, :].flatten(-3, -2), fused[..., -2, :], fused[..., -1, :]

    def qkv_weights(self) -> dict[str, Tensor]:
        # [d_model, kv_head, query heads + 2, d_head]
        w = self._grouped(self.matrix(self.fused))
        found = {
            "W_Q": w[:, :, :-2].flatten(1, 2).transpose(0, 1),
            "W_K": w[:, :, -2].transpose(0, 1),
            "W_V": w[:, :, -1].transpose(0, 1),
        }
        if self.fused.bias is not None:
            b = self._grouped(self.fused.bias)
            found |= {"b_Q": b[:, :-2].flatten(0, 1), "b_K": b[:, -2], "b_V": b[:, -1]}
        return found

    def qkv_ports(self) -> dict[str, Port]:
        found = {
            "k": Port(self.fused, view=lambda x: self._grouped(x)[..., -2, :]),
            "v": Port(self.fused, view=lambda x: self._grouped(x)[..., -1, :]),
        }
        if self.n_kv_heads == self.n_heads:
            found["q"] = Port(self.fused, view=lambda x: self._grouped(x)[..., 0, :])
        elif self.n_kv_heads == 1:
            found["q"] = Port(self.fused, view=lambda x: self._grouped(x)[..., 0, :-2, :])
        # Otherwise queries lie in several runs of the projection, and no view joins them.
        return found
