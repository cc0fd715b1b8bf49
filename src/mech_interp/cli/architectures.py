"""`mech list-hf-architectures`: the architectures that open with all their sites, from their layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import drawing
from mech_interp.cli.drawing import Column
from mech_interp.cli.output import Output
from mech_interp.errors import InputError, nearest

if TYPE_CHECKING:
    from rich.console import Console

OTHERS = (
    "Any other decoder-only architecture of the library runs at block level, by plain hooks: the residual "
    "stream between blocks, logits and generation. Code that comes with a checkpoint is never run."
)


def list_hf_architectures(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL_TYPE]", help="Show the sites of one, and why it lacks others."),
    ] = None,
) -> None:
    """The architectures that can be opened, and the sites of each."""
    from mech_interp.backends import architectures

    output: Output = context.obj
    rows = [one.to_dict() for one in architectures.every()]
    if name is None:
        output.emit(
            {"architectures": rows, "others": OTHERS},
            lambda console: _draw(console, rows),
            quiet=[row["model_type"] for row in rows],
        )
        return
    known = {key: row for row in rows for key in (row["model_type"], row["title"])}
    if name not in known:
        raise InputError(
            f"There is no layout for the architecture {name!r:.80}.",
            nearest(name, known) or f"There are: {', '.join(row['model_type'] for row in rows)}.",
        )
    row = known[name]
    output.emit(row, lambda console: _draw_one(console, row), quiet=row["sites"])


def _draw(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.text import Text

    columns = [Column("architecture"), Column("model_type", keep=True), Column("sites", right=True)]
    columns += [Column("what is special", style="dim"), Column("lacks", at=120, style="dim")]
    console.print(
        drawing.table(
            console,
            columns,
            [
                [
                    row["title"],
                    row["model_type"],
                    len(row["sites"]),
                    ", ".join(row["notes"]),
                    ", ".join(row["missing"]),
                ]
                for row in rows
            ],
        )
    )
    console.print(Text(f"\n{OTHERS}\nThe sites of one: mech list-hf-architectures {rows[0]['model_type']}"))


def _draw_one(console: Console, row: Mapping[str, Any]) -> None:
    from rich.text import Text

    console.print(Text.assemble((row["title"], "bold"), f" ({row['model_type']}): {', '.join(row['notes'])}"))
    console.print(Text(f"\nSites: {', '.join(row['sites'])}"))
    if row["only_in_some_layers"]:
        console.print(Text(f"Only in some layers: {', '.join(row['only_in_some_layers'])}"))
    if row["missing"]:
        console.print()
        columns = [Column("lacks", keep=True), Column("because", style="dim")]
        console.print(drawing.table(console, columns, list(row["missing"].items())))
