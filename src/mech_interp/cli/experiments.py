"""`mech experiments`: the specs that can be run from here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import drawing, library
from mech_interp.cli.access import settings_of
from mech_interp.cli.drawing import Column, Filled
from mech_interp.cli.options import Family
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

EMPTY = "No specs here. Write one (mech families, mech schema), or name a file: mech run --spec FILE"


def experiments(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Only the specs in this folder.")
    ] = None,
    family: Family = None,
) -> None:
    """The specs that can be run from here.

    They are those of the folder experiments (the setting specs), then those that come with mech.
    """
    output: Output = context.obj
    entries, problems = listed(directory, family)

    def human(console: Console) -> None:
        draw(console, entries)
        for problem in problems:
            output.note(f"left out: {problem}")

    output.emit({"specs": entries, "problems": problems}, human, quiet=[entry["name"] for entry in entries])


def listed(
    directory: Path | None = None, family: str | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The specs as plain values, and what could not be read."""
    found = library.read(settings_of(), directory)
    entries = [
        _plain(entry) for entry in found.entries.values() if family is None or entry.spec.family == family
    ]
    return entries, [str(problem) for problem in found.problems]


def draw(console: Console, entries: Sequence[dict[str, Any]]) -> None:
    """A table of specs."""
    if not entries:
        console.print(EMPTY)
        return
    columns: list[Filled] = [
        (Column(head, keep=head == "spec", right=head == "runs"), [entry[key] for entry in entries])
        for head, key in (("spec", "name"), ("model", "model"), ("runs", "runs"))
    ]
    # Names of specs say their family as a rule, so it gives way first.
    family: Filled = (Column("family"), [entry["family"] for entry in entries])
    origin: Filled = (Column("from"), [entry["origin"] for entry in entries])
    room = console.width - sum(drawing.breadth(*one) for one in columns)
    if room >= drawing.breadth(*family):
        columns.insert(1, family)
        room -= drawing.breadth(*family)
    if room >= drawing.breadth(*origin):
        columns.append(origin)
    console.print(drawing.filled(console, columns))


def _plain(entry: library.Entry) -> dict[str, Any]:
    from mech_interp.config import expand

    spec = entry.spec
    children = expand(spec)
    models = list(dict.fromkeys(child.model for child in children))
    return {
        "name": spec.name,
        "family": spec.family,
        "model": ", ".join(models),
        "runs": len(children),
        "description": spec.description,
        "tags": list(spec.tags),
        "origin": entry.origin,
        "path": str(entry.path),
    }
