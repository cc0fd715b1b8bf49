"""Gemma 3: Gemma 2 with norms on queries and keys and a rotary base of its own in local layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Rotary
from mech_interp.backends.huggingface.layouts.gemma import GemmaLayout, factor
from mech_interp.backends.huggingface.layouts.gemma2 import Gemma2Block
from mech_interp.backends.huggingface.layouts.llama import LlamaLayout, layer_windows


class Gemma3Block(Gemma2Block):
    """A `Gemma3DecoderLayer`. Its norms on queries and keys, q_norm.w and k_norm.w [d_head], act per head."""

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention.q_norm(q), self.attention.k_norm(k)

    def norm_weights(self) -> dict[str, Tensor]:
        norms = {"q_norm.w": factor(self.attention.q_norm), "k_norm.w": factor(self.attention.k_norm)}
        return super().norm_weights() | norms


class Gemma3TextLayout(GemmaLayout):
    """`Gemma3ForCausalLM`.

    The library has an option for a cap on attention scores here, too, but never reads it.
    """

    model_type = "gemma3_text"
    title = "Gemma 3"
    tiny: ClassVar[Mapping[str, Any]] = {
        **LlamaLayout.tiny,
        "head_dim": 12,
        "query_pre_attn_scalar": 20,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "final_logit_softcapping": 4.0,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        },
    }

    def make_blocks(self) -> None:
        kinds = self.config.layer_types
        self.blocks = [Gemma3Block(block, self.sizes) for block in self.decoder.layers]
        for block, kind, window in zip(self.blocks, kinds, layer_windows(self.config), strict=True):
            block.rotary_kind, block.window = kind, window

    def rotary(self, like: Tensor, positions: Tensor) -> Rotary | None:
        kinds = dict.fromkeys(self.config.layer_types)
        return {kind: self.decoder.rotary_emb(like, positions, kind) for kind in kinds}


class Gemma3Layout(Gemma3TextLayout):
    """The language model of a `Gemma3ForConditionalGeneration`, which also reads images; text prompts alone.

    In this form the library ignores the final softcap.
    """

    model_type = "gemma3"
    title = "Gemma 3 (with vision)"
    tiny: ClassVar[Mapping[str, Any]] = {
        "text_config": Gemma3TextLayout.tiny,
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 96,
        "boi_token_index": 94,
        "eoi_token_index": 95,
    }

    @property
    def config(self) -> Any:
        return self.module.config.text_config

    @property
    def decoder(self) -> Any:
        return self.module.model.language_model

    @property
    def logit_cap(self) -> float | None:
        return None
