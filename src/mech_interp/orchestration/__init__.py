"""Running specs: one (`run_spec`), many (`run_sweep`), checked beforehand, compared and replayed afterwards.

    from mech_interp.config import read_specs, resolve_settings
    from mech_interp.orchestration import run_spec
    settings, _ = resolve_settings()
    outcome = run_spec(read_specs("experiment.yaml")[0], settings)

Names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mech_interp.orchestration.checks import Check, preflight
    from mech_interp.orchestration.comparison import Comparison, compare
    from mech_interp.orchestration.errors import BusyError, InterruptedRunError
    from mech_interp.orchestration.progress import Step
    from mech_interp.orchestration.records import ChildState, Sweep, find_sweep, states, sweeps
    from mech_interp.orchestration.replaying import Replay, replay
    from mech_interp.orchestration.runner import RunOutcome, run_spec
    from mech_interp.orchestration.session import Session
    from mech_interp.orchestration.sweep import SweepOutcome, plan_sweep, run_sweep, with_axes, write_specs

_HOMES = {
    "BusyError": "errors",
    "Check": "checks",
    "ChildState": "records",
    "Comparison": "comparison",
    "InterruptedRunError": "errors",
    "Replay": "replaying",
    "RunOutcome": "runner",
    "Session": "session",
    "Step": "progress",
    "Sweep": "records",
    "SweepOutcome": "sweep",
    "compare": "comparison",
    "find_sweep": "records",
    "plan_sweep": "sweep",
    "preflight": "checks",
    "replay": "replaying",
    "run_spec": "runner",
    "run_sweep": "sweep",
    "states": "records",
    "sweeps": "records",
    "with_axes": "sweep",
    "write_specs": "sweep",
}

__all__ = [
    "BusyError",
    "Check",
    "ChildState",
    "Comparison",
    "InterruptedRunError",
    "Replay",
    "RunOutcome",
    "Session",
    "Step",
    "Sweep",
    "SweepOutcome",
    "compare",
    "find_sweep",
    "plan_sweep",
    "preflight",
    "replay",
    "run_spec",
    "run_sweep",
    "states",
    "sweeps",
    "with_axes",
    "write_specs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
