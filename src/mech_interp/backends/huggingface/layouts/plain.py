"""What plain decoders share: a layout names the library's modules, and the pieces follow from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import (
    Block,
    Layout,
    Port,
    Rotary,
    Sizes,
    in_heads,
    split_heads,
)
from mech_interp.backends.huggingface.layouts.parts import activate, head_biases, norm_weights, present

TINY: Mapping[str, Any] = {
    "vocab_size": 97,
    "max_position_embeddings": 24,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
"""The options of a tiny model that most architectures call by the same names."""


def sizes_of(
    config: Any,
    *,
    d_mlp: int,
    n_kv_heads: int | None = None,
    d_head: int | None = None,
    context: int | None = None,
    n_outputs: int = 0,
) -> Sizes:
    """The counts of a config, by the names that the library's configs answer to."""
    n_heads, d_model = config.num_attention_heads, config.hidden_size
    return Sizes(
        n_layers=config.num_hidden_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads if n_kv_heads is None else n_kv_heads,
        d_model=d_model,
        d_head=d_model // n_heads if d_head is None else d_head,
        d_mlp=d_mlp,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings if context is None else context,
        n_outputs=n_outputs,
    )


class PlainBlock(Block):
    """A block whose MLP is a linear, an activation and a linear.

    An architecture sets the library's modules in `__init__`, and says how q, k and v are projected.

    Attributes:
        module, attention: the block and its attention.
        first, second: the norms before attention and MLP; `second` is None where one norm serves both.
        out: the projection with W_O and b_O.
        up, act, down: the MLP's first linear, its activation and its second linear.
        attention_end, mlp_end: the modules whose outputs are the sublayers'.
    """

    first: Any
    second: Any = None
    out: Any
    up: Any
    act: Any
    down: Any
    mlp_end: Any

    def __init__(self, module: Any, attention: Any, n_heads: int, n_kv_heads: int | None = None) -> None:
        self.module, self.attention = module, attention
        self.n_heads, self.n_kv_heads = n_heads, n_heads if n_kv_heads is None else n_kv_heads
        self.attention_end: Any = attention

    def norm1(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x)
        return out

    @abstractmethod
    def qkv_weights(self) -> dict[str, Tensor]:
        """W_Q, W_K, W_V, and the biases there are."""

    @abstractmethod
    def qkv_ports(self) -> dict[str, Port]:
        """The ports of q, k and v, as far as a module shows them."""

    def attention_output(self, z: Tensor) -> Tensor:
        out: Tensor = self.out(z.flatten(-2))
        return out

    def norm2(self, x: Tensor) -> Tensor:
        if self.second is None:
            return self.norm1(x)
        out: Tensor = self.second(x)
        return out

    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.up(x), None

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        return activate(self.act, pre)

    def mlp_out(self, post: Tensor) -> Tensor:
        out: Tensor = self.down(post)
        return out

    def matrix(self, linear: Any) -> Tensor:
        """The weight of a projection, [in, out]."""
        weight: Tensor = linear.weight.T
        return weight

    def weights(self) -> dict[str, Tensor]:
        w_o = self.matrix(self.out)
        found = self.qkv_weights() | {"W_O": w_o.reshape(self.n_heads, -1, w_o.shape[1])}
        found |= present(b_O=self.out.bias) | norm_weights("ln1", self.first)
        if self.attention_only:
            return found
        found |= {"W_in": self.matrix(self.up), "W_out": self.matrix(self.down)}
        found |= present(b_in=self.up.bias, b_out=self.down.bias)
        return found if self.second is None else found | norm_weights("ln2", self.second)

    @property
    def attention_module(self) -> nn.Module:
        module: nn.Module = self.attention
        return module

    def ports(self) -> dict[str, Port]:
        found = {
            "resid_pre": Port(self.module, "input"),
            "ln1": Port(self.first),
            **self.qkv_ports(),
            "z": Port(self.out, "input", in_heads(self.n_heads)),
            "attn_out_own": Port(self.attention_end),
            "attn_out": Port(self.attention_end),
            "resid_post": Port(self.module),
        }
        if self.attention_only:
            return found
        if self.second is not None:
            found["ln2"] = Port(self.second)
            if not self.parallel:
                found["resid_mid"] = Port(self.second, "input")
        return found | {
            "mlp_pre": Port(self.up),
            "mlp_post": Port(self.down, "input"),
            "mlp_out_own": Port(self.mlp_end),
            "mlp_out": Port(self.mlp_end),
        }


class SeparateBlock(PlainBlock):
    """A plain block with a projection each for queries, keys and values: `q`, `k` and `v`."""

    q: Any
    k: Any
    v: Any

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads, kv_heads = (self.n_heads, -1), (self.n_kv_heads, -1)
        q, k, v = self.q(x), self.k(x), self.v(x)
        return q.unflatten(-1, heads), k.unflatten(-1, kv_heads), v.unflatten(-1, kv_heads)

    def qkv_weights(self) -> dict[str, Tensor]:
        heads, kv_heads = self.n_heads, self.n_kv_heads
        found = {
            "W_Q": split_heads(self.matrix(self.q), heads),
            "W_K": split_heads(self.matrix(self.k), kv_heads),
            "W_V": split_heads(self.matrix(self.v), kv_heads),
        }
        return found | head_biases(heads, b_Q=self.q) | head_biases(kv_heads, b_K=self.k, b_V=self.v)

    def qkv_ports(self) -> dict[str, Port]:
        heads, kv_heads = in_heads(self.n_heads), in_heads(self.n_kv_heads)
        return {
            "q": Port(self.q, view=heads),
            "k": Port(self.k, view=kv_heads),
            "v": Port(self.v, view=kv_heads),
        }


class PlainLayout(Layout):
    """An embedding, blocks, a final norm and an unembedding.

    An architecture sets the library's modules in `__init__`.

    Attributes:
        embedding: the token embedding.
        positions: the embedding of positions, where they are learned.
        rotary_table: the module of cosines and sines, where there is one for all layers.
    """

    embedding: Any
    positions: Any = None
    rotary_table: Any = None

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.embedding(ids)
        return out

    def pos_embed(self, positions: Tensor) -> Tensor | None:
        out: Tensor | None = None if self.positions is None else self.positions(positions)
        return out

    def rotary(self, like: Tensor, positions: Tensor) -> Rotary | None:
        if self.rotary_table is None:
            return None
        cos, sin = self.rotary_table(like, position_ids=positions)
        return {"default": (cos, sin)}

    def weights(self) -> dict[str, Tensor]:
        found = {"W_E": self.embedding.weight, "W_U": self.unembedding.weight.T}
        if self.positions is not None:
            found["W_pos"] = self.positions.weight
        return found | present(b_U=self.unembedding.bias) | norm_weights("ln_final", self.final_norm)

    def ports(self) -> dict[str, Port]:
        found = {
            "embed": Port(self.embedding),
            "ln_final": Port(self.final_norm),
            "logits": Port(self.unembedding),
        }
        return found if self.positions is None else found | {"pos_embed": Port(self.positions)}
