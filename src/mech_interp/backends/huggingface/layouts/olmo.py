"""OLMo: Llama with LayerNorm that has no parameters, and clipped queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Port, Rotary
from mech_interp.backends.huggingface.layouts.llama import LlamaBlock, LlamaLayout

# A literal of the library's norm, which keeps it nowhere.
_NORM_EPS = 1e-5


class WideRotaryBlock(LlamaBlock):
    """A Llama block whose queries and keys are turned in float32 and then rounded to their dtype."""

    def rotate(self, q: Tensor, k: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        turned_q, turned_k = super().rotate(q, k, rotary)
        return turned_q.to(q.dtype), turned_k.to(k.dtype)


class OlmoBlock(WideRotaryBlock):
    """An `OlmoDecoderLayer`. The sites q, k and v hold what attention uses: the clipped projections."""

    @property
    def clip(self) -> float | None:
        """Bound on the magnitude of queries, keys and values."""
        value: float | None = self.attention.config.clip_qkv
        return value

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(x)
        if self.clip is None:
            return q, k, v
        return q.clamp(-self.clip, self.clip), k.clamp(-self.clip, self.clip), v.clamp(-self.clip, self.clip)

    def norm_weights(self) -> dict[str, Tensor]:
        ones = torch.ones_like(self.attention.o_proj.weight[:, 0])
        return {"ln1.w": ones, "ln2.w": ones}

    def projection_ports(self) -> dict[str, Port]:
        return super().projection_ports() if self.clip is None else {}  # no module shows them clipped


class OlmoLayout(LlamaLayout):
    """`OlmoForCausalLM`."""

    model_type = "olmo"
    title = "OLMo"
    tiny: ClassVar[Mapping[str, Any]] = {**LlamaLayout.tiny, "clip_qkv": 1.0}
    norm: Literal["layer", "rms", "none"] = "layer"

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.blocks = [OlmoBlock(block, self.sizes) for block in self.decoder.layers]

    @property
    def norm_eps(self) -> float:
        return _NORM_EPS

    def weights(self) -> dict[str, Tensor]:
        return super().weights() | {"ln_final.w": torch.ones_like(self.unembedding.weight[0])}
