"""OPT: learned positions from an offset of two, ReLU, LayerNorm before each sublayer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mech_interp.backends.huggingface.layouts.base import Block, Layout, Port, Sizes, in_heads, split_heads
from mech_interp.backends.huggingface.layouts.parts import activate, head_biases, norm_weights, present
from mech_interp.errors import CapabilityError


class OPTBlock(Block):
    """An `OPTDecoderLayer` of transformers, in pieces. q is before the scaling by 1/sqrt(d_head)."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.attention = module.self_attn
        self.n_heads: int = module.self_attn.num_heads
        self.scale = float(module.self_attn.scaling)

    def norm1(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.self_attn_layer_norm(x)
        return out

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, heads = self.attention, (self.n_heads, -1)
        return (
            own.q_proj(x).unflatten(-1, heads),
            own.k_proj(x).unflatten(-1, heads),
            own.v_proj(x).unflatten(-1, heads),
        )

    def attention_output(self, z: Tensor) -> Tensor:
        out: Tensor = self.attention.out_proj(z.flatten(-2))
        return out

    def norm2(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.final_layer_norm(x)
        return out

    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.module.fc1(x), None

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        return activate(self.module.activation_fn, pre)

    def mlp_out(self, post: Tensor) -> Tensor:
        out: Tensor = self.module.fc2(post)
        return out

    def weights(self) -> dict[str, Tensor]:
        block, own = self.module, self.attention
        found = {
            "W_Q": split_heads(own.q_proj.weight.T, self.n_heads),
            "W_K": split_heads(own.k_proj.weight.T, self.n_heads),
            "W_V": split_heads(own.v_proj.weight.T, self.n_heads),
            "W_O": own.out_proj.weight.T.reshape(self.n_heads, -1, own.embed_dim),
            "W_in": block.fc1.weight.T,
            "W_out": block.fc2.weight.T,
        }
        found |= head_biases(self.n_heads, b_Q=own.q_proj, b_K=own.k_proj, b_V=own.v_proj)
        found |= present(b_O=own.out_proj.bias, b_in=block.fc1.bias, b_out=block.fc2.bias)
        found |= norm_weights("ln1", block.self_attn_layer_norm)
        return found | norm_weights("ln2", block.final_layer_norm)

    @property
    def attention_module(self) -> nn.Module:
        module: nn.Module = self.attention
        return module

    def ports(self) -> dict[str, Port]:
        # The library hands its MLP rows and positions as one axis: [row * position, features].
        block, own, heads = self.module, self.attention, in_heads(self.n_heads)
        return {
            "resid_pre": Port(block, "input"),
            "ln1": Port(block.self_attn_layer_norm),
            "q": Port(own.q_proj, view=heads),
            "k": Port(own.k_proj, view=heads),
            "v": Port(own.v_proj, view=heads),
            "z": Port(own.out_proj, "input", heads),
            "attn_out_own": Port(own),
            "attn_out": Port(own),
            "resid_mid": Port(block.final_layer_norm, "input"),
            "ln2": Port(block.final_layer_norm),
            "mlp_pre": Port(block.fc1),
            "mlp_post": Port(block.fc2, "input"),
            "mlp_out_own": Port(block.fc2),
            "mlp_out": Port(block.fc2),
            "resid_post": Port(block),
        }


class OPTLayout(Layout):
    """`OPTForCausalLM` with norms before the sublayers and embeddings as wide as the stream."""

    model_type = "opt"
    title = "OPT"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "max_position_embeddings": 24,
        "hidden_size": 32,
        "ffn_dim": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    learned_positions = True

    def __init__(self, module: Any) -> None:
        config = module.config
        _refuse_other_forms(config)
        self.module = module
        self.stack = module.model.decoder
        self.sizes = Sizes(
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_attention_heads,
            d_model=config.hidden_size,
            d_head=config.hidden_size // config.num_attention_heads,
            d_mlp=config.ffn_dim,
            vocabulary=config.vocab_size,
            context=config.max_position_embeddings,
        )
        self.blocks = [OPTBlock(block) for block in self.stack.layers]

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.stack.embed_tokens(ids)
        return out

    def pos_embed(self, positions: Tensor) -> Tensor | None:
        return functional.embedding(positions, self._positions())

    def _positions(self) -> Tensor:
        """[position, d_model]: the first rows of the library's table stand for no position."""
        table: Tensor = self.stack.embed_positions.weight
        return table[self.stack.embed_positions.offset :]

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.stack.final_layer_norm
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        head: nn.Linear = self.module.lm_head
        return head

    def weights(self) -> dict[str, Tensor]:
        embedding = self.stack.embed_tokens.weight
        # A final norm without factors multiplies by one.
        found = {"W_E": embedding, "W_pos": self._positions(), "W_U": self.module.lm_head.weight.T}
        found["ln_final.w"] = torch.ones_like(embedding[0])
        return found | norm_weights("ln_final", self.stack.final_layer_norm)

    def ports(self) -> dict[str, Port]:
        return {
            "embed": Port(self.stack.embed_tokens),
            "pos_embed": Port(self.stack.embed_positions),
            "ln_final": Port(self.stack.final_layer_norm),
            "logits": Port(self.module.lm_head),
        }


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
