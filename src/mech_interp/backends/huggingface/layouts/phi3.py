"""Phi-3: Llama with fused projections, partial rotary embedding, and a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Port, in_heads, split_heads
from mech_interp.backends.huggingface.layouts.llama import LlamaBlock, LlamaLayout


class Phi3Block(LlamaBlock):
    """A `Phi3DecoderLayer`: one projection gives queries, keys and values, one gate and linear branch."""

    @property
    def _counts(self) -> tuple[int, int, int]:
        return self.sizes.n_heads, self.sizes.n_kv_heads, self.sizes.n_kv_heads

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.attention.qkv_proj(x).unflatten(-1, (-1, self.sizes.d_head)).split(self._counts, -2)
        return q, k, v

    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        gate, linear = self.module.mlp.gate_up_proj(x).chunk(2, dim=-1)
        return gate, linear

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        out: Tensor = linear * self.module.mlp.activation_fn(pre)
        return out

    def attention_weights(self) -> dict[str, Tensor]:
        parts = self.attention.qkv_proj.weight.T.split([n * self.sizes.d_head for n in self._counts], -1)
        split = (split_heads(part, n) for part, n in zip(parts, self._counts, strict=True))
        w_o = self.attention.o_proj.weight.T.reshape(self.sizes.n_heads, -1, self.sizes.d_model)
        return dict(zip(("W_Q", "W_K", "W_V"), split, strict=True)) | {"W_O": w_o} | self.norm_weights()

    def weights(self) -> dict[str, Tensor]:
        gate, linear = self.module.mlp.gate_up_proj.weight.T.chunk(2, dim=-1)
        found = {"W_gate": gate, "W_in": linear, "W_out": self.module.mlp.down_proj.weight.T}
        return self.attention_weights() | found

    def ports(self) -> dict[str, Port]:
        mlp, half = self.module.mlp, self.sizes.d_mlp
        return self.sublayer_ports() | {
            "mlp_pre": Port(mlp.gate_up_proj, view=lambda x: x[..., :half]),
            "mlp_pre_linear": Port(mlp.gate_up_proj, view=lambda x: x[..., half:]),
            "mlp_post": Port(mlp.down_proj, "input"),
        }

    def projection_ports(self) -> dict[str, Port]:
        heads = in_heads(sum(self._counts))
        first, second = self.sizes.n_heads, self.sizes.n_heads + self.sizes.n_kv_heads

        def part(begin: int, end: int | None) -> Callable[[Tensor], Tensor]:
            return lambda x: heads(x)[..., begin:end, :]

        views = {"q": part(0, first), "k": part(first, second), "v": part(second, None)}
        return {kind: Port(self.attention.qkv_proj, view=view) for kind, view in views.items()}


class Phi3Layout(LlamaLayout):
    """`Phi3ForCausalLM` (Phi-3, Phi-3.5, Phi-4)."""

    model_type = "phi3"
    title = "Phi-3"
    tiny: ClassVar[Mapping[str, Any]] = {
        **LlamaLayout.tiny,
        "sliding_window": 5,
        "max_position_embeddings": 48,
        "original_max_position_embeddings": 24,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.5, 2.5],
            "long_factor": [1.0, 4.0, 9.0],
            "original_max_position_embeddings": 24,
        },
    }

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.blocks = [Phi3Block(block, self.sizes) for block in self.decoder.layers]
        for block in self.blocks:
            block.window = self.config.sliding_window
