"""Qwen3: Llama with norms on each head's queries and keys, and sliding windows in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mech_interp.backends.huggingface.layouts.llama import LlamaBlock, LlamaLayout, layer_windows


class Qwen3Block(LlamaBlock):
    """A `Qwen3DecoderLayer`. Its norms on queries and keys, q_norm.w and k_norm.w [d_head], act per head."""

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention.q_norm(q), self.attention.k_norm(k)

    def norm_weights(self) -> dict[str, Tensor]:
        norms = {"q_norm.w": self.attention.q_norm.weight, "k_norm.w": self.attention.k_norm.weight}
        return super().norm_weights() | norms


class Qwen3Layout(LlamaLayout):
    """`Qwen3ForCausalLM`."""

    model_type = "qwen3"
    title = "Qwen3"
    tiny: ClassVar[Mapping[str, Any]] = {
        **LlamaLayout.tiny,
        "head_dim": 12,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    }

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.blocks = [Qwen3Block(block, self.sizes) for block in self.decoder.layers]
        for block, window in zip(self.blocks, layer_windows(self.config), strict=True):
            block.window = window
