"""`mech replay`: do the same numbers come out again?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mech_interp.cli import access, drawing, progress
from mech_interp.cli.drawing import Column
from mech_interp.cli.failures import UNSOUND
from mech_interp.cli.options import Home, Run
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.orchestration.replaying import Replay

GRADES = {
    "same": "the same environment, so the numbers should be equal",
    "compatible": "a compatible environment, so the numbers should agree within their tolerances",
    "different": "a different environment, so the numbers may differ",
}


def replay(
    context: typer.Context,
    run: Run,
    keep: Annotated[
        bool, typer.Option("--save/--no-save", help="Keep the finding with the run, outside its seal.")
    ] = True,
    home: Home = None,
) -> None:
    """Do the same numbers come out again?

    Runs the run again in a scratch folder, compares every metric within the tolerance that it states, and
    says how far this environment is from the recorded one. Exits with 8 if a number does not agree.
    """
    from mech_interp.orchestration.replaying import replay as replayed

    output: Output = context.obj
    settings = access.settings_of(home=home)
    with access.existing(home, output) as store:
        record = store.find(run)
        save = keep and not store.read_only
    with progress.shown(output, f"replaying {record.id}") as display:
        found = replayed(record.open(), settings, progress=display, save=save)
    apart = [check.name for check in found.metrics if not check.agrees]
    output.emit(found.to_dict(), lambda console: _draw(console, found), quiet=apart)
    if not found.agrees:
        raise typer.Exit(UNSOUND)


def _draw(console: Console, found: Replay) -> None:
    from rich.text import Text

    mark = ("✓ ", "green") if found.agrees else ("✗ ", "bold red")
    n = len(found.metrics)
    right = sum(check.agrees for check in found.metrics)
    told = (
        f"all {n} numbers came out again"
        if right == n
        else f"{n - right} of {n} numbers did not come out again"
    )
    console.print(Text.assemble(mark, (found.run, "bold"), f": {told}, in {drawing.lasted(found.seconds)}"))
    console.print(Text(f"{found.grade}: {GRADES[found.grade]}"))
    for reason in (*found.reasons, *found.notes):
        console.print(Text(f"  {reason}", style="dim"))
    console.print()
    columns = [
        Column("metric"),
        Column("recorded", right=True),
        Column("now", right=True),
        Column("difference", right=True),
        Column("allowed", right=True),
        Column("", keep=True),
    ]
    verdicts = {True: Text("agrees", style="green"), False: Text("differs", style="bold red")}
    rows = [
        [
            check.name,
            drawing.number(check.recorded),
            drawing.number(check.replayed),
            _difference(check.recorded, check.replayed),
            drawing.scientific(check.allowed),
            verdicts[check.agrees],
        ]
        for check in found.metrics
    ]
    console.print(drawing.table(console, columns, rows))


def _difference(one: float | None, two: float | None) -> str:
    return "" if one is None or two is None else drawing.scientific(abs(one - two))
