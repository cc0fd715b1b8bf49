"""Qwen3-MoE: q/k norms per head, a mixture of experts in most layers and a gated MLP in the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from mech_interp.backends.huggingface.layouts.experts import ExpertsBlock, make_runnable
from mech_interp.backends.huggingface.layouts.llama import LlamaLayout


class Qwen3MoeBlock(ExpertsBlock):
    """A `Qwen3MoeDecoderLayer`."""

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention.q_norm(q), self.attention.k_norm(k)

    def attention_weights(self) -> dict[str, Tensor]:
        norms = {"q_norm.w": self.attention.q_norm.weight, "k_norm.w": self.attention.k_norm.weight}
        return super().attention_weights() | norms


class Qwen3MoeLayout(LlamaLayout):
    """`Qwen3MoeForCausalLM`."""

    model_type = "qwen3_moe"
    title = "Qwen3-MoE"
    tiny: ClassVar[Mapping[str, Any]] = {
        **LlamaLayout.tiny,
        "head_dim": 8,
        "moe_intermediate_size": 24,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    }

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        make_runnable(module)
        config = module.config
        self.blocks = [
            Qwen3MoeBlock(block, self.sizes, normalised=config.norm_topk_prob)
            for block in module.model.layers
        ]
        for block in self.blocks:
            block.window = config.sliding_window
        if all(block.mixture is not None for block in self.blocks):
            # Without a dense layer, the size that is meant is that of an expert.
            self.sizes = replace(self.sizes, d_mlp=config.moe_intermediate_size)
