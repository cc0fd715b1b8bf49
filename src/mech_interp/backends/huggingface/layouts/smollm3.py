"""SmolLM3: Llama without positions in some layers, which may have a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mech_interp.backends.huggingface.layouts.llama import LlamaLayout, layer_windows


class SmolLM3Layout(LlamaLayout):
    """`SmolLM3ForCausalLM`."""

    model_type = "smollm3"
    title = "SmolLM3"
    tiny: ClassVar[Mapping[str, Any]] = {
        **LlamaLayout.tiny,
        "no_rope_layers": [1, 0, 1],
        "use_sliding_window": True,
        "sliding_window": 5,
    }

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        for block, window in zip(self.blocks, layer_windows(self.config), strict=True):
            block.window = window
            if not block.attention_module.use_rope:
                block.rotary_kind = None
