"""What a layout must say about an architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Counts of an architecture, read from its config."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocabulary: int
    context: int


class Block(ABC):
    """One decoder block in named pieces. Tensors are [row, position, ...]; heads are their own axis.

    `scale` multiplies q·k; `window` is the sliding-window length (None: full attention);
    `post_attention` and `post_mlp` are the norms some architectures put on a sublayer's output.
    """

    scale: float
    window: int | None = None
    post_attention: Callable[[Tensor], Tensor] | None = None
    post_mlp: Callable[[Tensor], Tensor] | None = None

    @abstractmethod
    def norm1(self, x: Tensor) -> Tensor:
        """The norm before attention."""

    @abstractmethod
    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [row, position, head, d_head], k and v [row, position, kv_head, d_head], before rotary."""

    def rotate(self, q: Tensor, k: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Queries and keys after rotary position embedding (unchanged where there is none)."""
        return q, k

    @abstractmethod
    def attention_output(self, z: Tensor) -> Tensor:
        """W_O and b_O applied to z [row, position, head, d_head]."""

    @abstractmethod
    def norm2(self, x: Tensor) -> Tensor:
        """The norm before the MLP."""

    @abstractmethod
    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(gate) pre-activation, and the linear branch of a gated MLP."""

    @abstractmethod
    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        """The MLP's hidden activation, which enters W_out."""

    @abstractmethod
    def mlp_out(self, post: Tensor) -> Tensor:
        """W_out and b_out."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The block's parameters in the convention of `InstrumentedModel.weights`."""


class Layout(ABC):
    """Where an architecture keeps its parts, and its facts."""

    model_type: ClassVar[str]
    sizes: Sizes
    blocks: Sequence[Block]
    module: Any

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings as added to the residual stream (scaled where the architecture scales)."""

    def pos_embed(self, positions: Tensor) -> Tensor | None:
        """Learned position embeddings, or None."""
        return None

    def rotary(self, like: Tensor, positions: Tensor) -> Rotary | None:
        """Cosines and sines for positions [row, position], or None."""
        return None

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm before the unembedding."""

    @property
    @abstractmethod
    def unembedding(self) -> nn.Linear:
        """The unembedding."""

    def softcap(self, logits: Tensor) -> Tensor:
        """The final logit softcap (identity where there is none)."""
        return logits

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The parameters outside the blocks: W_E, W_pos, W_U, b_U, ln_final."""

    @property
    def missing(self) -> dict[str, str]:
        """Site kinds that the architecture lacks, with the reason."""
        return {}


def split_heads(weight: Tensor, n_heads: int) -> Tensor:
    """[d_model, heads * d_head] to [heads, d_model, d_head]."""
    d_model = weight.shape[0]
    return weight.view(d_model, n_heads, -1).permute(1, 0, 2)
