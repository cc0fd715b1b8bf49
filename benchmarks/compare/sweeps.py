"""One sweep on all sides: times, ratios, and whether the results agree."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compare.setting import Shape, Workload
from compare.sides import PACKAGES, SIDES, Side, Sweep, cells_of
from compare.timing import Ratio, Sample, in_turn

OURS = ("ours", "public")
Say = Callable[[str], None]


def open_sides(names: Sequence[str], shape: Shape, say: Say) -> tuple[dict[str, Side], dict[str, str]]:
    """The sides that can be had, each with its own copy of the same weights; and why others cannot."""
    sides: dict[str, Side] = {}
    missing: dict[str, str] = {}
    for name in (*OURS, *names):
        package = PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            missing[name] = f"{package} is not installed; install the extra: mech-interpretability[bench]"
            continue
        say(f"opening {name}")
        sides[name] = SIDES[name](shape)
    return sides, missing


def tolerance(ours: Tensor) -> float:
    """Sides agree to a thousandth of the spread of the cells, and to 1e-5 at least."""
    return min(1e-5, float(ours.max() - ours.min()) / 1000)


def run_sweep(
    sweep: Sweep,
    work: Workload,
    sides: Mapping[str, Side],
    shape: Shape,
    *,
    repeats: int,
    stride: int,
    bar: float | None,
    say: Say,
) -> dict[str, Any]:
    """Time a sweep on all sides; the peers on every `stride`-th cell, scaled up.

    A peer's cost per cell does not depend on the cell: each is one whole forward pass.
    """
    whole = cells_of(sweep, shape)
    cells = {name: whole if name in OURS else whole[::stride] for name in sides}
    for name, side in sides.items():
        if name != "public":  # the same code as ours
            side.run(sweep, work, cells[name][:1])

    def note(name: str, repeat: int, sample: Sample) -> None:
        say(
            f"{work.name} {sweep} {name} {repeat + 1}/{repeats}: {sample.wall:.2f} s (cpu {sample.cpu:.2f} s)"
        )

    samples = in_turn(
        {name: partial(side.run, sweep, work, cells[name]) for name, side in sides.items()},
        repeats,
        {name: len(whole) / len(cells[name]) for name in sides},
        note,
    )
    return _summary(samples, stride, bar)


def _summary(samples: Mapping[str, list[Sample]], stride: int, bar: float | None) -> dict[str, Any]:
    ours = samples["ours"][0].value
    allowed = tolerance(ours)
    found: dict[str, Any] = {
        "cells": len(ours),
        "spread_of_cells": float(ours.max() - ours.min()),
        "tolerance": allowed,
        "max_abs_diff": 0.0,
        "seconds": {},
        "cpu_seconds": {},
        "differences": {},
        "ratios": {},
        "reasons": {},
        "bar": bar,
    }
    for name, taken in samples.items():
        reference = ours if name in OURS else ours[::stride]
        difference = max(_distance(sample.value, reference) for sample in taken)
        found["differences"][name] = difference
        found["seconds"][name] = statistics.median(sample.wall for sample in taken)
        found["cpu_seconds"][name] = statistics.median(sample.cpu for sample in taken)
        if difference > allowed:
            found["reasons"][name] = f"results differ by {difference:.1e}, more than {allowed:.1e}"
        if name not in OURS:
            _add_ratios(found, name, samples)
    found["max_abs_diff"] = max(found["differences"].values())
    headline = found.get("ratio_transformerlens")
    found["met"] = None if bar is None or headline is None else headline >= bar
    return found


def _add_ratios(found: dict[str, Any], name: str, samples: Mapping[str, list[Sample]]) -> None:
    """`ratio_NAME` (null where results disagree) with its spread."""
    agree = not {"ours", name} & set(found["reasons"])
    wall = Ratio.of([s.wall for s in samples[name]], [s.wall for s in samples["ours"]])
    cpu = Ratio.of([s.cpu for s in samples[name]], [s.cpu for s in samples["ours"]])
    found[f"ratio_{name}"] = wall.median if agree else None
    if agree:
        found["ratios"][name] = {
            "median": wall.median,
            "min": wall.smallest,
            "max": wall.largest,
            "cpu_median": cpu.median,
            "cpu_min": cpu.smallest,
            "cpu_max": cpu.largest,
        }
        if "public" in samples and "public" not in found["reasons"]:
            public = Ratio.of([s.wall for s in samples[name]], [s.wall for s in samples["public"]])
            found["ratios"][name]["public_median"] = public.median


def _distance(value: Tensor, reference: Tensor) -> float:
    """Largest absolute difference; infinite where something is not a number."""
    difference = (value.double() - reference.double()).abs()
    return float(difference.max()) if bool(torch.isfinite(difference).all()) else float("inf")
