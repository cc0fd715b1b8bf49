"""The circuit engine: edge attribution, ACDC and path patching, in forwards and against the peer.

    python benchmarks/circuits.py [--json [FILE]] [--repeats 7] [--quick]

Random weights at GPT-2-small shape, 8 prompts of 16 tokens, logit difference at the last position. F is one
forward without gradients, logits at the last position. A ratio counts only where the results agree, so
the exit code is 1 when they do not; a missed bar is only told. Processor time decides, as the machine may
be busy; wall time stands beside it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

HEADLINES = {
    "eap.forwards": ("eap", 0, "forwards_cpu"),
    "eap.ratio_transformerlens": ("peer", "ratio_cpu"),
    "acdc.ratio_one_by_one": ("acdc", "ratio_cpu"),
    "paths.ratio_transformerlens": ("paths", "ratio_cpu"),
    "memory.ratio": ("memory", "ratio"),
}
VERSIONS = ("mech-interpretability", "torch", "transformers", "transformer_lens")
TAU = 1.5e-3
"""Leaves about 1,000 of 32,491 edges of the random model."""


def main(arguments: list[str] | None = None) -> int:
    """Run what the options ask for; 1 when results disagree."""
    options = _options(arguments)
    os.environ["TQDM_DISABLE"] = "1"  # before a peer imports it
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(options.threads or torch.get_num_threads())
    if options.peak:
        from compare.circuit_memory import measure_here

        print(json.dumps(measure_here(options.peak, options.shape, options.workload)))
        return 0
    report = compare(options)
    _write(report, options.json)
    return 1 if report["disagreements"] else 0


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison as one JSON-ready record."""
    import torch
    from compare.circuit_attribution import against_peer, growth, in_forwards
    from compare.circuit_memory import peaks
    from compare.circuit_search import paths, search
    from compare.circuit_setting import CIRCUIT_SHAPES, open_peer, opened
    from compare.setting import BATCH, LENGTH, workload

    shape = CIRCUIT_SHAPES[options.shape]
    every = opened(shape, "all_tokens")
    one = every.on(workload("one_token", shape), BATCH)
    quick, toy, threads = options.quick, options.shape == "toy", torch.get_num_threads()
    _say("edge attribution in forwards")
    report: dict[str, Any] = {"benchmark": "circuits"}
    report["eap"] = [in_forwards(setting, options.repeats) for setting in (every, one)]
    _say("edge attribution beside the peer")
    peer = open_peer(shape)
    report["peer"] = against_peer(every, peer, options.repeats, 1 if quick or toy else 3)
    _say("ACDC")
    small = opened(CIRCUIT_SHAPES["gpt2-small, 3 layers"], "all_tokens") if quick and not toy else every
    report["acdc"] = search(small, options.tau, 12 if quick else 48)
    _say("path patching")
    last = shape.n_layer - 1
    layers = sorted({1, (1 + last) // 2, last}) if not quick or toy else sorted({2, last})
    report["paths"] = paths(every, peer, layers, max(0, last - (1 if quick else 2)))
    _say("memory")
    report["memory"] = (
        peaks(options.shape, "all_tokens", threads) if options.memory else {"reason": "left out"}
    )
    _say("growth")
    report["growth"] = growth(every, 1 if quick else 3)
    report |= {
        "disagreements": _disagreements(report),
        "prompts": BATCH,
        "tokens": LENGTH,
        "repeats": options.repeats,
        "quick": quick,
        "shape": options.shape,
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in VERSIONS},
    }
    if options.shape != "gpt2-small":
        _without_verdicts(report)
    elif quick:
        report["acdc"]["met"] = None  # fewer layers than the bar is for
    return {name: _at(report, path) for name, path in HEADLINES.items()} | report


def _disagreements(report: dict[str, Any]) -> list[str]:
    """Where results differ by more than they may."""
    places = [(f"EAP, {one['workload']}", one, one["difference"]) for one in report["eap"]]
    places += [
        (name, report[key], report[key].get("difference", 0.0))
        for name, key in (("EAP beside the peer", "peer"), ("paths beside the peer", "paths"))
    ]
    places.append(("ACDC", report["acdc"], report["acdc"]["slice"]["difference"]))
    return [
        f"{name}: results differ by {found:.1e}, more than {one['tolerance']:.1e}"
        for name, one, found in places
        if "tolerance" in one and not found <= one["tolerance"]
    ]


def _without_verdicts(report: dict[str, Any]) -> None:
    """Bars are for GPT-2-small shape."""
    for section in [*report["eap"], *(report[key] for key in ("peer", "acdc", "paths", "memory"))]:
        if "met" in section:
            section["met"] = None


def _at(report: dict[str, Any], path: tuple[str | int, ...]) -> Any:
    value: Any = report
    for key in path:
        value = value[key] if isinstance(key, int) else value.get(key)
    return value


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    where = "write JSON to FILE (- or no name: standard output)"
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help=where)
    parser.add_argument("--repeats", type=int, help="runs of every side (7; quick: 3)")
    parser.add_argument("--quick", action="store_true", help="under two minutes: slices, ACDC on 3 layers")
    parser.add_argument("--tau", type=float, default=TAU, help=f"ACDC's threshold ({TAU:g})")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out peak memory")
    parser.add_argument("--threads", type=int, help="torch threads (its own default)")
    parser.add_argument("--shape", choices=["gpt2-small", "toy"], default="gpt2-small")
    parser.add_argument("--peak", choices=["eap", "forward_backward"], help=argparse.SUPPRESS)
    parser.add_argument("--workload", default="all_tokens", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.repeats = options.repeats or (3 if options.quick else 7)
    return options


def _write(report: dict[str, Any], target: str | None) -> None:
    from compare.circuit_report import text_of

    line = json.dumps(report)
    print(text_of(report), file=sys.stderr if target == "-" else sys.stdout)
    if target == "-":
        print(line)
    elif target:
        Path(target).write_text(line + "\n", encoding="utf-8")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "source tree" if name == VERSIONS[0] else "not installed"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
