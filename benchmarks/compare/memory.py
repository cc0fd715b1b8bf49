"""Peak resident memory of one side, measured in a process of its own: the counter never goes down."""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from compare.setting import SHAPES, workload
from compare.sides import SIDES, cells_of

MEGABYTE = 1 << 20


def peak_of(side: str, shape: str, threads: int) -> dict[str, Any]:
    """Megabytes after opening and at the peak of a residual sweep, in a fresh process.

    Peers run a few cells: each is the same forward pass.
    """
    script = Path(__file__).parent.parent / "patching.py"
    command = [sys.executable, str(script), "--peak", side, "--shape", shape, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"reason": (done.stderr.strip().splitlines() or ["the process failed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure_here(side: str, shape: str) -> dict[str, float]:
    """The figures of `peak_of`, for this process."""
    size = SHAPES[shape]
    opened_side = SIDES[side](size)
    _forget_peak()
    opened = _resident_peak()
    work = workload("one_token", size)
    cells = cells_of("resid", size)
    opened_side.run("resid", work, cells if side in ("ours", "public") else cells[:4])
    peak = _resident_peak()
    return {"opened_mb": opened, "peak_mb": peak, "sweep_mb": peak - opened}


def _forget_peak() -> None:
    """Start the peak anew where the system can: making random weights takes more than a sweep."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident_peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        # The other counter starts at the size of the process that started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MEGABYTE if sys.platform == "darwin" else 1024)
