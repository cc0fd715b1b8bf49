"""`mech grade-circuit`: the heads of a circuit against a published one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mech_interp.cli.options import Home
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.graph import Circuit


def grade_circuit(
    context: typer.Context,
    circuit: Annotated[
        str, typer.Argument(metavar="RUN|FILE", help="A run that found a circuit, or a circuit file.")
    ],
    reference: Annotated[
        str,
        typer.Option("--reference", help="A shipped reference, or a YAML or JSON file of groups of heads."),
    ] = "ioi-gpt2-small",
    home: Home = None,
) -> None:
    """The heads of a circuit against a published one, by functional group.

    Overlap with a reference is not faithfulness: quote both.
    """
    from mech_interp.methods.circuits.grade import grade_heads, load_reference

    out: Output = context.obj
    against = load_reference(reference)
    found, name = _circuit(circuit, home, out)
    grade = grade_heads(found, against)
    said = {"circuit": name, **grade.to_dict()}

    def draw(console: Console) -> None:
        from mech_interp.rendering.terminal import render

        console.print(render(grade.view()))

    out.emit(said, draw, quiet=[f"{grade.overall.value:.4f}"])


def _circuit(named: str, home: Path | None, out: Output) -> tuple[Circuit, str]:
    """The circuit of a file or of a stored run."""
    from mech_interp.experiments.families.circuit_evaluation import read_circuit

    if Path(named).expanduser().is_file():
        return read_circuit(named).circuit, Path(named).name
    from mech_interp.cli import access
    from mech_interp.storage.reading import RunReader

    with access.existing(home, out) as store:
        (record,) = access.found(store, [named])
    return read_circuit(str(RunReader(record.path).graph("circuit.json"))).circuit, record.id
