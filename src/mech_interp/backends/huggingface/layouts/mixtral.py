"""Mixtral: Llama with a mixture of experts in every layer, its weights normalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mech_interp.backends.huggingface.layouts.experts import ExpertsBlock, make_runnable
from mech_interp.backends.huggingface.layouts.llama import LlamaLayout


class MixtralLayout(LlamaLayout):
    """`MixtralForCausalLM`."""

    model_type = "mixtral"
    title = "Mixtral"
    tiny: ClassVar[Mapping[str, Any]] = {
        **LlamaLayout.tiny,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": 6,
    }

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        make_runnable(module)
        self.blocks = [
            ExpertsBlock(block, self.sizes, normalised=True, wide_weights=True)
            for block in module.model.layers
        ]
        for block in self.blocks:
            block.window = module.config.sliding_window
