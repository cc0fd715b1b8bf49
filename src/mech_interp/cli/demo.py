"""`mech demo`: the main job, end to end, on a model that ships with the package or on any other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mech_interp.cli.access import settings_of
from mech_interp.cli.options import Home, complete_backends, complete_models
from mech_interp.cli.output import Format, Output


def demo(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="A bundled model, a folder, an alias or a hub id.",
            autocompletion=complete_models,
        ),
    ] = "tinyworld",
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Where summary.md, .json and .png are written."),
    ] = Path("mech-demo"),
    country: Annotated[
        str | None, typer.Option(metavar="NAME", help="The country shown in detail.", show_default="chosen")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="auto, float32, float64, bfloat16 or float16.")
    ] = "auto",
    backend: Annotated[
        str,
        typer.Option(metavar="NAME", help="What runs the model.", autocompletion=complete_backends),
    ] = "huggingface",
    home: Home = None,
) -> None:
    """How a model recalls facts: attribution, logit lens and patching in one panel.

    Each finding, over the capitals of many countries, comes with its interval and its control.
    """
    from mech_interp.reports.demo import run_demo

    out: Output = context.obj
    summary = run_demo(
        model=model,
        output=output,
        device=device,
        dtype=dtype,
        country=country,
        console=out.console,
        settings=settings_of(home=home),
        backend=backend,
    )
    if out.format is Format.JSON:
        out.document(summary)
    elif out.format is Format.QUIET:
        typer.echo(output / "summary.md")
