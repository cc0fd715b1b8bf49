"""ACDC beside the same decisions taken one edge per pass; path patching beside the peer's."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compare.circuit_setting import NO_PEER, Setting, judged, timed
from compare.setting import Shape
from compare.sides import TransformerLens

SEARCH, PATHS = 10.0, 4.0
CLOSE = 1e-5


def search(setting: Setting, tau: float, slice_size: int) -> dict[str, Any]:
    """The whole graph by ACDC; a slice of its decisions again by one pass of the edge engine each."""
    from mech_interp.backends.huggingface.edge_pruning import Work, prune_edges
    from mech_interp.methods.circuits.acdc import Negative

    engine, loss, work = setting.engine(), Negative(setting.metric), Work()
    wall, cpu, decisions = timed(lambda: list(prune_edges(engine, loss, tau, work=work)))
    evaluated = sum(len(one.effects) for one in decisions)
    passes = _one_by_one(engine, loss, decisions, slice_size)
    equal = passes["difference"] <= CLOSE
    per_pass, per_pass_cpu = passes["seconds"] / passes["edges"], passes["cpu"] / passes["edges"]
    found: dict[str, Any] = {
        "tau": tau,
        "layers": setting.shape.n_layer,
        "edges": int(engine.graph.n_edges),
        "kept": sum(len(one.kept) for one in decisions),
        "evaluated": evaluated,
        "rows": work.rows,
        "wasted": work.wasted / max(1, work.rows),
        "seconds": wall,
        "cpu": cpu,
        "slice": passes,
        "tolerance": CLOSE,
        "bar": SEARCH,
    }
    # The sequential algorithm, too, would leave out readers without a way to the logits.
    found["ratio"] = per_pass * evaluated / wall if equal else None
    found["ratio_cpu"] = per_pass_cpu * evaluated / cpu if equal else None
    found["ratio_all_edges_cpu"] = per_pass_cpu * engine.graph.n_edges / cpu if equal else None
    found["met"] = judged(found["ratio_cpu"], SEARCH, at_most=False)
    return found


def _one_by_one(engine: Any, loss: Any, decisions: list[Any], count: int) -> dict[str, Any]:
    """Evaluate edges spread over the decisions, each in a pass of its own from layer 0."""
    order = [(i, w) for i, one in enumerate(decisions) for w in one.effects]
    chosen = [order[i] for i in np.linspace(1, len(order) - 1, min(count, len(order) - 1)).astype(int)]
    seconds, processor, worst = 0.0, 0.0, 0.0
    for at, writer in chosen:
        before, after = _masks(engine, decisions, at, writer)
        with torch.no_grad():
            start = float(engine.evaluate(before[None], loss).double().mean())
            wall, cpu, value = timed(partial(engine.evaluate, after[None], loss))
        effect = float(value.double().mean()) - start
        worst = max(worst, abs(effect - decisions[at].effects[writer]))
        seconds, processor = seconds + wall, processor + cpu
    return {"edges": len(chosen), "seconds": seconds, "cpu": processor, "difference": worst}


def _masks(engine: Any, decisions: list[Any], at: int, writer: int) -> tuple[Tensor, Tensor]:
    """The circuit when an edge came up for decision, and without that edge."""
    mask = torch.tensor(engine.graph.possible, dtype=torch.float32)
    for one in decisions[:at]:
        mask[list(one.removed), one.reader] = 0
    earlier = list(decisions[at].effects)
    for other in earlier[: earlier.index(writer)]:
        if other in decisions[at].removed:
            mask[other, decisions[at].reader] = 0
    without = mask.clone()
    without[writer, decisions[at].reader] = 0
    return mask, without


def paths(
    setting: Setting, peer: TransformerLens | None, layers: list[int], peer_layer: int
) -> dict[str, Any]:
    """Direct paths from every head to the values of every later head, all positions, denoising.

    Values, because at random weights queries hardly matter: their effects are rounding on either side.

    Ours runs one head per layer of `layers` as receiver, and the rest is interpolated by layer; the peer
    runs one sender of `peer_layer`, and each of its cells is the same whole forward.
    """
    if peer is None:
        return {"reason": NO_PEER}
    shape = setting.shape
    per_layer = {layer: _ours(setting, [f"a{layer}.h0<v>"], None) for layer in layers}
    theirs = _peer(peer, setting, peer_layer)
    receivers = [
        f"a{layer}.h{head}<v>"
        for layer in range(peer_layer + 1, shape.n_layer)
        for head in range(shape.n_head)
    ]
    same = _ours(setting, receivers, [f"a{peer_layer}.h0"])["value"].mean(0)[0]
    difference = float(np.abs(same - theirs["value"]).max())
    spread = float(theirs["value"].max() - theirs["value"].min())
    allowed = min(CLOSE, spread / 100)
    found: dict[str, Any] = {
        "cells": _cells(shape),
        "measured": {
            str(layer): {k: v for k, v in one.items() if k != "value"} for layer, one in per_layer.items()
        },
        "peer_cells": len(theirs["value"]),
        "difference": difference,
        "spread": spread,
        "tolerance": allowed,
        "bar": PATHS,
    }
    for key, name in (("wall", "ratio"), ("cpu", "ratio_cpu")):
        each = [one[key] for one in per_layer.values()]
        total = shape.n_head * float(np.interp(range(1, shape.n_layer), layers, each).sum())
        whole = theirs[key] / len(theirs["value"]) * _cells(shape)
        found[f"seconds_{key}"] = {"ours": total, "peer": whole}
        found[name] = whole / total if difference <= allowed else None
    found["met"] = judged(found["ratio_cpu"], PATHS, at_most=False)
    return found


def _cells(shape: Shape) -> int:
    return math.comb(shape.n_layer, 2) * shape.n_head**2


def _ours(setting: Setting, receivers: list[str], senders: list[str] | None) -> dict[str, Any]:
    """Seconds, and the metric [prompt, sender, receiver]."""
    from mech_interp.graph import Reader, Writer
    from mech_interp.methods.circuits.path_sweep import PathSweep
    from mech_interp.methods.circuits.paths import Cells

    graph = setting.task().graph
    chosen: list[Reader] = [graph.readers[graph.reader(name)] for name in receivers]
    latest = max(reader.layer for reader in chosen)
    heads = [w for w in graph.writers if w.kind == "head" and w.layer < latest]
    some: list[Writer] = heads if senders is None else [graph.writers[graph.writer(name)] for name in senders]
    cells = Cells(tuple(some), tuple((reader,) for reader in chosen), tuple(receivers))

    def run() -> Any:
        sweep = PathSweep(setting.model, graph, setting.corrupt, setting.metric, "direct_edge")
        return sweep.measure(cells, setting.clean)

    wall, cpu, value = timed(run)
    return {"wall": wall, "cpu": cpu, "value": value[..., 0], "cells": len(some) * len(chosen)}


@torch.no_grad()
def _peer(peer: TransformerLens, setting: Setting, layer: int) -> dict[str, Any]:
    from transformer_lens import patching

    work = setting.work
    name = f"blocks.{layer}.attn.hook_z"

    def run() -> Tensor:
        caches = [
            peer.model.run_with_cache(ids, names_filter=lambda hook: hook == name)[1]
            for ids in (work.clean, work.corrupt)
        ]
        found: Tensor = patching.get_act_patch_direct_path(
            peer.model,
            work.corrupt,
            *caches,
            work.metric,
            src_layer=layer,
            src_head=0,
            component="v",
            verbose=False,
        )
        return found

    wall, cpu, value = timed(run)
    return {"wall": wall, "cpu": cpu, "value": value[layer + 1 :].flatten().double().numpy()}
