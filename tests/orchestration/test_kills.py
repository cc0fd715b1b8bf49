"""Runs and sweeps ended at random moments, and several processes on one store. The drivers are scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SUPPORT = ROOT / "tests" / "support"


def driven(script: str, *arguments: object) -> Any:
    """What a driver printed."""
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    places = os.pathsep.join([str(SUPPORT), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, str(SUPPORT / script), *map(str, arguments)],
        env={**os.environ, **one_thread, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_random_ends_lose_nothing(tmp_path: Path) -> None:
    found = driven("kill_driver.py", tmp_path, 50, 20)
    assert found["faults"] == []
    assert found["kills"] == 50
    assert 5 < found["interrupts"] < 45  # both kinds of end
    assert found["resumed"] >= 3
    assert found["complete"] >= 10


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_processes_on_one_store_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    found = driven("crowd_driver.py", tmp_path, 8)
    assert found["codes"] == [0] * 8
    assert found["faults"] == []
    # Six children of the sweep that all share, and one run of its own for each process.
    assert (found["runs"], found["keys"]) == (14, 14)
    assert found["workers"] > 1
