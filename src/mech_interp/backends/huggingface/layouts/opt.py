"""OPT: learned positions from an offset of two, ReLU, LayerNorm before each sublayer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mech_interp.backends.huggingface.layouts.plain import TINY, PlainLayout, SeparateBlock, sizes_of
from mech_interp.errors import CapabilityError


class OPTBlock(SeparateBlock):
    """An `OPTDecoderLayer` of transformers, in pieces. q is before the scaling by 1/sqrt(d_head)."""

    def __init__(self, module: Any) -> None:
        own = module.self_attn
        super().__init__(module, own, own.num_heads)
        self.scale = float(own.scaling)
        self.first, self.second = module.self_attn_layer_norm, module.final_layer_norm
        self.q, self.k, self.v, self.out = own.q_proj, own.k_proj, own.v_proj, own.out_proj
        # The library hands its MLP rows and positions as one axis: [row * position, features].
        self.up, self.act, self.down = module.fc1, module.activation_fn, module.fc2
        self.mlp_end = self.down


class OPTLayout(PlainLayout):
    """`OPTForCausalLM` with norms before the sublayers and embeddings as wide as the stream."""

    model_type = "opt"
    title = "OPT"
    tiny: ClassVar[Mapping[str, Any]] = {**TINY, "ffn_dim": 40}
    learned_positions = True

    def __init__(self, module: Any) -> None:
        config, stack = module.config, module.model.decoder
        _refuse_other_forms(config)
        self.module = module
        self.sizes = sizes_of(config, d_mlp=config.ffn_dim)
        self.blocks = [OPTBlock(block) for block in stack.layers]
        self.embedding, self.positions = stack.embed_tokens, stack.embed_positions
        self.final_norm, self.unembedding = stack.final_layer_norm, module.lm_head

    def pos_embed(self, positions: Tensor) -> Tensor | None:
        return functional.embedding(positions, self._rows())

    def _rows(self) -> Tensor:
        """[position, d_model]: the first rows of the library's table stand for no position."""
        table: Tensor = self.positions.weight
        return table[self.positions.offset :]

    def weights(self) -> dict[str, Tensor]:
        # A final norm without factors multiplies by one.
        ones = torch.ones_like(self.embedding.weight[0])
        return {"ln_final.w": ones} | super().weights() | {"W_pos": self._rows()}


def _refuse_other_forms(config: Any) -> None:
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        raise CapabilityError(
            "This OPT checkpoint has its norms behind the sublayers or no final norm (as OPT-350m), so its "
            "residual stream is not the sum that the sites of a decoder stand for.",
            "Use an OPT checkpoint of another size.",
        )
    if config.word_embed_proj_dim != config.hidden_size:
        raise CapabilityError(
            f"This OPT checkpoint projects embeddings of width {config.word_embed_proj_dim} to a stream of "
            f"width {config.hidden_size}, which this version does not cover.",
            "Use an OPT checkpoint of another size.",
        )
