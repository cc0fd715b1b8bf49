"""ACDC beside the same decisions taken one edge per pass; path patching beside the peer's."""

from __future__ import annotations

import math
import statistics
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
    """The whole graph by ACDC; in turn with it, some of its decisions by a pass of the edge engine each."""
    from mech_interp.backends.huggingface.edge_pruning import Work, prune_edges
    from mech_interp.methods.circuits.acdc import Negative

    engine, loss, work = setting.engine(), Negative(setting.metric), Work()
    slices = Slices(engine, loss, max(1, engine.graph.n_edges // slice_size))
    live, wall, cpu = prune_edges(engine, loss, tau, work=work), 0.0, 0.0
    while True:
        took, processor, decision = timed(partial(next, live, None))
        wall, cpu = wall + took, cpu + processor
        if decision is None:
            break
        slices.see(decision)
    decisions, evaluated = slices.decisions, slices.evaluated
    passes = slices.record()
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
    equal = passes["difference"] <= CLOSE
    each = passes["cpu"]
    # The sequential algorithm, too, would leave out readers without a way to the logits.
    found["ratio"] = statistics.mean(passes["seconds"]) * evaluated / wall if equal else None
    found["ratio_cpu"] = statistics.mean(each) * evaluated / cpu if equal else None
    found["ratio_cpu_spread"] = [bound * evaluated / cpu for bound in (min(each), max(each))]
    found["ratio_all_edges_cpu"] = statistics.mean(each) * engine.graph.n_edges / cpu if equal else None
    found["met"] = judged(found["ratio_cpu"], SEARCH, at_most=False)
    return found


class Slices:
    """Every so many evaluated edges, one of them again, in a pass of its own from layer 0."""

    def __init__(self, engine: Any, loss: Any, stride: int) -> None:
        self.engine, self.loss, self.stride = engine, loss, stride
        self.decisions: list[Any] = []
        self.evaluated = 0
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.worst = 0.0
        full = torch.tensor(engine.graph.possible, dtype=torch.float32)
        engine.evaluate(full[None], loss)  # so that no timed pass computes what all of them share

    def see(self, decision: Any) -> None:
        """Take in what was decided at one reader; time passes where it is the turn of one of its edges."""
        at, writers = len(self.decisions), list(decision.effects)
        self.decisions.append(decision)
        for i, writer in enumerate(writers):
            if (self.evaluated + i) % self.stride == 0:
                self._once(at, writer)
        self.evaluated += len(writers)

    def _once(self, at: int, writer: int) -> None:
        before, after = _masks(self.engine, self.decisions, at, writer)
        with torch.no_grad():
            start = float(self.engine.evaluate(before[None], self.loss).double().mean())
            wall, cpu, value = timed(partial(self.engine.evaluate, after[None], self.loss))
        effect = float(value.double().mean()) - start
        self.worst = max(self.worst, abs(effect - self.decisions[at].effects[writer]))
        self.seconds.append(wall)
        self.cpu.append(cpu)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "edges": len(self.cpu),
            "seconds": self.seconds,
            "cpu": self.cpu,
            "difference": self.worst,
        }


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
