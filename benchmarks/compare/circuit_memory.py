"""Peak memory of edge attribution beside a plain forward and backward, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from compare.circuit_setting import CIRCUIT_SHAPES, judged, opened
from compare.memory import MEGABYTE, _forget_peak, _resident_peak

BAR = 1.5
SIDES = ("eap", "forward_backward")


def peaks(shape: str, work: str, threads: int) -> dict[str, Any]:
    """Megabytes that each side needs at its peak, and their ratio.

    What a side needs are the weights and what it adds to the opened model; `ratio_added` leaves the weights
    out, and `ratio_whole` is of the whole processes, libraries included.
    """
    found: dict[str, Any] = {side: _peak_of(side, shape, work, threads) for side in SIDES}
    reasons = [one["reason"] for one in found.values() if "reason" in one]
    if reasons:
        return {"reason": reasons[0]}
    found["bar"] = BAR
    eap, plain = found["eap"], found["forward_backward"]
    found["ratio"] = (eap["weights_mb"] + eap["added_mb"]) / (plain["weights_mb"] + plain["added_mb"])
    found["ratio_added"] = eap["added_mb"] / plain["added_mb"]
    found["ratio_whole"] = eap["peak_mb"] / plain["peak_mb"]
    found["met"] = judged(found["ratio"], BAR, at_most=True)
    return found


def _peak_of(side: str, shape: str, work: str, threads: int) -> dict[str, Any]:
    script = Path(__file__).parent.parent / "circuits.py"
    options = ["--peak", side, "--shape", shape, "--workload", work, "--threads", str(threads)]
    done = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return {"reason": (done.stderr.strip().splitlines() or ["the process failed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure_here(side: str, shape: str, work: str) -> dict[str, float]:
    """The figures of one side, for this process."""
    setting = opened(CIRCUIT_SHAPES[shape], work)
    setting.forward()  # what the library keeps for itself is there before
    _forget_peak()
    before = _resident_peak()
    if side == "eap":
        setting.scores()
    else:
        setting.forward_backward()
    peak = _resident_peak()
    weights = sum(p.numel() * p.element_size() for p in setting.model.module.parameters()) / MEGABYTE
    return {"opened_mb": before, "peak_mb": peak, "added_mb": peak - before, "weights_mb": weights}
