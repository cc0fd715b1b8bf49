"""Comparing what two backends show at a site."""

from __future__ import annotations

import torch
from tiny_models import largest_gap
from torch import Tensor

from mech_interp.backends.tokens import Tokens
from mech_interp.sites import Site


def real(value: Tensor, site: Site, tokens: Tokens, causal: bool) -> Tensor:
    """Values at real positions; keys that no query may see are zero."""
    value = value.detach().double()
    if site.spec.over_keys:
        value = value.transpose(1, 2)
        seen = tokens.mask[:, None, None, :]
        if causal:
            n = value.shape[-1]
            seen = seen & torch.ones(n, n, dtype=torch.bool).tril()[:, None, :]
        value = value.masked_fill(~seen | (value < -1e30), 0)
    return value[tokens.mask]


def close(left: Tensor, right: Tensor, bound: float = 1e-4) -> bool:
    """Equal relative to the largest value."""
    return largest_gap(left, right) <= bound * max(1.0, float(right.detach().abs().max()))
