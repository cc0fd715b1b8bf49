"""`mech verify`: are the files of a run those that it wrote?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import access, drawing
from mech_interp.cli.drawing import Column
from mech_interp.cli.failures import UNSOUND
from mech_interp.cli.options import Home, complete_runs
from mech_interp.cli.output import Output
from mech_interp.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.storage.records import RunRecord


def verify(
    context: typer.Context,
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...", help="Numbers, ids, suffixes or folders.", autocompletion=complete_runs
        ),
    ] = None,
    all_runs: Annotated[bool, typer.Option("--all", help="Every finished run.")] = False,
    home: Home = None,
) -> None:
    """Are the files of a run those that it wrote?

    Names every file that was changed, removed or added. Exits with 8 if there is one.
    """
    output: Output = context.obj
    if bool(runs) == all_runs:
        raise InputError("Which runs?", "Name at least one, or give --all.")
    with access.existing(home, output) as store:
        every = store.runs("has finished", include_archived=True) if all_runs else []
        records = every or access.found(store, runs or ())
    checked = [check(record) for record in records]
    output.emit(
        {"ok": all(one["ok"] for one in checked), "runs": checked},
        lambda console: _draw(console, checked),
        quiet=[f"{one['run']}/{problem['path']}" for one in checked for problem in one["problems"]],
    )
    if not all(one["ok"] for one in checked):
        raise typer.Exit(UNSOUND)


def check(record: RunRecord) -> dict[str, Any]:
    """One run's verdict: how many files were checked, and what is wrong with which."""
    from mech_interp.storage.verify import verify as problems_of

    problems = problems_of(record.path, record.result_sha256)
    listed = 0
    if not any(problem.path == "result.json" for problem in problems):
        listed = len(record.open().result()["files"]) + 2  # result.json and its seal
    told = [{"path": one.path, "kind": one.kind, "detail": one.detail} for one in problems]
    return {"run": record.id, "ok": not problems, "files": listed, "problems": told}


def _draw(console: Console, checked: Sequence[dict[str, Any]]) -> None:
    from rich.text import Text

    for one in checked:
        if one["ok"]:
            told = f": {one['files']} files, all as they were sealed"
            console.print(Text.assemble(("✓ ", "green"), one["run"], told))
            continue
        n = drawing.count(len(one["problems"]), "problem")
        console.print(Text.assemble(("✗ ", "bold red"), one["run"], f": {n}"))
        columns = [Column("file"), Column("is", keep=True), Column("why")]
        rows = [[problem["path"], problem["kind"], problem["detail"]] for problem in one["problems"]]
        console.print(drawing.table(console, columns, rows))
