"""The edge engine: each reader's input built from the writers that a circuit lets through.

With writers u, baseline values b_u (of a corrupt run, zero or a mean) and constants c (output biases), a
reader v of circuit M takes in ``c + sum_u [M(u, v) live_u + (1 - M(u, v)) b_u]``, and its norm stands
inside it, on the mixed input. Every row is one circuit on one prompt, so many candidate circuits run in
one batch. Sources: Conmy et al. 2023 (ACDC), section 3; Goldowsky-Dill et al. 2023 for direct paths.

A norm on attention's output (Gemma 2) mixes heads. Its scale is frozen, at the clean run for live heads
and at the baseline's run for theirs, so that all edges give the model and no edges the corrupt run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.huggingface.block import Frame, attend, mlp_of
from mech_interp.backends.huggingface.stack import frame_for, logits_of
from mech_interp.backends.huggingface.writers import (
    Writers,
    head_weights,
    refuse_without_edges,
    run_writers,
)
from mech_interp.backends.metrics import Metric
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, InputError
from mech_interp.graph import CircuitGraph

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.layouts.base import Block
    from mech_interp.backends.huggingface.model import HuggingFaceModel

DEFAULT_BUDGET = 1 << 30


def graph_of(model: HuggingFaceModel) -> CircuitGraph:
    """The circuit graph of an opened model, with key/value heads as they are.

    Raises:
        CapabilityError: for a bidirectional model, whose mask the edge engine does not know.
    """
    info, block = model.info, model.layout.blocks[0]
    if not info.causal:
        raise CapabilityError(
            f"{info.name} is bidirectional; edges are computed for causal models alone.",
            "Patch its sites instead, with rows.",
        )
    mlps = "mlp_out" in info.site_kinds
    return CircuitGraph(info.n_layers, info.n_heads, info.n_kv_heads, block.parallel, mlps)


class EdgeEngine:
    """Runs circuits on pairs of a clean prompt and a baseline.

    Args:
        model: a model of the default engine whose architecture has edges.
        clean: the prompts.
        baseline: what removed edges carry: tokens of a corrupt run (pair by pair as long as the clean
            prompts), or `Writers` made by `zeroed` or `averaged`.

    Raises:
        InputError: for pairs of unequal length.
        CapabilityError: for an architecture without edges, with the reason.
    """

    def __init__(self, model: HuggingFaceModel, clean: Tokens, baseline: Tokens | Writers) -> None:
        self.model, self.graph = model, graph_of(model)
        refuse_without_edges(model)
        self.tokens = clean.to(model.info.device)
        self.corrupt: Tokens | None = None
        if isinstance(baseline, Tokens):
            _check_pairs(clean, baseline)
            self.corrupt = baseline.to(model.info.device)
        else:
            self.baseline = baseline
        self.positions = torch.arange(self.tokens.ids.shape[1], device=self.tokens.ids.device)[None]

    @cached_property
    def baseline(self) -> Writers:
        """What removed edges carry; those of the corrupt run are computed when first needed."""
        assert self.corrupt is not None
        return run_writers(self.model, self.corrupt)

    @cached_property
    def clean(self) -> Writers:
        """The writers of the clean run, computed when first needed."""
        return run_writers(self.model, self.tokens)

    @cached_property
    def streams(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The baseline's stream at attention of every layer, at its MLP, and at the end.

        Each [prompt, position, d_model].
        """
        return self.baseline.streams(self.model)

    def evaluate(
        self,
        masks: Tensor,
        metric: Metric,
        *,
        prompts: Sequence[int] | None = None,
        memory_budget: int = DEFAULT_BUDGET,
    ) -> Tensor:
        """The metric of every circuit on every prompt, [circuit, prompt].

        Args:
            masks: [circuit, writer, reader], or [circuit, writer, reader, position] for circuits that
                differ by position: 1 where the edge is live, 0 where it carries the baseline; values
                between mix the two, and gradients flow through them.
            prompts: numbers of the prompts to run; all by default.
            memory_budget: bytes for what the rows of one batch hold.
        """
        chosen = list(range(len(self.tokens))) if prompts is None else list(prompts)
        pairs = [(circuit, prompt) for circuit in range(len(masks)) for prompt in chosen]
        size = max(1, memory_budget // self._bytes_per_row())
        found = [self._batch(pairs[at : at + size], masks, metric) for at in range(0, len(pairs), size)]
        return torch.cat(found).reshape(len(masks), len(chosen), *found[0].shape[1:])

    def _batch(self, pairs: Sequence[tuple[int, int]], masks: Tensor, metric: Metric) -> Tensor:
        rows = torch.tensor([circuit for circuit, _ in pairs], device=masks.device)
        prompts = [prompt for _, prompt in pairs]
        with torch.set_grad_enabled(masks.requires_grad):
            return Rows(self, prompts, masks[rows].to(self.clean.embed)).metric(metric)

    def _bytes_per_row(self) -> int:
        info, width = self.model.info, self.tokens.ids.shape[1]
        vectors = len(self.graph.writers) + 3 * (info.n_heads + 2 * info.n_kv_heads + 2)
        mlp = 3 * info.d_mlp
        return width * (vectors * info.d_model + mlp) * self.clean.embed.element_size()


class Rows:
    """One batch: row i runs its own circuit on prompt `prompts[i]`."""

    def __init__(self, engine: EdgeEngine, prompts: Sequence[int], masks: Tensor) -> None:
        self.engine, self.prompts = engine, list(prompts)
        self.index = torch.tensor(self.prompts, device=engine.tokens.ids.device)
        # [row, position or 1, reader, writer], ready to multiply deltas [row, position, writer, d_model].
        self.masks = masks.transpose(1, 2)[:, None] if masks.dim() == 3 else masks.permute(0, 3, 2, 1)
        self.deltas: list[Tensor] = []
        self.tap = ed.Tap(ed.Edits())

    def metric(self, metric: Metric) -> Tensor:
        """The metric of every row."""
        engine, layout = self.engine, self.engine.model.layout
        streams = engine.streams
        frame = frame_for(layout, engine.clean.embed, engine.positions)
        self.deltas = [self._of(engine.clean.embed - engine.baseline.embed)[:, :, None]]
        for layer, block in enumerate(layout.blocks):
            self._attention(layer, block, frame, streams[0][layer])
            if engine.graph.mlps:
                self._mlp(layer, block, streams[1][layer])
        columns = torch.tensor(
            [[engine.tokens.position(p, at) for at in metric.positions] for p in self.prompts],
            device=self.index.device,
        )
        final = self._mixed(len(engine.graph.readers) - 1, 1, streams[2])[:, :, 0]
        chosen = final[torch.arange(len(final), device=final.device)[:, None], columns]
        wanted = metric.token_ids(self.prompts)
        ids = None if wanted is None else wanted.to(final.device)[:, None]
        return metric(logits_of(layout, layout.final_norm(chosen), ids), self.prompts)

    def _of(self, values: Tensor) -> Tensor:
        """[prompt, ...] to [row, ...]."""
        return values[self.index]

    def _mixed(self, first: int, n_readers: int, stream: Tensor) -> Tensor:
        """The inputs of readers first..first+n-1: [row, position, reader, d_model]."""
        deltas = torch.cat(self.deltas, dim=2) if len(self.deltas) > 1 else self.deltas[0]
        self.deltas = [deltas]
        masks = self.masks[:, :, first : first + n_readers, : deltas.shape[2]]
        return self._of(stream)[:, :, None] + masks @ deltas

    def _attention(self, layer: int, block: Block, frame: Frame, stream: Tensor) -> None:
        engine, info = self.engine, self.engine.model.info
        heads, kv_heads = info.n_heads, info.n_kv_heads
        first = layer * (heads + 2 * kv_heads + engine.graph.mlps)
        normed = block.norm1(self._mixed(first, heads + 2 * kv_heads, stream))
        inputs = torch.split(normed, [heads, kv_heads, kv_heads], dim=2)
        weights = block.weights()
        q, k, v = (_project(x, weights, name) for x, name in zip(inputs, "QKV", strict=True))
        z = attend(block, layer, q, k, v, frame, self.tap)
        scale = engine.clean.scales[layer]
        live = z / (scale if isinstance(scale, float) else self._of(scale))
        change = live - self._of(engine.baseline.heads[layer])
        self.deltas.append(torch.einsum("rthe,hed->rthd", change, head_weights(block)))

    def _mlp(self, layer: int, block: Block, stream: Tensor) -> None:
        engine, info = self.engine, self.engine.model.info
        per_layer = info.n_heads + 2 * info.n_kv_heads + 1
        x = self._mixed((layer + 1) * per_layer - 1, 1, stream)[:, :, 0]
        out = mlp_of(block, layer, block.norm1(x) if block.shared_norm else block.norm2(x), self.tap)
        out = out if block.post_mlp is None else block.post_mlp(out)
        self.deltas.append((out - self._of(engine.baseline.mlps[layer]))[:, :, None])


def _project(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """[row, position, head, d_model] to [row, position, head, d_head], each head by its own weights."""
    out = torch.einsum("rthd,hde->rthe", x, weights[f"W_{name}"].detach())
    bias = weights.get(f"b_{name}")
    return out if bias is None else out + bias


def _check_pairs(clean: Tokens, corrupt: Tokens) -> None:
    if len(clean) != len(corrupt):
        raise InputError(
            f"There are {len(clean)} clean and {len(corrupt)} corrupt prompts.", "Pair them one to one."
        )
    for i, (left, right) in enumerate(zip(clean.lengths, corrupt.lengths, strict=True)):
        if left != right:
            raise InputError(
                f"Pair {i} has {left} clean and {right} corrupt tokens.",
                "Edges carry values position by position, so both prompts must be equally long.",
            )
