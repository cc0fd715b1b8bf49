"""The table for people: what was compared, times, ratios with spread, bars."""

from __future__ import annotations

from typing import Any

NAMES = {"transformerlens": "TransformerLens", "nnsight": "nnsight", "hooks": "plain hooks"}
SWEEPS = {
    ("resid",): "residual stream, layer x position, one token differs (A)",
    ("heads",): "heads, layer x head, one token differs (A)",
    ("workload_b", "resid"): "residual stream, layer x position, all tokens differ (B)",
    ("workload_b", "heads"): "heads, layer x head, all tokens differ (B)",
}


def at(report: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The value under a path of keys, or None."""
    for key in path:
        report = report.get(key, {})
    return report or None


def text_of(report: dict[str, Any]) -> str:
    """All sweeps, overheads and memory as plain text."""
    model, versions = report["model"], report["versions"]
    lines = [
        f"Activation patching, {model['n_layer']} layers x {model['n_head']} heads x {model['n_embd']} wide, "
        f"vocabulary {model['vocab_size']}, batch {report['batch']} x {report['tokens']} tokens, float32, "
        f"{report['threads']} threads",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"repeats: {report['repeats']}, sides in turn; ratio = peer's seconds / ours, median [min to max]",
    ]
    if report["stride"] > 1:
        lines.append(f"QUICK: peers ran every {report['stride']}th cell, scaled up")
    for path, title in SWEEPS.items():
        sweep = at(report, path)
        if sweep:
            lines += ["", title, *_sweep_lines(sweep, report["missing"])]
    lines += ["", *_overhead_lines(report["overhead"]), "", *_memory_lines(report["memory"])]
    lines += ["", f"largest difference between sides: {report['max_abs_diff']:.1e}"]
    lines += [f"DISAGREE: {problem}" for problem in report["disagreements"]]
    return "\n".join(lines)


def _sweep_lines(sweep: dict[str, Any], missing: dict[str, str]) -> list[str]:
    lines = [
        f"  {sweep['cells']} cells spread over {sweep['spread_of_cells']:.1e}, "
        f"sides within {sweep['max_abs_diff']:.1e} (allowed {sweep['tolerance']:.1e})",
        f"  {'mech':16} {sweep['seconds']['ours']:9.2f} s   (cpu {sweep['cpu_seconds']['ours']:.2f} s)",
        f"  {'mech, public API':16} {sweep['seconds']['public']:9.2f} s   "
        f"(cpu {sweep['cpu_seconds']['public']:.2f} s; with controls, checks, intervals)",
    ]
    for key, name in NAMES.items():
        if key in missing:
            lines.append(f"  {name:16} {missing[key]}")
        elif key in sweep["seconds"]:
            lines.append(f"  {name:16} {sweep['seconds'][key]:9.2f} s   {_ratio(sweep, key)}")
    if sweep["bar"] is not None:
        verdict = {True: "met", False: "MISSED", None: "not judged"}[sweep["met"]]
        lines.append(f"  bar: {sweep['bar']:g} x TransformerLens: {verdict}")
    return lines


def _ratio(sweep: dict[str, Any], key: str) -> str:
    if key not in sweep["ratios"]:
        return "does not count: " + "; ".join(sweep["reasons"].values())
    ratio = sweep["ratios"][key]
    return (
        f"{ratio['median']:6.2f} x [{ratio['min']:.2f} to {ratio['max']:.2f}]   "
        f"processor time {ratio['cpu_median']:.2f} x"
    )


def _overhead_lines(overhead: dict[str, Any]) -> list[str]:
    lines = [f"overhead beside the library's own forward (bar {overhead['bar']:g} x)"]
    for key in ("forward", "capture"):
        if overhead[key] is None:
            lines.append(f"  {key:8} does not count: {overhead['reasons'][key]}")
            continue
        spread = overhead["spread"][key]
        met = "met" if overhead[key] <= overhead["bar"] else "MISSED"
        lines.append(
            f"  {key:8} {overhead[key]:.3f} x [{spread['min']:.2f} to {spread['max']:.2f}]   "
            f"processor time {overhead['cpu'][key]:.3f} x   {met}"
        )
    return lines


def _memory_lines(memory: dict[str, Any]) -> list[str]:
    lines = ["peak resident memory of a residual sweep, each side in its own process (MB)"]
    for name, found in memory.items():
        if "reason" in found:
            lines.append(f"  {name:16} {found['reason']}")
        else:
            lines.append(
                f"  {name:16} {found['peak_mb']:7.0f}   (opened {found['opened_mb']:.0f}, "
                f"sweep adds {found['sweep_mb']:.0f})"
            )
    return lines
