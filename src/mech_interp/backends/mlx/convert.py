"""Tensors between torch, where the platform works, and MLX."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def to_torch(value: mx.array) -> Tensor:
    """The same values on the CPU, in the same memory: neither side may write to it."""
    if value.dtype == mx.bfloat16:  # NumPy has no such type, so the bits travel as integers
        return torch.from_numpy(np.asarray(value.view(mx.uint16))).view(torch.bfloat16)
    return torch.from_numpy(np.asarray(value))


def to_mlx(value: Tensor) -> mx.array:
    """A copy in MLX."""
    value = value.detach().cpu().contiguous()
    if value.dtype == torch.bfloat16:
        return mx.array(value.view(torch.uint16).numpy()).view(mx.bfloat16)
    return mx.array(value.numpy())
