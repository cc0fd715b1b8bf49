"""Falcon: fused qkv in groups or multi-query, rotary or ALiBi, parallel (with one or two norms) or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import Layout, Port, Rotary, Sizes
from mech_interp.backends.huggingface.layouts.parts import FusedBlock, alibi_slopes, by_key, norm_weights
from mech_interp.errors import CapabilityError


class FalconBlock(FusedBlock):
    """A `FalconDecoderLayer` of transformers, in pieces."""

    def __init__(self, module: Any, sizes: Sizes, config: Any) -> None:
        attention = module.self_attention
        super().__init__(module, attention, sizes.n_heads, sizes.n_kv_heads)
        self.scale = float(attention.inv_norm_factor)
        self.parallel = bool(config.new_decoder_architecture or config.parallel_attn)
        if config.new_decoder_architecture and config.num_ln_in_parallel_attn == 2:
            self.first, self.second = module.ln_attn, module.ln_mlp
        self.shared_norm = self.parallel and self.second is None
        self.slopes: Tensor | None = None
        if config.alibi:
            # The library rounds slopes to bfloat16 whatever the weights are.
            self.slopes = alibi_slopes(sizes.n_heads, attention.dense.weight.device).bfloat16()
        else:
            self.rotary_kind = "default"

    def score_bias(self, query_positions: Tensor, n_keys: int) -> Tensor | None:
        if self.slopes is None:
            return None
        # Falcon scales the bias together with q·k.
        dtype = self.attention.dense.weight.dtype
        return by_key(self.slopes, query_positions, n_keys, torch.bfloat16).to(dtype) * self.scale


class FalconLayout(Layout):
    """`FalconForCausalLM`."""

    model_type = "falcon"
    title = "Falcon"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "max_position_embeddings": 24,
        "hidden_size": 32,
        "ffn_hidden_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }

    def __init__(self, module: Any) -> None:
        config = module.config
        if config.alibi and config._attn_implementation == "eager":
            raise CapabilityError(
                "This Falcon checkpoint uses ALiBi, which the library's eager attention adds twice, so that "
                "it computes another model than the one that was trained.",
                "Open it with attention sdpa.",
            )
        self.module = module
        self.rotary_positions = not config.alibi
        attention = module.transformer.h[0].self_attention
        self.sizes = Sizes(
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=attention.num_kv_heads,
            d_model=config.hidden_size,
            d_head=config.hidden_size // config.num_attention_heads,
            d_mlp=config.ffn_hidden_size,
            vocabulary=config.vocab_size,
            context=config.max_position_embeddings,
        )
        self.blocks = [FalconBlock(block, self.sizes, config) for block in module.transformer.h]

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.module.transformer.word_embeddings(ids)
        return out

    def rotary(self, like: Tensor, positions: Tensor) -> Rotary | None:
        if not self.rotary_positions:
            return None
        cos, sin = self.module.transformer.rotary_emb(like, position_ids=positions)
        return {"default": (cos, sin)}

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.module.transformer.ln_f
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        head: nn.Linear = self.module.lm_head
        return head

    def weights(self) -> dict[str, Tensor]:
        stack = self.module.transformer
        found = {"W_E": stack.word_embeddings.weight, "W_U": self.module.lm_head.weight.T}
        return found | norm_weights("ln_final", stack.ln_f)

    def ports(self) -> dict[str, Port]:
        stack = self.module.transformer
        return {
            "embed": Port(stack.word_embeddings),
            "ln_final": Port(stack.ln_f),
            "logits": Port(self.module.lm_head),
        }
