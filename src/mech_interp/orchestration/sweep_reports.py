"""What a sweep found, from its record and the runs it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mech_interp.orchestration.records import INVALID, WAITING, Sweep, states
from mech_interp.reports.across import Line, line_of, sweep_report

if TYPE_CHECKING:
    from mech_interp.storage import Store


def report_sweep(sweep: Sweep, store: Store) -> str:
    """The report of a sweep as Markdown: every child with its axis values and numbers.

    Raises:
        StorageError: a run is damaged.
    """
    found = states(sweep, store)
    axes = list(dict.fromkeys(axis for child in sweep.children for axis in child.values))
    lines = [
        line_of(store.find(state.run).open(), state.child.values) for state in found if state.run is not None
    ]
    family = str(sweep.spec.get("family", ""))
    lines += [
        Line(
            run=state.child.name,
            name=state.child.name,
            family=family,
            model=str(sweep.spec.get("model", "")),
            status=INVALID,
            error=state.error,
        )
        for state in found
        if state.status == INVALID
    ]
    waiting = [state.child.name for state in found if state.status == WAITING]
    return sweep_report(sweep.name, axes, lines, waiting)
