"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mech_interp.backends.huggingface.layouts.llama import LlamaLayout


class MistralLayout(LlamaLayout):
    """`MistralForCausalLM`. The library gives all layers one window (or none) and reads no layer types."""

    model_type = "mistral"
    title = "Mistral"
    tiny: ClassVar[Mapping[str, Any]] = {**LlamaLayout.tiny, "head_dim": 12, "sliding_window": 5}

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        for block in self.blocks:
            block.window = self.config.sliding_window
