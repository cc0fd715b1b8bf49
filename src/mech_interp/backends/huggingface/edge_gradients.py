"""First-order scores of every edge from a few backward passes (edge attribution patching, with or
without integrated gradients).

The score of edge u -> v on a prompt is ``sum_positions <b_u - live_u, dm/d input_v>``: the first-order
estimate of what cutting the edge does to the metric (Nanda 2023; Syed et al. 2023, eq. 3; Hanna et al.
2024, eq. 3 for the averaged gradients). Weights are frozen, so a backward pass costs about one forward.
The gradient at a reader's input is never materialised per reader through the norm: with y the gradient
behind the norm's gain, the norm's own derivative is the identity less two rank-one terms, which contract
to numbers per position (LayerNorm; one term for RMSNorm).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mech_interp.backends.huggingface import edits as ed
from mech_interp.backends.huggingface.block import mid_to_post
from mech_interp.backends.huggingface.stack import embed, frame_for, logits_of, run_blocks
from mech_interp.backends.huggingface.writers import Writers, head_weights
from mech_interp.backends.metrics import Metric
from mech_interp.errors import InputError

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.edges import EdgeEngine
    from mech_interp.backends.huggingface.layouts.base import Block

Variant = Literal["eap", "ig-inputs", "ig-activations", "clean-corrupt"]


@dataclass(frozen=True)
class _Start:
    """Where a forward takes over: before a block, or after its attention.

    `entering` is the stream that entered the block, which the MLP of a parallel block reads.
    """

    layer: int
    after_attention: bool = False
    entering: Tensor | None = None


_BEGIN = _Start(0)


@dataclass(frozen=True)
class _Gradients:
    """Gradients behind the readers' norms and projections, and the streams that they were taken at."""

    behind: dict[ed.Place, Tensor]
    streams: dict[ed.Place, Tensor]
    written: dict[ed.Place, Tensor]


def edge_scores(
    engine: EdgeEngine,
    metric: Metric,
    *,
    variant: Variant = "eap",
    steps: int = 5,
    direction: Literal["noising", "denoising"] = "noising",
    prompts: Sequence[int] | None = None,
) -> Tensor:
    """Scores of all edges, [prompt, writer, reader], in the accumulation type (at least float32).

    Args:
        variant: ``eap`` takes the gradient at one end; ``ig-inputs`` averages it over `steps` points
            between the corrupt and the clean embedding, the clean one included; ``ig-activations``
            over points between the two outputs of each group of writers (a layer's heads, an MLP),
            everything before it clean; ``clean-corrupt`` over the two ends.
        direction: ``noising`` estimates what giving the edge its baseline value does to the clean run,
            ``denoising`` what giving it its clean value does to the baseline's run.
        prompts: numbers of the prompts; all by default.

    Raises:
        InputError: for a metric whose gradient vanishes everywhere it was taken, such as the divergence
            from the clean run at the clean run.
    """
    chosen = list(range(len(engine.tokens))) if prompts is None else list(prompts)
    index = torch.tensor(chosen, device=engine.tokens.ids.device)
    if variant == "eap" and direction == "noising" and prompts is None and "clean" not in vars(engine):
        found = _in_one_pass(engine, metric, index)
        return _checked(found)
    change = changes(engine, index, direction)
    with _frozen_scales(engine, index):
        if variant == "ig-activations":
            found = _by_groups(engine, metric, chosen, change, steps, direction)
        else:
            weights = _points(variant, steps, direction)
            parts = []
            for weight in weights:
                stream = _between(engine.baseline.embed[index], engine.clean.embed[index], weight)
                parts.append(_scores(engine, _gradients(engine, metric, chosen, stream), change))
            found = torch.stack(parts).mean(0)
    return _checked(found)


def _checked(scores: Tensor) -> Tensor:
    """The scores, unless nothing but rounding is left: a task metric moves by far more along some edge."""
    if bool(scores.abs().max() < 1e-3 * torch.finfo(scores.dtype).eps ** 0.5):
        raise InputError(
            "The gradient of the metric vanishes: every edge would score exactly zero.",
            "The divergence from the clean run is least at the clean run; use variant ig-inputs, or a task "
            "metric such as the logit difference.",
        )
    return scores


def _in_one_pass(engine: EdgeEngine, metric: Metric, index: Tensor) -> Tensor:
    """Plain scores where the clean run is not known yet: the pass that is differentiated also gives it."""
    if any(block.post_attention is not None for block in engine.model.layout.blocks):
        change = changes(engine, index, "noising")  # whose clean run must be known before its scales are held
        with _frozen_scales(engine, index):
            return _scores(engine, _gradients(engine, metric, index.tolist(), engine.clean.embed), change)
    stream = embed(engine.model.layout, engine.tokens.ids, engine.positions, ed.Tap(ed.Edits()))
    found = _gradients(engine, metric, index.tolist(), stream, writers=True)
    seen = {place: value.detach() for place, value in found.written.items()}
    layers = range(engine.model.info.n_layers)
    engine.clean = Writers(
        stream.detach(),
        tuple(seen["z", layer] for layer in layers),
        tuple(seen["mlp_out", layer] for layer in layers if engine.graph.mlps),
        tuple(1.0 for _ in layers),
    )
    return _scores(engine, found, changes(engine, index, "noising"))


def _points(variant: Variant, steps: int, direction: str) -> list[float]:
    """Where gradients are taken, 0 at the baseline's embedding and 1 at the clean one."""
    if variant == "ig-inputs":
        return [k / steps for k in range(1, steps + 1)]
    if variant == "clean-corrupt":
        return [0.0, 1.0]
    return [1.0 if direction == "noising" else 0.0]


def _between(low: Tensor, high: Tensor, weight: float) -> Tensor:
    return high if weight == 1.0 else low + weight * (high - low)


def changes(engine: EdgeEngine, index: Tensor, direction: str) -> Tensor:
    """What each writer would change by, [prompt, position, writer, d_model]."""
    clean, base = engine.clean, engine.baseline
    sign = 1.0 if direction == "noising" else -1.0
    embed = clean.embed[index]
    n_prompts, width, d_model = embed.shape
    out = embed.new_empty(n_prompts, width, len(engine.graph.writers), d_model)
    out[:, :, 0] = sign * (base.embed[index] - embed)
    at = 1
    for layer, block in enumerate(engine.model.layout.blocks):
        heads = sign * (base.heads[layer][index] - clean.heads[layer][index])
        after = at + heads.shape[2]
        out[:, :, at:after] = torch.einsum("pthe,hed->pthd", heads, head_weights(block))
        at = after
        if engine.graph.mlps:
            out[:, :, at] = sign * (base.mlps[layer][index] - clean.mlps[layer][index])
            at += 1
    return out


def _gradients(
    engine: EdgeEngine,
    metric: Metric,
    prompts: Sequence[int],
    stream: Tensor,
    start: _Start = _BEGIN,
    *,
    writers: bool = False,
) -> _Gradients:
    """One forward from `start` and one backward to what stands behind the readers.

    With `writers` the forward also shows what heads and MLPs wrote.
    """
    model, layout, mlps = engine.model, engine.model.layout, engine.graph.mlps
    inside = _places(engine, start)
    mids = [(_before_mlp(engine), layer) for kind, layer in inside if kind == "ln2"]
    around = [("resid_pre", layer) for kind, layer in inside if kind == "q"] + mids
    last = ("resid_post", model.info.n_layers - 1)
    written = [(kind, layer) for kind in ("z", "mlp_out") for layer in range(model.info.n_layers)]
    written = [place for place in written if writers and (mlps or place[0] == "z")]
    tap = _Apart(ed.Edits(), {*inside, *around, *written, last})
    with torch.enable_grad():
        x = stream.detach().requires_grad_()
        frame = frame_for(layout, x, engine.positions)
        begin = start.layer
        if start.after_attention:
            begin += 1
            x = _finish_block(layout.blocks[start.layer], start, x, tap) if mlps else x
        out = run_blocks(layout, x, range(begin, model.info.n_layers), frame, tap)
        columns = torch.tensor(
            [[engine.tokens.position(p, at) for at in metric.positions] for p in prompts], device=x.device
        )
        chosen = out[torch.arange(len(prompts), device=x.device)[:, None], columns]
        wanted = metric.token_ids(prompts)
        ids = None if wanted is None else wanted.to(x.device)[:, None]
        value = metric(logits_of(layout, layout.final_norm(chosen), ids), prompts).sum()
        found = torch.autograd.grad(value, [*(tap.captured[place] for place in inside), out])
    behind = dict(zip([*inside, last], found, strict=True))
    streams = {place: tap.captured[place].detach() for place in around if place in tap.captured}
    if start.entering is not None:
        streams["resid_pre", start.layer] = start.entering
    return _Gradients(behind, streams, {place: tap.captured[place] for place in written})


class _Apart(ed.Tap):
    """A tap at which the MLP's input is a tensor of its own.

    Without a norm it would be the stream itself, whose gradient takes in what passes by the MLP.
    """

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        return super().__call__(kind, layer, value.view_as(value) if kind == "ln2" else value)


def _places(engine: EdgeEngine, start: _Start) -> list[ed.Place]:
    """What is differentiated: projections and normed MLP inputs of the readers after `start`."""
    found: list[ed.Place] = []
    for layer in range(start.layer, engine.model.info.n_layers):
        skipped = start.after_attention and layer == start.layer
        found += [] if skipped else [(kind, layer) for kind in ("q", "k", "v")]
        # The heads of a parallel block do not reach its own MLP.
        if engine.graph.mlps and not (skipped and engine.graph.parallel):
            found.append(("ln2", layer))
    return found


def _before_mlp(engine: EdgeEngine) -> str:
    return "resid_pre" if engine.graph.parallel else "resid_mid"


def _finish_block(block: Block, start: _Start, mid: Tensor, tap: ed.Tap) -> Tensor:
    """From the stream after attention of a block to the stream leaving it."""
    mid = tap("resid_mid", start.layer, mid)
    side = mid if start.entering is None else start.entering
    return tap("resid_post", start.layer, mid_to_post(block, start.layer, mid, side, tap))


def _scores(engine: EdgeEngine, gradients: _Gradients, change: Tensor) -> Tensor:
    """Contract the gradients with the writers' changes: [prompt, writer, reader]."""
    graph, info = engine.graph, engine.model.info
    wide = torch.promote_types(change.dtype, torch.float32)
    out = change.new_zeros(len(change), len(graph.writers), len(graph.readers), dtype=wide)
    n_attention = info.n_heads + 2 * info.n_kv_heads
    behind, norms = gradients.behind, _norms(engine, gradients, change)
    for layer, block in enumerate(engine.model.layout.blocks):
        column = layer * (n_attention + graph.mlps)
        if ("q", layer) in behind:
            y = torch.cat([_through(behind[kind, layer], block, kind) for kind in ("q", "k", "v")], 2)
            writers = graph.before(graph.readers[column])
            found = norms["ln1", layer].contract(change[:, :, :writers], y)
            out[:, :writers, column : column + n_attention] = found
        if ("ln2", layer) in behind:
            column += n_attention
            writers = graph.before(graph.readers[column])
            y = behind["ln2", layer][:, :, None].clone()
            out[:, :writers, column] = norms["ln2", layer].contract(change[:, :, :writers], y)[:, :, 0]
    final = behind["resid_post", info.n_layers - 1]
    out[:, :, -1] = torch.einsum("ptnd,ptd->pn", change.to(wide), final.to(wide))
    return out


def _through(gradient: Tensor, block: Block, kind: str) -> Tensor:
    """[prompt, position, head, d_head] behind a projection to [prompt, position, head, d_model] before."""
    return torch.einsum("pthe,hde->pthd", gradient, block.weights()[f"W_{kind.upper()}"].detach())


@dataclass(frozen=True)
class _Norm:
    """The derivative of a norm at a stream: gain * (1 - 11'/d - x x'/d) / sigma; no 11' for RMSNorm.

    Attributes:
        x: [prompt, position, d_model], the normed stream before the gain; `sigma` what it was divided by.
        along, means: <change, x> / d and the mean of the change, [prompt, position, writer].
    """

    kind: str
    gain: Tensor | None
    x: Tensor
    sigma: Tensor
    along: Tensor
    means: Tensor

    def contract(self, change: Tensor, y: Tensor) -> Tensor:
        """<change_u, J' (gain * y_v)> summed over positions, [prompt, u, v].

        `change` [prompt, position, writer, d] are the first writers, `y` [prompt, position, reader, d] the
        gradient at the norm's output, which is overwritten.
        """
        if self.gain is not None:
            y *= self.gain
        n = change.shape[2]
        if self.kind == "none":
            total = change @ y.mT
        else:
            y /= self.sigma[:, :, None]
            total = change @ y.mT
            total -= self.along[:, :, :n, None] * (y @ self.x[..., None]).mT
        if self.kind == "layer":
            total -= self.means[:, :, :n, None] * y.sum(-1)[:, :, None]
        return total.sum(1, dtype=torch.promote_types(total.dtype, torch.float32))


def _norms(engine: EdgeEngine, gradients: _Gradients, change: Tensor) -> dict[ed.Place, _Norm]:
    """The norms before the readers; their products with all changes are taken together."""
    layout = engine.model.layout
    places = {("ln1", layer): ("resid_pre", layer) for kind, layer in gradients.behind if kind == "q"}
    places |= {
        ("ln2", layer): (_before_mlp(engine), layer) for kind, layer in gradients.behind if kind == "ln2"
    }
    if not places:
        return {}
    streams = torch.stack([gradients.streams[place] for place in places.values()])
    centred = streams - streams.mean(-1, keepdim=True) if layout.norm == "layer" else streams
    sigmas = (centred.pow(2).mean(-1, keepdim=True) + layout.norm_eps).sqrt()
    normed = centred / sigmas
    along = change @ normed.permute(1, 2, 3, 0) / change.shape[-1]
    means = change.mean(-1)
    found: dict[ed.Place, _Norm] = {}
    for i, (name, layer) in enumerate(places):
        assert layer is not None
        gain = None if layout.norm == "none" else layout.blocks[layer].weights().get(f"{name}.w")
        gain = None if gain is None else gain.detach()
        found[name, layer] = _Norm(layout.norm, gain, normed[i], sigmas[i], along[..., i], means)
    return found


def _by_groups(
    engine: EdgeEngine,
    metric: Metric,
    prompts: Sequence[int],
    change: Tensor,
    steps: int,
    direction: str,
) -> Tensor:
    """Gradients averaged while the outputs of one group of writers move between their two values."""
    index = torch.tensor(prompts, device=change.device)
    totals = []
    for members, after, start in _groups(engine, index, direction):
        moved = change[:, :, members].sum(2)
        parts = []
        for k in range(1, steps + 1):
            stream = after + (1 - k / steps) * moved
            found = _scores(engine, _gradients(engine, metric, prompts, stream, start), change)
            parts.append(found[:, members])
        totals.append(torch.stack(parts).mean(0))
    return torch.cat(totals, 1)


def _groups(engine: EdgeEngine, index: Tensor, direction: str) -> Iterator[tuple[slice, Tensor, _Start]]:
    """The embedding, each layer's heads, each MLP: its writers, the stream after it, where that stands."""
    graph, info = engine.graph, engine.model.info
    own = engine.clean if direction == "noising" else engine.baseline
    x = own.embed[index]
    yield slice(0, 1), x, _BEGIN
    at = 1
    for layer in range(info.n_layers):
        entering = x if graph.parallel else None
        x = x + own.added(engine.model, layer)[index]
        yield slice(at, at + info.n_heads), x, _Start(layer, True, entering)
        at += info.n_heads
        if graph.mlps:
            x = x + own.mlps[layer][index]
            yield slice(at, at + 1), x, _Start(layer + 1)
            at += 1


@contextmanager
def _frozen_scales(engine: EdgeEngine, index: Tensor) -> Iterator[None]:
    """Hold the norms behind attention at the clean run's scale, as the edge engine does.

    Only the prompts in `index` may be run inside, in that order.
    """
    blocks = engine.model.layout.blocks
    kept = [block.post_attention for block in blocks]
    try:
        for block, scale in zip(blocks, engine.clean.scales, strict=True):
            if isinstance(scale, Tensor):
                gain = block.weights()["ln1_post.w"].detach()
                block.post_attention = _Held(scale[index][..., 0], gain)
        yield
    finally:
        for block, norm in zip(blocks, kept, strict=True):
            block.post_attention = norm


@dataclass(frozen=True)
class _Held:
    """A norm with its scale [prompt, position, 1] held fixed."""

    scale: Tensor
    gain: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x / self.scale * self.gain
