"""Metrics, tables, views and sentences of an activation patching sweep."""

from __future__ import annotations

from typing import Any

import numpy as np

from mech_interp.experiments.parts import by_group, control, flat, halves, number
from mech_interp.experiments.result import Control, Finding, Metric, Result
from mech_interp.methods.patching_result import PatchingResult
from mech_interp.statistics import Estimate

_TIDY = {"logit_difference": "logits", "probability": "probability", "probability_difference": "probability"}


def report(found: PatchingResult, other: PatchingResult | None, room: float) -> Result:
    """The result of a sweep, and of the sweep over control sites where there was one.

    `room` is the relative size of harmless rounding, which the identities are held to.
    """
    views = {"effects": found.view(), "strongest": found.table_view()}
    tables: dict[str, list[dict[str, Any]]] = {"cells": flat(found.table()), "pairs": _pairs(found)}
    if other is not None:
        views["control_effects"] = other.view()
        tables["control_cells"] = flat(other.table())
    noising = found.direction == "noising"
    return Result(
        question=(
            f"Which {_what(found)} of {found.model} "
            f"{'does the answer need' if noising else 'suffice to restore the answer'} ({found.task})?"
        ),
        method=_method(found),
        metrics=_metrics(found, other),
        tables=tables,
        tensors={"effects": found.effects, "control_effects": found.control_effects},
        views=views,
        findings=[_finding(found)],
        controls=_sanity(found, room) + _controls(found, other),
        caveats=_caveats(found),
    )


def _what(found: PatchingResult) -> str:
    return "sites" if found.patched_what == "sites" else f"{found.patched_what} sites"


def _method(found: PatchingResult) -> str:
    ends = ("clean", "corrupt") if found.direction == "denoising" else ("corrupt", "clean")
    unit = (
        "shares of the mean difference between the two runs (a ratio of means)"
        if found.normalised
        else "the metric's own unit"
    )
    return (
        f"Activation patching ({found.direction}): the {ends[0]} run's activation is put into the {ends[1]} "
        "run "
        f"at one cell at a time, and the {found.metric.replace('_', ' ')} is read; effects in {unit}. "
        "Controls: a run patched with itself, the whole input patched, the same patch from an unrelated "
        "pair. "
        "95 % intervals by cluster bootstrap over groups; p by sign-flip max-T over all cells."
    )


def _metrics(found: PatchingResult, other: PatchingResult | None) -> dict[str, Metric]:
    unit = _TIDY.get(found.metric, "nats" if found.metric == "kl" else "")
    share = "fraction of the clean-corrupt difference" if found.normalised else unit
    clean, corrupt = (
        (found.other, found.base) if found.direction == "denoising" else (found.base, found.other)
    )
    base, end = found.baseline
    ends = (end, base) if found.direction == "denoising" else (base, end)
    metrics = {
        "clean_metric": Metric.of(ends[0], unit=unit, per_group=by_group(clean, found.groups)),
        "corrupt_metric": Metric.of(ends[1], unit=unit, per_group=by_group(corrupt, found.groups)),
        "significant_cells": Metric(
            value=int(found.test.significant().sum()),
            n=int(np.prod(found.shape)),
            unit="cells",
            absolute=1.0,  # on another processor a borderline p may fall on the other side
            method="max-T over all cells, p <= 0.05",
            reason="a count of tested cells has no interval",
        ),
        "weak_pairs": Metric(
            value=len(found.weak_pairs),
            n=len(found),
            unit="pairs",
            better="lower",
            method="own clean-corrupt difference below a quarter of the mean",
            reason="a count of pairs has no interval",
        ),
    }
    cell, top, _ = _top(found)
    metrics["top_effect"] = Metric.of(
        top,
        unit=share,
        control=control("the same patch from an unrelated pair", _control_at(found, cell)),
        per_group=by_group(found.effects[_cell(cell)], found.groups),
    )
    if other is not None:
        worst = tuple(int(i) for i in np.unravel_index(_largest(other), other.shape))
        metrics["top_control_site_effect"] = Metric.of(
            other.estimates.at(*worst),
            unit=share,
            per_group=by_group(other.effects[_cell(worst)], other.groups),
        )
    return metrics


def _top(found: PatchingResult) -> tuple[tuple[int, ...], Estimate, str]:
    """The strongest cell, its effect, and how it was chosen."""
    top = found.top_site
    if top is not None:
        return top.site, top.estimate, halves(top)
    cell = found.top(1)[0]
    return cell, found.estimates.at(*cell), "chosen and measured on the same pairs"


def _cell(cell: tuple[int, ...]) -> Any:
    """The index of one cell in [n, *grid]."""
    return (slice(None), *cell)


def _control_at(found: PatchingResult, cell: tuple[int, ...]) -> Estimate | None:
    return None if found.control_estimates is None else found.control_estimates.at(*cell)


def _largest(found: PatchingResult) -> int:
    return int(np.abs(found.estimates.value).argmax())


def _pairs(found: PatchingResult) -> list[dict[str, Any]]:
    weak = set(found.weak_pairs)
    cell, _, _ = _top(found)
    effect = found.effects[_cell(cell)]
    clean, corrupt = (
        (found.other, found.base) if found.direction == "denoising" else (found.base, found.other)
    )
    return [
        {
            "pair": i,
            "group": found.groups[i],
            "clean_metric": float(clean[i]),
            "corrupt_metric": float(corrupt[i]),
            "top_cell_effect": float(effect[i]),
            "weak": i in weak,
            "unrelated_pair": found.donors[i],
        }
        for i in range(len(found))
    ]


def _finding(found: PatchingResult) -> Finding:
    cell, top, how = _top(found)
    p, of = float(found.test.adjusted_p[cell]), int(np.prod(found.shape))
    verb = "removes" if found.direction == "noising" else "restores"
    unit = "of the clean-corrupt difference" if found.normalised else "of the metric"
    # A site is written as it is spelled; "layer 3, head 1" begins a sentence.
    name = found.label(cell) if found.axes[0] == "site" else found.label(cell).capitalize()
    if not p <= 0.05:
        text = (
            f"No single cell of {of} is told from zero after max-T (the strongest, {found.label(cell)}, "
            f"{verb} "
            f"{number(top)} {unit}; adjusted p = {p:.2g})."
        )
    else:
        text = f"{name} alone {verb} {number(top)} {unit} ({how}; adjusted p = {p:.2g} over {of} cells)."
    names = [one.name for one in _controls(found, None)]
    return Finding(text, ["top_effect", "effects", "cells"], names)


def _sanity(found: PatchingResult, room: float) -> list[Control]:
    known = {
        "self_patch": "a run patched with its own activations does not move",
        "restore_all": "the whole input patched gives the other run's metric",
    }
    return [
        Control(name, expected, found.sanity[name], bool(found.sanity[name] <= room), sanity=True)
        for name, expected in known.items()
    ]


def _controls(found: PatchingResult, other: PatchingResult | None) -> list[Control]:
    controls = []
    cell, top, _ = _top(found)
    beside = _control_at(found, cell)
    if beside is not None and beside.n > 0:
        controls.append(
            Control(
                "unrelated_pair",
                "the same patch from an unrelated pair has a smaller effect than the pair's own",
                float(beside.value),
                abs(beside.value) < abs(top.value),
            )
        )
    if other is not None:
        worst = float(other.estimates.value.ravel()[_largest(other)])
        controls.append(
            Control(
                "control_sites",
                "no control site has as large an effect as the strongest cell",
                worst,
                abs(worst) < abs(top.value),
            )
        )
    return controls


def _caveats(found: PatchingResult) -> list[str]:
    kept = "suffices" if found.direction == "denoising" else "is needed"
    opposite = "noising" if found.direction == "denoising" else "denoising"
    out = [
        f"{found.direction.capitalize()} shows what {kept}; backup components can hide what a single patch "
        f"would show. The {opposite} sweep is not its mirror image and may rank cells otherwise.",
        "Another corruption asks another question: effects are about what differs between the two prompts.",
    ]
    if found.patched_what.startswith("resid"):
        out.append(
            "In the first layer the stream at the tokens that differ is the whole input, and behind the last "
            "layer the stream at the last token is the output: effects near 1 there are so by construction."
        )
    if found.weak_pairs:
        out.append(
            f"{len(found.weak_pairs)} of {len(found)} pairs have a clean-corrupt difference below a quarter "
            "of "
            "the mean; without them the shares would be larger."
        )
    reason = found.estimates.at(*(0 for _ in found.shape)).reason
    return [*out, *([f"There are no intervals: {reason}."] if reason else [])]
