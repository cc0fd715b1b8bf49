"""Gemma 2: Gemma with norms on both sides of each sublayer, softcaps, and alternate local layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Port, Sizes
from mech_interp.backends.huggingface.layouts.gemma import GemmaLayout, factor
from mech_interp.backends.huggingface.layouts.llama import LlamaBlock, LlamaLayout, layer_windows
from mech_interp.errors import CapabilityError


class Gemma2Block(LlamaBlock):
    """A `Gemma2DecoderLayer`."""

    post_attention: Callable[[Tensor], Tensor]
    post_mlp: Callable[[Tensor], Tensor]

    def __init__(self, module: Any, sizes: Sizes) -> None:
        super().__init__(module, sizes)
        self.post_attention = module.post_attention_layernorm
        self.post_mlp = module.post_feedforward_layernorm

    def norm2(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.pre_feedforward_layernorm(x)
        return out

    def norm_weights(self) -> dict[str, Tensor]:
        block = self.module
        return {
            "ln1.w": factor(block.input_layernorm),
            "ln1_post.w": factor(block.post_attention_layernorm),
            "ln2.w": factor(block.pre_feedforward_layernorm),
            "ln2_post.w": factor(block.post_feedforward_layernorm),
        }

    def norm_ports(self) -> dict[str, Port]:
        block = self.module
        return {
            "ln1": Port(block.input_layernorm),
            "attn_out": Port(block.post_attention_layernorm),
            "resid_mid": Port(block.pre_feedforward_layernorm, "input"),
            "ln2": Port(block.pre_feedforward_layernorm),
            "mlp_out": Port(block.post_feedforward_layernorm),
        }


class Gemma2Layout(GemmaLayout):
    """`Gemma2ForCausalLM`.

    The library caps attention scores under eager attention alone, so that is what it is run with.
    """

    model_type = "gemma2"
    title = "Gemma 2"
    tiny: ClassVar[Mapping[str, Any]] = {
        **LlamaLayout.tiny,
        "head_dim": 12,
        "query_pre_attn_scalar": 20,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 4.0,
    }

    def make_blocks(self) -> None:
        config = self.config
        if config.attn_logit_softcapping is not None and config._attn_implementation == "sdpa":
            raise CapabilityError(
                f"{self.title} caps its attention scores, which fused attention cannot do.",
                "Load it with eager attention.",
            )
        self.blocks = [Gemma2Block(block, self.sizes) for block in self.decoder.layers]
        for block, window in zip(self.blocks, layer_windows(config), strict=True):
            block.window, block.score_cap = window, config.attn_logit_softcapping
