"""BLOOM: ALiBi instead of positions, a norm on the embedding, fused qkv by head, LayerNorm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import Layout, Port, Sizes
from mech_interp.backends.huggingface.layouts.parts import FusedBlock, alibi_slopes, by_key, norm_weights
from mech_interp.errors import CapabilityError


class BloomBlock(FusedBlock):
    """A `BloomBlock` of transformers, in pieces."""

    def __init__(self, module: Any, n_heads: int) -> None:
        super().__init__(module, module.self_attention, n_heads, n_heads)
        self.scale = float(module.self_attention.inv_norm_factor)
        self.slopes = alibi_slopes(n_heads, module.self_attention.dense.weight.device)

    def score_bias(self, query_positions: Tensor, n_keys: int) -> Tensor | None:
        return by_key(self.slopes, query_positions, n_keys, self.attention.dense.weight.dtype)

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        out: Tensor = self.module.mlp.gelu_impl(pre)
        return out


class BloomLayout(Layout):
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
        config = module.config
        if config.apply_residual_connection_post_layernorm:
            raise CapabilityError(
                "This BLOOM checkpoint keeps the output of its norms as the residual stream "
                "(apply_residual_connection_post_layernorm), so resid_pre is not what its blocks add to.",
                "Use a checkpoint without that option.",
            )
        self.module = module
        self.sizes = Sizes(
            n_layers=config.n_layer,
            n_heads=config.n_head,
            n_kv_heads=config.n_head,
            d_model=config.hidden_size,
            d_head=config.hidden_size // config.n_head,
            d_mlp=4 * config.hidden_size,
            vocabulary=config.vocab_size,
            # ALiBi itself has no end: this is the length that the checkpoint was trained for.
            context=getattr(config, "seq_length", None) or 2048,
        )
        self.blocks = [BloomBlock(block, config.n_head) for block in module.transformer.h]

    def embed(self, ids: Tensor) -> Tensor:
        stack = self.module.transformer
        out: Tensor = stack.word_embeddings_layernorm(stack.word_embeddings(ids))
        return out

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.module.transformer.ln_f
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        head: nn.Linear = self.module.lm_head
        return head

    def weights(self) -> dict[str, Tensor]:
        """W_E is the table itself; the norm ln_embed stands between it and the residual stream."""
        stack = self.module.transformer
        found = {"W_E": stack.word_embeddings.weight, "W_U": self.module.lm_head.weight.T}
        found |= norm_weights("ln_embed", stack.word_embeddings_layernorm)
        return found | norm_weights("ln_final", stack.ln_f)

    def ports(self) -> dict[str, Port]:
        stack = self.module.transformer
        return {
            "embed": Port(stack.word_embeddings_layernorm),
            "ln_final": Port(stack.ln_f),
            "logits": Port(self.module.lm_head),
        }
