"""Gemma: Llama with a scaled embedding and norms that multiply by 1 + w."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Port
from mech_interp.backends.huggingface.layouts.llama import LlamaBlock, LlamaLayout
from mech_interp.errors import CapabilityError


def factor(norm: Any) -> Tensor:
    """What a Gemma norm multiplies by: 1 + w, in at least float32, as the library computes it."""
    weight: Tensor = norm.weight
    return 1 + weight.to(torch.promote_types(weight.dtype, torch.float32))


class GemmaBlock(LlamaBlock):
    """A `GemmaDecoderLayer`."""

    def norm_weights(self) -> dict[str, Tensor]:
        return {
            "ln1.w": factor(self.module.input_layernorm),
            "ln2.w": factor(self.module.post_attention_layernorm),
        }


class GemmaLayout(LlamaLayout):
    """`GemmaForCausalLM`. W_E is the checkpoint's own; the embed site is sqrt(d_model) times its rows."""

    model_type = "gemma"
    title = "Gemma"
    tiny: ClassVar[Mapping[str, Any]] = {**LlamaLayout.tiny, "head_dim": 12, "num_key_value_heads": 1}

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        if getattr(self.config, "use_bidirectional_attention", None):
            raise CapabilityError(
                f"This {self.title} checkpoint sets use_bidirectional_attention; its layout is for causal "
                "attention.",
                "Use a causal checkpoint.",
            )
        self.make_blocks()

    def make_blocks(self) -> None:
        """Open the decoder layers."""
        self.blocks = [GemmaBlock(block, self.sizes) for block in self.decoder.layers]

    @property
    def logit_cap(self) -> float | None:
        """The final softcap."""
        value: float | None = getattr(self.config, "final_logit_softcapping", None)
        return value

    def softcap(self, logits: Tensor) -> Tensor:
        cap = self.logit_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def weights(self) -> dict[str, Tensor]:
        return super().weights() | {"ln_final.w": factor(self.final_norm)}

    def ports(self) -> dict[str, Port]:
        found = super().ports()
        if self.logit_cap is not None:
            del found["logits"]  # no module shows them after the softcap
        return found
