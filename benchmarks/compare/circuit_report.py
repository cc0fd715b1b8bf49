"""The circuit benchmarks as text for people."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

VERDICTS = {True: "met", False: "MISSED", None: "not judged"}


def text_of(report: dict[str, Any]) -> str:
    """All sections as plain text."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    head = [
        f"Circuits, GPT-2-small shape unless told otherwise, random weights, {report['prompts']} x "
        f"{report['tokens']} tokens, float32, {report['threads']} threads; {report['repeats']} repeats",
        versions,
        "seconds are of processor time, the least over repeats; wall time in brackets",
    ]
    if report["quick"]:
        head.append("QUICK: few repeats, slices instead of whole sweeps, ACDC on 3 layers")
    return "\n".join([*head, *_sections(report)])


def _sections(report: dict[str, Any]) -> Iterator[str]:
    yield from _forwards(report["eap"])
    yield from _peer(report["peer"])
    yield from _search(report["acdc"])
    yield from _paths(report["paths"])
    yield from _memory(report["memory"])
    yield from _growth(report["growth"])
    yield from (f"DISAGREE: {problem}" for problem in report["disagreements"])


def _forwards(sections: list[dict[str, Any]]) -> Iterator[str]:
    yield "\nEAP scores of all edges, in forwards of the same batch (F)"
    for one in sections:
        seconds = one["seconds"]
        yield f"  {one['workload']}: F {_pair(seconds['forward'])}, EAP {_pair(seconds['eap'])}"
        yield (
            f"    = {_times(one['forwards_cpu'])} F ({_times(one['forwards'])}); forward and backward "
            f"is {one['forward_backward_cpu']:.2f} F"
        )
        yield f"    off the exact engine's derivative by {one['difference']:.1e} of the largest score"
        yield f"    bar: at most {one['bar']:g} F: {VERDICTS[one['met']]}"


def _peer(one: dict[str, Any]) -> Iterator[str]:
    yield "\nEAP per prompt beside TransformerLens, gradient at the corrupt run, edges pooled over positions"
    if "reason" in one:
        yield f"  {one['reason']}"
        return
    cpu, wall = one["cpu_per_prompt"], one["seconds_per_prompt"]
    yield f"  mech {cpu['ours']:.3f} s ({wall['ours']:.3f})"
    yield f"  TransformerLens {cpu['peer']:.2f} s ({wall['peer']:.2f}), {one['peer_prompts']} prompts timed"
    yield f"  {_times(one['ratio_cpu'])} x ({_times(one['ratio'])} x)"
    yield (
        f"  {one['edges']:,} edges: sides within {one['difference']:.1e} of the largest score, edges of the "
        f"embedding within {one['difference_embedding']:.1e}"
    )
    yield f"  bar: at least {one['bar']:g} x: {VERDICTS[one['met']]}"


def _search(one: dict[str, Any]) -> Iterator[str]:
    yield f"\nACDC over the whole graph, {one['layers']} layers, {one['edges']:,} edges, tau {one['tau']:g}"
    passes = one["slice"]
    yield (
        f"  {one['kept']:,} edges stay; {one['evaluated']:,} evaluated in {one['rows']:,} rows, "
        f"{one['wasted']:.0%} wasted: {one['cpu']:.1f} s ({one['seconds']:.1f})"
    )
    each, each_wall = statistics.mean(passes["cpu"]), statistics.mean(passes["seconds"])
    yield (
        f"  one edge per pass, in turn with it: {each:.3f} s ({each_wall:.3f}) on {passes['edges']} of them, "
        f"{min(passes['cpu']):.3f} to {max(passes['cpu']):.3f}; effects within {passes['difference']:.1e}"
    )
    low, high = one["ratio_cpu_spread"]
    yield (
        f"  extrapolated to the edges evaluated: {_times(one['ratio_cpu'])} x ({_times(one['ratio'])} x), by "
        f"single passes {low:.2f} to {high:.2f} x; to every edge: {_times(one['ratio_all_edges_cpu'])} x"
    )
    yield f"  bar: at least {one['bar']:g} x: {VERDICTS[one['met']]}"


def _paths(one: dict[str, Any]) -> Iterator[str]:
    yield "\nDirect paths from heads to values of later heads, all positions at once"
    if "reason" in one:
        yield f"  {one['reason']}"
        return
    cpu, wall = one["seconds_cpu"], one["seconds_wall"]
    yield f"  {one['cells']:,} cells, both sides extrapolated"
    yield f"  mech {cpu['ours']:.0f} s ({wall['ours']:.0f}), from layers {', '.join(one['measured'])}"
    yield f"  TransformerLens {cpu['peer']:.0f} s ({wall['peer']:.0f}), from {one['peer_cells']} cells"
    yield f"  {_times(one['ratio_cpu'])} x ({_times(one['ratio'])} x)"
    yield f"  cells spread over {one['spread']:.1e}, sides within {one['difference']:.1e}"
    yield f"  bar: at least {one['bar']:g} x: {VERDICTS[one['met']]}"


def _memory(one: dict[str, Any]) -> Iterator[str]:
    yield "\nPeak memory of EAP beside a plain forward and backward"
    if "reason" in one:
        yield f"  {one['reason']}"
        return
    eap, plain = one["eap"], one["forward_backward"]
    yield (
        f"  added to the opened model: {eap['added_mb']:.0f} MB and {plain['added_mb']:.0f} MB, "
        f"{one['ratio_added']:.2f} x; with the weights ({eap['weights_mb']:.0f} MB) {one['ratio']:.2f} x"
    )
    yield f"  bar: at most {one['bar']:g} x with the weights: {VERDICTS[one['met']]}"


def _growth(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "\nHow EAP grows"
    for row in rows:
        yield (
            f"  {row['layers']:2} layers {row['prompts']:2} prompts {row['edges']:7,} edges   "
            f"EAP {row['eap_cpu']:.3f} s   F {row['forward_cpu']:.3f} s   {row['forwards_cpu']:.2f} F"
        )


def _pair(seconds: dict[str, float]) -> str:
    return f"{seconds['cpu']:.3f} s ({seconds['wall']:.3f})"


def _times(value: float | None) -> str:
    return "not counted" if value is None else f"{value:.2f}"
