"""What every writer of the circuit graph adds to the residual stream, and what ablation puts there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mech_interp.backends.huggingface.block import take_columns
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError
from mech_interp.sites import Site

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.layouts.base import Block
    from mech_interp.backends.huggingface.model import HuggingFaceModel
    from mech_interp.backends.protocol import Activations, ModelInfo


# Where edges have been checked against an oracle written out; nothing else may pass as checked.
EDGE_LEVEL = ("gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "gemma2", "mech-planted")


@dataclass(frozen=True)
class Writers:
    """The values of all writers over a batch of prompts.

    Attributes:
        embed: [prompt, position, d_model], token and position embedding together.
        heads: per layer [prompt, position, head, d_head]; times `head_weights` gives what each head adds.
        mlps: per layer [prompt, position, d_model]; empty for attention-only models.
        scales: per layer, [prompt, position, 1, 1] or 1.0: what z was divided by to give `heads`.
    """

    embed: Tensor
    heads: tuple[Tensor, ...]
    mlps: tuple[Tensor, ...]
    scales: tuple[Tensor | float, ...]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Writers:
        """The same with the values of every writer changed."""
        return Writers(
            change(self.embed), tuple(map(change, self.heads)), tuple(map(change, self.mlps)), self.scales
        )

    def select(self, prompts: Tensor) -> Writers:
        """Those of some prompts, by number."""
        scales = tuple(scale if isinstance(scale, float) else scale[prompts] for scale in self.scales)
        return replace(self.mapped(lambda values: values[prompts]), scales=scales)

    def narrowed(self, columns: Tensor) -> Writers:
        """With the writers of the last layer at `columns` [prompt, n] alone."""
        heads = (*self.heads[:-1], take_columns(self.heads[-1], columns))
        mlps = (*self.mlps[:-1], take_columns(self.mlps[-1], columns)) if self.mlps else ()
        return replace(self, heads=heads, mlps=mlps)

    def added(self, model: HuggingFaceModel, layer: int) -> Tensor:
        """What the heads of a layer add together, output bias included, [prompt, position, d_model]."""
        block = model.layout.blocks[layer]
        out = torch.einsum("pthe,hed->ptd", self.heads[layer], head_weights(block))
        bias = block.weights().get("b_O")
        return out if bias is None else out + bias

    def streams(self, model: HuggingFaceModel) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The stream at attention of every layer, at its MLP, and at the end.

        Each [prompt, position, d_model].
        """
        x, before_attention, before_mlp = self.embed, [], []
        for layer, block in enumerate(model.layout.blocks):
            before_attention.append(x)
            mid = x + self.added(model, layer)
            before_mlp.append(x if block.parallel else mid)
            x = mid + self.mlps[layer] if self.mlps else mid
        return before_attention, before_mlp, x


def head_weights(block: Block) -> Tensor:
    """[head, d_head, d_model]: W_O, with the gain of the norm behind it where there is one."""
    weights = block.weights()
    w_o = weights["W_O"].detach()
    return w_o * weights["ln1_post.w"].detach() if block.post_attention is not None else w_o


def run_writers(model: HuggingFaceModel, tokens: Tokens) -> Writers:
    """The writers of a plain forward over `tokens`.

    Raises:
        CapabilityError: when the architecture has no edges here, with the reason.
    """
    info, layers = model.info, range(model.info.n_layers)
    refuse_without_edges(model)
    has_mlps = "mlp_out" in info.site_kinds
    kinds = ["z", *(["mlp_out"] if has_mlps else [])]
    post = any(block.post_attention is not None for block in model.layout.blocks)
    kinds += ["attn_out_own"] if post else []
    capture = [Site("resid_pre", 0), *(Site(kind, layer) for kind in kinds for layer in layers)]
    seen = model.forward(tokens, capture=capture, logits="none").activations
    scales = tuple(_scale(info, model.layout.blocks[layer], seen, layer) for layer in layers)
    return Writers(
        seen[Site("resid_pre", 0)],
        tuple(seen[Site("z", layer)] / scales[layer] for layer in layers),
        tuple(seen[Site("mlp_out", layer)] for layer in layers) if has_mlps else (),
        scales,
    )


def _scale(info: ModelInfo, block: Block, seen: Activations, layer: int) -> Tensor | float:
    """Root mean square that the norm behind attention divides by."""
    if block.post_attention is None:
        return 1.0
    own = seen[Site("attn_out_own", layer)]
    wide = own.to(torch.promote_types(own.dtype, torch.float32))
    rms = (wide.pow(2).mean(-1, keepdim=True) + info.norm_eps).sqrt()
    return rms.to(own.dtype)[..., None]


def zeroed(writers: Writers) -> Writers:
    """Zero ablation: every writer adds nothing (output biases stay, which belong to no writer)."""
    return writers.mapped(torch.zeros_like)


def averaged(writers: Writers, mask: Tensor, *, positional: bool) -> Writers:
    """Mean ablation: each writer's mean over the real tokens, of all positions or of each apart.

    `mask` [prompt, position] is true at real tokens.
    """

    def mean(values: Tensor) -> Tensor:
        weight = mask.reshape(*mask.shape, *([1] * (values.dim() - 2))).to(values.dtype)
        axes = (0,) if positional else (0, 1)
        held = (values * weight).sum(axes, keepdim=True) / weight.sum(axes, keepdim=True).clamp(min=1)
        return held.expand_as(values)

    return writers.mapped(mean)


def refuse_without_edges(model: HuggingFaceModel) -> None:
    """Refuse an architecture whose edges are not defined here.

    Raises:
        CapabilityError: with the reason.
    """
    layout = model.layout
    reason = ""
    if layout.model_type not in EDGE_LEVEL:
        reason = f"edges of {layout.title} are not checked in this version"
    elif not layout.causal:
        reason = "its attention is bidirectional"
    elif getattr(layout.module.config, "norm", layout.norm) != layout.norm:
        reason = "the norms of its blocks and the last one are of different kinds"
    elif any(b.post_attention is not None and "b_O" in b.weights() for b in layout.blocks):
        reason = "the norm behind attention scales an output bias, which belongs to no writer"
    if reason:
        raise CapabilityError(
            f"{model.info.name} has no edge-level graph: {reason}.",
            "Use heads and MLPs as whole nodes (activation patching, attribution at sites).",
        )
