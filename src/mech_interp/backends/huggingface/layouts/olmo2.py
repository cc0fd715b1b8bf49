"""OLMo 2: Llama whose norms stand on the sublayers' outputs, with norms on whole queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Port, Sizes
from mech_interp.backends.huggingface.layouts.llama import LlamaLayout
from mech_interp.backends.huggingface.layouts.olmo import WideRotaryBlock


class Olmo2Block(WideRotaryBlock):
    """An `Olmo2DecoderLayer`: the sublayers read the stream as it is.

    The norms on queries and keys, q_norm.w and k_norm.w [heads, d_head], act on all heads together.
    """

    post_attention: Callable[[Tensor], Tensor]
    post_mlp: Callable[[Tensor], Tensor]

    def __init__(self, module: Any, sizes: Sizes) -> None:
        super().__init__(module, sizes)
        self.post_attention = module.post_attention_layernorm
        self.post_mlp = module.post_feedforward_layernorm

    def norm1(self, x: Tensor) -> Tensor:
        return x

    def norm2(self, x: Tensor) -> Tensor:
        return x

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q_norm, k_norm = self.attention.q_norm, self.attention.k_norm
        return q_norm(q.flatten(-2)).view_as(q), k_norm(k.flatten(-2)).view_as(k)

    def norm_weights(self) -> dict[str, Tensor]:
        return {
            "ln1_post.w": self.module.post_attention_layernorm.weight,
            "ln2_post.w": self.module.post_feedforward_layernorm.weight,
            "q_norm.w": self.attention.q_norm.weight.view(self.sizes.n_heads, -1),
            "k_norm.w": self.attention.k_norm.weight.view(self.sizes.n_kv_heads, -1),
        }

    def norm_ports(self) -> dict[str, Port]:
        return {
            "attn_out": Port(self.module.post_attention_layernorm),
            "resid_mid": Port(self.module.mlp, "input"),
            "mlp_out": Port(self.module.post_feedforward_layernorm),
        }


class Olmo2Layout(LlamaLayout):
    """`Olmo2ForCausalLM`."""

    model_type = "olmo2"
    title = "OLMo 2"
    tiny: ClassVar[Mapping[str, Any]] = LlamaLayout.tiny

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.blocks = [Olmo2Block(block, self.sizes) for block in self.decoder.layers]

    def missing_in(self, layer: int) -> dict[str, str]:
        why = f"{self.title} puts its norms on the sublayers' outputs; the input of"
        return super().missing_in(layer) | {
            "ln1": f"{why} attention is resid_pre",
            "ln2": f"{why} the MLP is resid_mid",
        }
