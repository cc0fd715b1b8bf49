"""`mech sweep`: one spec at every combination of some of its values."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import drawing, progress, sweep_report
from mech_interp.cli import run as running
from mech_interp.cli.access import opened, settings_of
from mech_interp.cli.failures import UNSOUND
from mech_interp.cli.options import Backend, Device, Home, Model, complete_specs
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.config.settings import Settings
    from mech_interp.config.spec import Spec
    from mech_interp.orchestration.records import ChildState, Sweep
    from mech_interp.orchestration.sweep import SweepOutcome


class OnFailure(StrEnum):
    """What a sweep does when one of its runs fails."""

    STOP = "stop"
    CONTINUE = "continue"


def sweep(
    context: typer.Context,
    spec: running.Name = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", "-b", metavar="SPEC", help="The same as SPEC; or a file.", autocompletion=complete_specs
        ),
    ] = None,
    file: running.File = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            "--axis",
            "-a",
            metavar="KEY=VALUES",
            help="Values to go through: seed=0,1,2 or parameters.n=[16, 64]. Repeatable.",
        ),
    ] = None,
    execute: Annotated[bool, typer.Option("--execute", "-x", help="Run it; without, only the plan.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write the runs' specs there.")
    ] = None,
    on_failure: Annotated[
        OnFailure, typer.Option("--on-failure", help="When a run fails or is void.")
    ] = OnFailure.CONTINUE,
    model: Model = None,
    backend: Backend = None,
    device: Device = None,
    values: running.Set = None,
    tag: running.Tag = None,
    force: running.Force = False,
    home: Home = None,
) -> None:
    """Run a spec at every combination of some of its values.

    The values are those of its matrix, or of --axis. Without --execute the plan is shown. A sweep that was
    interrupted goes on when the same command is given again; several processes may share one. Exits with 8
    if a run failed, is void or cannot run.
    """
    out: Output = context.obj
    settings = settings_of(home=home)
    chosen = _chosen(out, spec or base, file, settings)
    chosen = chosen.changed(running.overrides(values, model=model, backend=backend, device=device))
    if axis:
        from mech_interp.orchestration.sweep import with_axes

        chosen = with_axes(chosen, axis)
    written = _write(chosen, output) if output is not None else []
    outcome = _execute(out, chosen, settings, on_failure.value, force, tag or ()) if execute else None
    found, children = (
        _plan(out, chosen, settings, tag or ()) if outcome is None else (outcome.sweep, outcome.children)
    )
    document = {"sweep": found.id, "children": [child.to_dict() for child in children]}
    document |= {} if outcome is None else outcome.to_dict()
    out.emit(
        {**document, "written": [str(path) for path in written]},
        lambda console: _draw(console, out, found, children, outcome, written),
        quiet=[child.run or child.child.name for child in children],
    )
    if any(child.status in ("failed", "invalid", "void") for child in children):
        raise typer.Exit(UNSOUND)


def _chosen(out: Output, name: str | None, file: Path | None, settings: Settings) -> Spec:
    if name is not None and file is None and Path(name).suffix in (".yaml", ".yml", ".json"):
        return running.choose(out, None, Path(name), settings)
    return running.choose(out, name, file, settings)


def _write(spec: Spec, folder: Path) -> list[Path]:
    from mech_interp.orchestration.sweep import write_specs
    from mech_interp.storage.errors import files

    with files(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return write_specs(spec, folder)


def _plan(
    out: Output, spec: Spec, settings: Settings, tags: Sequence[str]
) -> tuple[Sweep, Sequence[ChildState]]:
    """The sweep, and how each run stands in the store, if there is one."""
    from mech_interp.orchestration import records
    from mech_interp.orchestration.sweep import plan_sweep

    with progress.shown(out, f"planning {spec.name}"):
        found = plan_sweep(spec, settings, tags=tags)
    with opened(settings.home) as store:
        if store is not None:
            return found, records.states(found, store)
    status = {True: records.INVALID, False: records.WAITING}
    return found, [
        records.ChildState(child, status[child.key is None], error=child.error) for child in found.children
    ]


def _execute(
    out: Output, spec: Spec, settings: Settings, on_failure: Any, force: bool, tags: Sequence[str]
) -> SweepOutcome:
    from rich.text import Text

    from mech_interp.orchestration.sweep import run_sweep

    with progress.shown(out, spec.name) as display:

        def settled(state: ChildState, index: int, total: int) -> None:
            if display is not None:
                display.step, display.title = None, f"{spec.name}, {index + 2} of {total}"
                mark = sweep_report.MARKS.get(state.status, ("·", "dim"))
                why = f": {state.error}" if state.error else ""
                count = f" {index + 1} of {total} "
                out.errors.print(Text.assemble(mark, (count, "dim"), state.child.name, (why, "red")))

        return run_sweep(
            spec,
            settings,
            on_failure=on_failure,
            force=force,
            tags=tags,
            progress=display,
            on_child=settled,
        )


def _draw(
    console: Console,
    out: Output,
    found: Sweep,
    children: Sequence[ChildState],
    outcome: SweepOutcome | None,
    written: Sequence[Path],
) -> None:
    sweep_report.draw_children(console, found, children)
    console.print()
    console.print(_summary(children, outcome), highlight=False)
    if written:
        console.print(
            f"{drawing.count(len(written), 'spec')} written to {written[0].parent}.", highlight=False
        )
    if outcome is None:
        out.note("Nothing was run; add --execute to run what is waiting.")
    else:
        out.note(f"Its results side by side: mech sweep-report {found.id}")


def _summary(children: Sequence[ChildState], outcome: SweepOutcome | None) -> str:
    counts = sweep_report.counts(children)
    told = ", ".join(f"{n} {status}" for status, n in counts.items())
    text = f"{drawing.count(len(children), 'run')}: {told}"
    if outcome is None:
        return f"{text}."
    stopped = " It stopped at the first failure." if outcome.stopped else ""
    done = f"{outcome.ran} computed and {outcome.reused} found finished, in {drawing.lasted(outcome.seconds)}"
    return f"{text}; {done}.{stopped}"
