"""BLOOM: ALiBi instead of positions, a norm on the embedding, fused qkv by head, LayerNorm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Port
from mech_interp.backends.huggingface.layouts.fused import GroupedBlock
from mech_interp.backends.huggingface.layouts.parts import alibi_slopes, by_key, norm_weights
from mech_interp.backends.huggingface.layouts.plain import PlainLayout, sizes_of
from mech_interp.errors import CapabilityError


class BloomBlock(GroupedBlock):
    """A `BloomBlock` of transformers, in pieces."""

    def __init__(self, module: Any, n_heads: int) -> None:
        super().__init__(module, module.self_attention, n_heads)
        self.act = module.mlp.gelu_impl
        self.scale = float(module.self_attention.inv_norm_factor)
        self.slopes = alibi_slopes(n_heads, self.out.weight.device)

    def score_bias(self, query_positions: Tensor, n_keys: int) -> Tensor | None:
        return by_key(self.slopes, query_positions, n_keys, self.out.weight.dtype)


class BloomLayout(PlainLayout):
    """`BloomForCausalLM`."""

    model_type = "bloom"
    title = "BLOOM"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "n_layer": 3,
        "n_head": 4,
        "seq_length": 24,
    }

    def __init__(self, module: Any) -> None:
        config, stack = module.config, module.transformer
        if config.apply_residual_connection_post_layernorm:
            raise CapabilityError(
                "This BLOOM checkpoint keeps the output of its norms as the residual stream "
                "(apply_residual_connection_post_layernorm), so resid_pre is not what its blocks add to.",
                "Use a checkpoint without that option.",
            )
        self.module = module
        # ALiBi itself has no end: this is the length that the checkpoint was trained for.
        context = getattr(config, "seq_length", None) or 2048
        self.sizes = sizes_of(config, d_mlp=4 * config.hidden_size, context=context)
        self.blocks = [BloomBlock(block, config.n_head) for block in stack.h]
        self.embedding, self.embedding_norm = stack.word_embeddings, stack.word_embeddings_layernorm
        self.final_norm, self.unembedding = stack.ln_f, module.lm_head

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.embedding_norm(self.embedding(ids))
        return out

    def weights(self) -> dict[str, Tensor]:
        """W_E is the table itself; the norm ln_embed stands between it and the residual stream."""
        return super().weights() | norm_weights("ln_embed", self.embedding_norm)

    def ports(self) -> dict[str, Port]:
        return super().ports() | {"embed": Port(self.embedding_norm)}
