"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and sliding windows in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mech_interp.backends.huggingface.layouts.llama import LlamaLayout, layer_windows


class Qwen2Layout(LlamaLayout):
    """`Qwen2ForCausalLM`."""

    model_type = "qwen2"
    title = "Qwen2"
    tiny: ClassVar[Mapping[str, Any]] = {
        **LlamaLayout.tiny,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    }

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        for block, window in zip(self.blocks, layer_windows(self.config), strict=True):
            block.window = window
