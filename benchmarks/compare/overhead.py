"""What opening a model costs: forward and capture beside the library's own forward."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compare.setting import Shape, Workload
from compare.sides import Ours
from compare.timing import Ratio, in_turn

BAR = 1.1


def run_overhead(ours: Ours, work: Workload, shape: Shape, repeats: int) -> dict[str, Any]:
    """Ratios ours / library of a forward with all logits, and of one that captures every resid_pre."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(shape.n_layer)]
    ids = work.clean.tolist()
    pairs = {
        "forward": (
            partial(_forward, ours, ids, ()),
            partial(_library, ours.model.module, work.clean, False),
        ),
        "capture": (
            partial(_forward, ours, ids, names),
            partial(_library, ours.model.module, work.clean, True),
        ),
    }
    found: dict[str, Any] = {
        "bar": BAR,
        "repeats": repeats,
        "reasons": {},
        "spread": {},
        "cpu": {},
        "seconds": {},
    }
    for key, (mine, library) in pairs.items():
        in_turn({"ours": mine, "library": library}, 1)
        samples = in_turn({"ours": mine, "library": library}, repeats)
        taken = {name: [s.wall for s in side] for name, side in samples.items()}
        ratio = Ratio.of(taken["ours"], taken["library"])
        cpu = Ratio.of([s.cpu for s in samples["ours"]], [s.cpu for s in samples["library"]])
        found["seconds"][key] = {name: statistics.median(values) for name, values in taken.items()}
        found["spread"][key] = {"min": ratio.smallest, "max": ratio.largest}
        found["cpu"][key] = cpu.median
        a, b = samples["ours"][0].value, samples["library"][0].value
        difference = float((a - b).abs().max())
        allowed = 1e-5 * max(1.0, float(b.abs().max()))
        found[key] = ratio.median if difference <= allowed else None
        if not difference <= allowed:
            found["reasons"][key] = f"results differ by {difference:.1e}, more than {allowed:.1e}"
    values = [found["forward"], found["capture"]]
    found["met"] = None if None in values else max(values) <= BAR
    return found


def _forward(ours: Ours, ids: list[list[int]], names: tuple[str, ...] | list[str]) -> Tensor:
    result = ours.model.forward(ids, capture=names)
    assert result.logits is not None
    return torch.stack([result.activations[name] for name in names]) if names else result.logits


@torch.no_grad()
def _library(module: Any, ids: Tensor, hidden: bool) -> Tensor:
    out = module(ids, output_hidden_states=hidden, use_cache=False)
    # The library's last hidden state is after the final norm: the streams entering blocks are the others.
    return torch.stack(out.hidden_states[:-1]) if hidden else out.logits
