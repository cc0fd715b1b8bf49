"""What a layout must say about an architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

# Cosines and sines [row, position, turned features] by kind of layer: local and global layers may differ.
Rotary = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sizes:
    """Counts of an architecture, read from its config (`n_outputs`: logits, 0 for as many as tokens)."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocabulary: int
    context: int
    n_outputs: int = 0


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Port:
    """Where a plain hook finds a site: the output or first input of a submodule of the library's model.

    `view` cuts the site's tensor [row, position, ...] out of it and must return a view of the same
    memory, so that writing through it changes the whole.
    """

    module: nn.Module
    side: Literal["output", "input"] = "output"
    view: Callable[[Tensor], Tensor] = _same


class Mixture(ABC):
    """A mixture of experts in the place of an MLP. x is [row, position, d_model]."""

    n_experts: int
    n_chosen: int

    @abstractmethod
    def router_logits(self, x: Tensor) -> Tensor:
        """[row, position, expert]."""

    @abstractmethod
    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts (integers) and their weights, both [row, position, chosen]."""

    @abstractmethod
    def mix(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of the chosen experts' outputs, [row, position, d_model]."""


class Block(ABC):
    """One decoder block in named pieces. Tensors are [row, position, ...]; heads are their own axis.

    Attributes:
        scale: multiplies q·k.
        window: sliding-window length: a query sees this many keys, its own included (None: all).
        score_cap: attention scores are cap * tanh(score / cap) (None: as they are).
        wide_scores: the library computes q·k of narrow dtypes in float32.
        rotary_kind: which entry of the layout's rotary tables turns q and k (None: positions enter
            this layer's attention in no such way).
        parallel: attention and MLP both read the stream entering the block, so it has no resid_mid.
        shared_norm: a parallel block whose MLP reads the output of the norm before attention.
        post_attention, post_mlp: norms that some architectures put on a sublayer's output.
        mixture: the experts in the place of the MLP, if any; the `mlp_*` pieces are then never called.
        attention_only: the block ends with its attention; `norm2` and the MLP are never called.
    """

    scale: float
    window: int | None = None
    score_cap: float | None = None
    wide_scores: bool = False
    rotary_kind: str | None = None
    parallel: bool = False
    shared_norm: bool = False
    post_attention: Callable[[Tensor], Tensor] | None = None
    post_mlp: Callable[[Tensor], Tensor] | None = None
    mixture: Mixture | None = None
    attention_only: bool = False

    @abstractmethod
    def norm1(self, x: Tensor) -> Tensor:
        """The norm before attention."""

    @abstractmethod
    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [row, position, head, d_head], k and v [row, position, kv_head, d_head], as projected."""

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The norms some architectures put on queries and keys, between the taps of q, k and rotary."""
        return q, k

    def rotate(self, q: Tensor, k: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Queries and keys after rotary position embedding (split halves, of the leading features)."""
        assert self.rotary_kind is not None
        cos, sin = rotary[self.rotary_kind]
        return rotate_halves(q, cos, sin), rotate_halves(k, cos, sin)

    def score_bias(self, query_positions: Tensor, n_keys: int) -> Tensor | None:
        """What is added to the scaled scores before the mask, [row or 1, head, query, key] (ALiBi)."""
        return None

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
        """The block's parameters in the convention of `InstrumentedModel.weights`.

        Norm weights (ln1.w, ln2.w, and ln1_post.w, ln2_post.w of post-norms) are the factors applied.
        """

    @property
    @abstractmethod
    def attention_module(self) -> nn.Module:
        """The library's attention module."""

    @abstractmethod
    def ports(self) -> dict[str, Port]:
        """Where plain hooks find the block's sites, by kind; kinds no module shows are left out."""


class Layout(ABC):
    """Where an architecture keeps its parts, and its facts.

    Attributes:
        model_type: the `model_type` of its config.
        title: what people call it.
        tiny: the options of a tiny model of it, for lists and tests: three blocks, vocabulary 97, 24
            positions, width 32, and every feature of the architecture in use.
        gated: whether its MLP has a linear branch.
        learned_positions, rotary_positions: how positions enter.
        causal: whether a position sees earlier ones alone.
        norm: the kind of its final norm: ``layer``, ``rms`` or ``none``.
        notice: what a user should know about this checkpoint in this layout; empty for nothing.
        final_norm, unembedding: the library's norm before the unembedding, and the unembedding.
    """

    model_type: ClassVar[str]
    title: ClassVar[str]
    tiny: ClassVar[Mapping[str, Any]]
    gated: bool = False
    learned_positions: bool = False
    rotary_positions: bool = False
    causal: bool = True
    norm: Literal["layer", "rms", "none"] = "layer"
    notice: str = ""
    sizes: Sizes
    blocks: Sequence[Block]
    module: Any
    final_norm: nn.Module
    unembedding: nn.Linear

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
    def norm_eps(self) -> float:
        """What the norms add to the variance."""
        return norm_eps(self.final_norm)

    @classmethod
    def register(cls) -> None:
        """Make the library know the architecture, where it does not by itself."""
        return None

    def softcap(self, logits: Tensor) -> Tensor:
        """The final logit softcap (identity where there is none)."""
        return logits

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The parameters outside the blocks: W_E, W_pos, W_U, b_U, ln_final.w, ln_final.b."""

    @abstractmethod
    def ports(self) -> dict[str, Port]:
        """Where plain hooks find embed, pos_embed, ln_final and logits."""

    @property
    def missing(self) -> dict[str, str]:
        """Site kinds that no block of the architecture has, with the reason."""
        found: dict[str, str] = {}
        if not self.learned_positions:
            found["pos_embed"] = f"{self.title} has no learned position embedding"
        missing = [set(self.missing_in(layer)) for layer in range(len(self.blocks))]
        for kind in set.intersection(*missing) if missing else set():
            found[kind] = self.missing_in(0)[kind]
        return found

    def missing_in(self, layer: int) -> dict[str, str]:
        """Site kinds that one block lacks, with the reason."""
        block = self.blocks[layer]
        found: dict[str, str] = {}
        if block.rotary_kind is None:
            why = "no rotary embedding" if not self.rotary_positions else f"none in layer {layer}"
            found |= {f"rot_{x}": f"{self.title} has {why}; use {x}" for x in "qk"}
        if block.parallel:
            found["resid_mid"] = f"in {self.title} attention and MLP read the same stream, side by side"
        if block.shared_norm:
            found["ln2"] = f"{self.title} has one norm for attention and MLP; use ln1"
        if block.attention_only:
            kinds = "resid_mid ln2 mlp_pre mlp_pre_linear mlp_post mlp_out_own mlp_out router_logits"
            kinds += " expert_indices expert_weights"
            return found | dict.fromkeys(kinds.split(), f"this {self.title} is attention-only: it has no MLP")
        if block.mixture is not None:
            why = f"the MLP of {self.title} is a mixture of experts, each with activations of its own"
            hint = "use router_logits, expert_indices, expert_weights or mlp_out"
            found |= dict.fromkeys(("mlp_pre", "mlp_pre_linear", "mlp_post"), f"{why}; {hint}")
            return found
        why = f"the MLP of {self.title} is not a mixture of experts"
        found |= dict.fromkeys(("router_logits", "expert_indices", "expert_weights"), why)
        if not self.gated:
            found["mlp_pre_linear"] = f"the MLP of {self.title} is not gated"
        return found


def norm_eps(norm: nn.Module) -> float:
    """The epsilon of a norm, by the names that libraries give it."""
    for name in ("variance_epsilon", "eps"):
        value = getattr(norm, name, None)
        if value is not None:
            return float(value)
    return 0.0


def split_heads(weight: Tensor, n_heads: int) -> Tensor:
    """[d_model, heads * d_head] to [heads, d_model, d_head]."""
    d_model = weight.shape[0]
    return weight.view(d_model, n_heads, -1).permute(1, 0, 2)


def in_heads(n_heads: int) -> Callable[[Tensor], Tensor]:
    """A view of [..., heads * d_head] as [..., heads, d_head]."""
    return lambda x: x.view(*x.shape[:-1], n_heads, -1)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding over split halves of the leading features; the rest pass unchanged.

    x is [row, position, head, d_head], cos and sin are [row, position, turned].
    Source: Su et al. 2021 (RoFormer), in the split-half form that Llama checkpoints are stored for.
    """
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    quarter = torch.cat((-second, first), dim=-1)
    out = turned * cos[..., None, :] + quarter * sin[..., None, :]
    return torch.cat((out, kept), dim=-1) if kept.shape[-1] else out
