"""The library's attention computed step by step, so that scores, patterns and turned queries can be seen.

The library lets every model of its newer architectures be switched to a registered attention function.
The one registered here does what the library's own eager functions do, with a tap between the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mech_interp.backends.huggingface.block import Taps

NAME = "mech_stepwise"
KINDS_INSIDE = ("rot_q", "rot_k", "attn_scores", "pattern")


@dataclass(frozen=True)
class _Steps:
    taps: Taps
    layers: Mapping[int, int]


_steps: ContextVar[_Steps | None] = ContextVar("mech_stepwise", default=None)


def goes_through_registry(module: Any) -> bool:
    """Whether a library model calls attention through the library's registry of attention functions."""
    can = getattr(module, "_can_set_attn_implementation", None)
    return bool(can is not None and can())


@contextmanager
def stepwise(module: Any, layers: Mapping[int, int], taps: Taps) -> Iterator[None]:
    """Run the model's attention step by step while the context lasts.

    `layers` gives the layer of each attention module by its `id`. The model's own setting comes back at
    the end, also after an error.
    """
    _register()
    before = module.config._attn_implementation
    token = _steps.set(_Steps(taps, layers))
    try:
        module.set_attn_implementation(NAME)
        yield
    finally:
        _steps.reset(token)
        module.set_attn_implementation(before)


@cache
def _register() -> None:
    """Make the function known to the library, with the masks that its eager attention takes."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Attention of one layer in the library's terms; tensors are [row, head, position, d_head].

    Returns z [row, position, head, d_head] and the pattern.
    """
    steps = _steps.get()
    assert steps is not None, "the attention function was called outside its context"
    layer, taps = steps.layers[id(module)], steps.taps
    query = taps("rot_q", layer, query.transpose(1, 2)).transpose(1, 2)
    key = taps("rot_k", layer, key.transpose(1, 2)).transpose(1, 2)
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    bias = options.get("position_bias")
    if bias is not None:
        scores = scores + bias
    scores = taps("attn_scores", layer, _masked(scores, attention_mask, module))
    wide = torch.promote_types(query.dtype, torch.float32)
    pattern = taps("pattern", layer, scores.softmax(-1, dtype=wide).to(value.dtype))
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def _masked(scores: Tensor, mask: Tensor | None, module: nn.Module) -> Tensor:
    """Scores with the lowest number there is at keys that a query does not see."""
    lowest = torch.finfo(scores.dtype).min
    if mask is None:
        if not getattr(module, "is_causal", True):
            return scores
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(hidden, lowest)
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, lowest)
    # Whatever is added that does not hide a key (a bias by distance) stays.
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    return (scores + mask).masked_fill(hidden, lowest)
