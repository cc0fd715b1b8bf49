"""A plain hook on the router of a mixture of experts: scores, chosen experts and their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mech_interp.backends.huggingface.block import Taps
from mech_interp.backends.huggingface.layouts.base import Block
from mech_interp.errors import InputError
from mech_interp.sites import Site

ROUTER_KINDS = ("router_logits", "expert_indices", "expert_weights")


def router_of(block: Block) -> nn.Module | None:
    """The module that gives scores, weights and experts of every token; None for other blocks."""
    gate = getattr(getattr(block.mixture, "module", None), "gate", None)
    return gate if isinstance(gate, nn.Module) else None


@contextmanager
def watching_router(block: Block, layer: int, taps: Taps, *, rows: int) -> Iterator[None]:
    """Show what a block's router gives while the context lasts; edited scores choose anew.

    Raises (in the forward):
        InputError: when an edit names an expert that does not exist.
    """
    router, mixture = router_of(block), block.mixture
    assert router is not None
    assert mixture is not None

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> tuple[Tensor, Tensor, Tensor]:
        scores, weights, chosen = (part.unflatten(0, (rows, -1)).clone() for part in output)
        edited = taps("router_logits", layer, scores)
        if edited is not scores or edited.requires_grad:  # gradients must pass through what was seen
            chosen, weights = mixture.choose(edited)
        chosen = taps("expert_indices", layer, chosen)
        if bool(((chosen < 0) | (chosen >= mixture.n_experts)).any()):
            raise InputError(
                f"{Site('expert_indices', layer)} was set to an expert that does not exist.",
                f"Use 0 to {mixture.n_experts - 1}.",
            )
        weights = taps("expert_weights", layer, weights)
        return edited.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1)

    handle = router.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
