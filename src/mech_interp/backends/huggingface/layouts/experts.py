"""Llama-like blocks whose MLP is a mixture of experts behind a top-k router."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mech_interp.backends.huggingface.layouts.base import Mixture, Port, Sizes
from mech_interp.backends.huggingface.layouts.llama import LlamaBlock


class RoutedExperts(Mixture):
    """A library's sparse MLP module: a linear router over experts that are gated MLPs.

    The chosen experts are those with the largest softmax probabilities; their weights are these
    probabilities, divided by their sum where `normalised`. The library computes them in float32 and
    some architectures keep them so (`wide_weights`) in narrower models.
    """

    def __init__(self, module: Any, *, normalised: bool, wide_weights: bool = False) -> None:
        self.module = module
        self.n_experts = int(module.gate.num_experts)
        self.n_chosen = int(module.gate.top_k)
        self.normalised, self.wide_weights = normalised, wide_weights

    def router_logits(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.module.gate.weight)

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        weights, chosen = logits.softmax(-1, dtype=wide).topk(self.n_chosen, dim=-1)
        if self.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        return chosen, weights if self.wide_weights else weights.to(logits.dtype)

    def mix(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        # The library's own experts, over a flat list of tokens. They handle each slot by itself, so an
        # expert that an edit put in two slots counts twice.
        out: Tensor = self.module.experts(x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1))
        return out.view_as(x)

    def weights(self) -> dict[str, Tensor]:
        """W_router [d_model, expert], and the experts' W_gate, W_in, W_out with a leading expert axis."""
        gate, linear = self.module.experts.gate_up_proj.mT.chunk(2, dim=-1)
        return {
            "W_router": self.module.gate.weight.T,
            "W_gate": gate,
            "W_in": linear,
            "W_out": self.module.experts.down_proj.mT,
        }


def make_runnable(module: Any) -> None:
    """Choose a library implementation of experts that can compute in the model's dtype.

    The library's default, grouped matrix products, has no float64; its plain loop has.
    """
    if next(module.parameters()).dtype is torch.float64:
        module.set_experts_implementation("eager")


class ExpertsBlock(LlamaBlock):
    """A decoder layer whose `mlp` is a mixture of experts; in some architectures not in every layer."""

    mixture: RoutedExperts | None = None

    def __init__(self, module: Any, sizes: Sizes, *, normalised: bool, wide_weights: bool = False) -> None:
        super().__init__(module, sizes)
        if hasattr(module.mlp, "experts"):
            self.mixture = RoutedExperts(module.mlp, normalised=normalised, wide_weights=wide_weights)

    def weights(self) -> dict[str, Tensor]:
        if self.mixture is None:
            return super().weights()
        return self.attention_weights() | self.mixture.weights()

    def ports(self) -> dict[str, Port]:
        if self.mixture is None:
            return super().ports()
        return self.sublayer_ports()
