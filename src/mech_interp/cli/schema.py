"""`mech schema`: the JSON Schema of specs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mech_interp.cli.options import a_file, complete_families
from mech_interp.cli.output import Output


def schema(
    context: typer.Context,
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            metavar="NAME",
            help="Only the parameters of this family.",
            autocompletion=complete_families,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", callback=a_file, help="Write it there.")
    ] = None,
) -> None:
    """The JSON Schema of specs, for editors and programs.

    An editor that knows it completes and checks specs while they are written.
    """
    from mech_interp.config import spec_schema
    from mech_interp.experiments import registry
    from mech_interp.storage import atomic
    from mech_interp.storage.plain import dumps

    out: Output = context.obj
    if family is not None:
        found = registry.get(family).Params.model_json_schema(by_alias=True)
    else:
        found = spec_schema(registry.parameter_models())
    if output is None:
        out.document(found)
        return
    atomic.write_text(output, dumps(found))
    out.emit(
        {"path": str(output)},
        lambda console: console.print(f"Written to {output}.", soft_wrap=True, highlight=False),
        quiet=[output],
    )
