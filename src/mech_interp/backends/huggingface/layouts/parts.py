"""Small helpers that several layouts share: activations, parameters by name, ALiBi slopes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


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
    """Factor and offset of a norm as `name`.w and `name`.b, where it has them."""
    found = present(w=getattr(norm, "weight", None), b=getattr(norm, "bias", None))
    return {f"{name}.{key}": value for key, value in found.items()}


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
