"""OLMoE: a mixture of experts in every layer, q/k norms over whole projections, clipping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Port, Sizes
from mech_interp.backends.huggingface.layouts.experts import ExpertsBlock, make_runnable
from mech_interp.backends.huggingface.layouts.llama import LlamaLayout


class OlmoeBlock(ExpertsBlock):
    """An `OlmoeDecoderLayer`.

    The library clips queries, keys and values after the q/k norms. The v site is what attention uses,
    so it is clipped already; q and k are tapped before their norms.
    """

    def __init__(self, module: Any, sizes: Sizes, *, normalised: bool, clip: float | None) -> None:
        super().__init__(module, sizes, normalised=normalised)
        self.clip = clip

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(x)
        return q, k, self._clipped(v)

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (
            norm(x.flatten(-2)).view_as(x)
            for norm, x in ((self.attention.q_norm, q), (self.attention.k_norm, k))
        )
        return self._clipped(q), self._clipped(k)

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def attention_weights(self) -> dict[str, Tensor]:
        norms = {"q_norm.w": self.attention.q_norm.weight, "k_norm.w": self.attention.k_norm.weight}
        return super().attention_weights() | norms

    def ports(self) -> dict[str, Port]:
        # The library clips outside of its modules, so none of them shows the values attention uses.
        return {kind: port for kind, port in super().ports().items() if self.clip is None or kind != "v"}


class OlmoeLayout(LlamaLayout):
    """`OlmoeForCausalLM`."""

    model_type = "olmoe"
    title = "OLMoE"
    tiny: ClassVar[Mapping[str, Any]] = {
        **LlamaLayout.tiny,
        "num_experts": 6,
        "num_experts_per_tok": 3,
    }

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        make_runnable(module)
        config = module.config
        self.blocks = [
            OlmoeBlock(block, self.sizes, normalised=config.norm_topk_prob, clip=config.clip_qkv)
            for block in module.model.layers
        ]
