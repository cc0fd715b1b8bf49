"""Activation patching against the peers: same weights, same prompts, one process, in turn.

    python benchmarks/patching.py [--json [FILE]] [--repeats 3] [--quick]

Random weights at GPT-2-small shape, 8 prompts of 16 tokens, logit difference at the last position,
denoising. Workload A: clean and corrupt differ in one token (position 5); workload B: in all. A ratio
counts only where the results agree, so the exit code is 1 when they do not; a missed bar is only told.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

BARS = {"resid": 12.0, "heads": 4.0, "workload_b.resid": 4.5}
HEADLINES = (
    "resid.ratio_transformerlens",
    "heads.ratio_transformerlens",
    "workload_b.resid.ratio_transformerlens",
    "overhead.forward",
    "overhead.capture",
)
VERSIONS = ("mech-interpretability", "torch", "transformers", "transformer_lens", "nnsight")


def main(arguments: list[str] | None = None) -> int:
    """Run what the options ask for; 1 when results disagree."""
    options = _options(arguments)
    os.environ["TQDM_DISABLE"] = "1"  # before a peer imports it
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(options.threads or torch.get_num_threads())
    if options.peak:
        from compare.memory import measure_here

        print(json.dumps(measure_here(options.peak, options.shape)))
        return 0
    report = compare(options)
    _write(report, options.json)
    return 1 if report["disagreements"] else 0


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison as one JSON-ready record."""
    import torch
    from compare.memory import peak_of
    from compare.overhead import run_overhead
    from compare.setting import BATCH, LENGTH, SHAPES, workload
    from compare.sweeps import open_sides, run_sweep

    shape = SHAPES[options.shape]
    sides, missing = open_sides(options.peers, shape, _say)
    judged = options.shape == "gpt2-small"
    settings = {"repeats": options.repeats, "stride": options.stride, "say": _say}

    def sweep(name: str, work: str, bar: str) -> dict[str, Any]:
        limit = BARS.get(bar) if judged else None
        return run_sweep(name, workload(work, shape), sides, shape, bar=limit, **settings)  # type: ignore[arg-type]

    report: dict[str, Any] = {
        "benchmark": "patching",
        "resid": sweep("resid", "one_token", "resid"),
        "heads": sweep("heads", "one_token", "heads"),
        "workload_b": {"resid": sweep("resid", "all_tokens", "workload_b.resid")},
    }
    if options.everything:
        report["workload_b"]["heads"] = sweep("heads", "all_tokens", "")
    overhead = run_overhead(sides["ours"], workload("one_token", shape), shape, options.overhead_repeats)  # type: ignore[arg-type]
    threads = torch.get_num_threads()
    report |= {
        "overhead": overhead,
        "memory": {
            name: peak_of(name, options.shape, threads)
            for name in sides
            if name != "public" and options.memory
        },
        "missing": missing,
        "model": asdict(shape),
        "batch": BATCH,
        "tokens": LENGTH,
        "repeats": options.repeats,
        "stride": options.stride,
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in VERSIONS},
    }
    return _with_headlines(report)


def _with_headlines(report: dict[str, Any]) -> dict[str, Any]:
    """The record with its headline figures in front, under their dotted names, and the disagreements."""
    sweeps = {"resid": report["resid"], "heads": report["heads"]}
    sweeps |= {f"workload_b.{name}": sweep for name, sweep in report["workload_b"].items()}
    problems = [
        f"{name}, {side}: {reason}"
        for name, sweep in sweeps.items()
        for side, reason in sweep["reasons"].items()
    ]
    problems += [f"overhead, {key}: {reason}" for key, reason in report["overhead"]["reasons"].items()]
    worst = max(sweep["max_abs_diff"] for sweep in sweeps.values())
    flat: dict[str, Any] = {"benchmark": report["benchmark"]}
    for dotted in HEADLINES:
        value: Any = report
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        flat[dotted] = value
    return flat | report | {"max_abs_diff": worst, "disagreements": problems}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    where = "write JSON to FILE (- or no name: standard output)"
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help=where)
    parser.add_argument("--repeats", type=int, help="runs of every side (3)")
    parser.add_argument("--quick", action="store_true", help="once, and peers on every 12th cell")
    parser.add_argument("--stride", type=int, help="peers run every n-th cell, scaled up (1)")
    parser.add_argument("--peers", nargs="*", default=["transformerlens", "nnsight", "hooks"], metavar="PEER")
    parser.add_argument("--everything", action="store_true", help="heads under workload B too")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out peak memory")
    parser.add_argument("--threads", type=int, help="torch threads (its own default)")
    parser.add_argument("--shape", choices=["gpt2-small", "toy"], default="gpt2-small")
    parser.add_argument(
        "--peak", choices=["ours", "transformerlens", "nnsight", "hooks"], help=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    options.repeats = options.repeats or (1 if options.quick else 3)
    options.stride = options.stride or (12 if options.quick else 1)
    options.overhead_repeats = 5 if options.quick or options.shape == "toy" else 20
    return options


def _write(report: dict[str, Any], target: str | None) -> None:
    from compare.report import text_of

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
