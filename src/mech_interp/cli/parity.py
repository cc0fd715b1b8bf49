"""`mech parity`: do all backends give the same numbers for this model?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import drawing, progress
from mech_interp.cli.access import settings_of
from mech_interp.cli.drawing import Column
from mech_interp.cli.failures import UNSOUND
from mech_interp.cli.options import Home, a_file, complete_models
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mech_interp.orchestration.parity_result import ParityReport


def parity(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A bundled model, a folder, an alias or a hub id.",
            autocompletion=complete_models,
        ),
    ],
    backends: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…", help="Backends to compare with the default one.", show_default="all installed"
        ),
    ] = None,
    families: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="Kinds of experiment whose metrics are compared.",
            show_default="all that apply",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="auto, float32, float64, bfloat16 or float16.")
    ] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the report here too (JSON).")
    ] = None,
    home: Home = None,
) -> None:
    """Do all backends give the same numbers for this model?

    Every site, the next-token distributions, greedy continuations and the metrics of small runs, on each
    backend beside the default one. Exits with 8 where a bound is missed.
    """
    from mech_interp.orchestration.parity import parity as measure
    from mech_interp.orchestration.parity_record import record, store
    from mech_interp.orchestration.session import Session
    from mech_interp.storage import atomic

    out: Output = context.obj
    path, settings = a_file(output), settings_of(home=home)
    session = Session(settings)
    try:
        with progress.shown(out, f"comparing backends on {model}"):
            report = measure(
                model,
                session,
                named=_listed(backends),
                families=_listed(families),
                device=device,
                dtype=dtype,
            )
        document = record(report, session)
    finally:
        session.close()
    kept = store(document, settings.home)
    if path is not None:
        atomic.write_json(path, document)
    out.emit(
        {**document, "file": str(kept)},
        lambda console: _draw(console, report, [kept, *([path] if path else [])]),
        quiet=[kept],
    )
    if not report.holds:
        raise typer.Exit(UNSOUND)


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [one.strip() for one in text.split(",") if one.strip()]


def _draw(console: Console, report: ParityReport, files: Sequence[Path]) -> None:
    from rich.text import Text

    model = report.model
    console.print(
        Text.assemble(
            (str(model["name"]), "bold"),
            f"  {model['architecture']}, {model['layers']} layers, {report.dtype} on {report.device}; "
            f"{len(report.prompts)} prompts of {min(report.prompts)} to {max(report.prompts)} tokens",
        )
    )
    console.print(
        f"Largest difference from {report.reference}, relative to the largest value at that site; "
        "L3: in layer 3.\n",
        highlight=False,
        style="dim",
    )
    if report.backends:
        columns = [Column("", keep=True), *(Column(one.backend, right=True) for one in report.backends)]
        console.print(drawing.table(console, columns, list(rows(report))))
    console.print()
    for one in report.backends:
        _draw_verdict(console, one.to_dict())
    for why in dict.fromkeys(report.refused.values()):
        names = ", ".join(name for name, reason in report.refused.items() if reason == why)
        console.print(Text(f"· Not run on any: {names}. {why}", style="dim"))
    for name, command in report.absent.items():
        console.print(Text(f"· {name} is not installed: {command}", style="dim"))
    console.print(f"\nWrote {', '.join(map(str, files))}. {report.seconds:.1f} s.", highlight=False)


def rows(report: ParityReport) -> list[list[Text]]:
    """The lines of the table: site kinds, families, distributions, continuations; a column per backend.

    One digit, so that five backends fit a terminal; the stored report has them all.
    """
    from rich.text import Text

    from mech_interp.sites import KINDS

    told = [one.to_dict() for one in report.backends]

    def line(label: str, cells: Sequence[Text]) -> list[Text]:
        return [Text(label), *cells]

    lines = []
    for kind in KINDS:
        if any(kind in one.get("sites", {}) for one in told):
            lines.append(line(kind, [_site(one, kind) for one in told]))
    for family in report.families:
        lines.append(line(family, [_family(one, family) for one in told]))
    lines.append(line("KL (nats)", [_number(one.get("kl"), one["kl_bound"]) for one in told]))
    for label, key in (("tokens read", "tokens_equal"), ("greedy continuations", "continuations_equal")):
        lines.append(line(label, [_equal(one.get(key)) for one in told]))
    lines.append(line("bound", [Text(f"{one['bound']:.0e}", style="dim") for one in told]))
    return lines


def _site(one: Mapping[str, Any], kind: str) -> Text:
    found = one.get("sites", {}).get(kind)
    if found is None:
        return _nothing()
    where = "" if found["layer"] is None or found["gap"] == 0 else f" L{found['layer']}"
    return _number(found["gap"], one["bound"], where)


def _family(one: Mapping[str, Any], family: str) -> Text:
    """The worst metric of a family."""
    gaps = [found["gap"] for name, found in one.get("metrics", {}).items() if name.startswith(f"{family}.")]
    if not gaps:
        return _nothing()
    return _number(None if None in gaps else max(gaps), one["bound"])


def _number(value: float | None, bound: float, where: str = "") -> Text:
    from rich.text import Text

    if value is None:
        return Text("none", style="bold red")
    text = "0" if value == 0 else f"{value:.0e}"
    return Text.assemble((text, "" if value <= bound else "bold red"), (where, "dim"))


def _equal(value: bool | None) -> Text:
    from rich.text import Text

    if value is None:
        return _nothing()
    return Text("equal") if value else Text("differ", style="bold red")


def _nothing() -> Text:
    from rich.text import Text

    return Text("–", style="dim")


def _draw_verdict(console: Console, one: Mapping[str, Any]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    mark, style = ("✓", "green") if one["holds"] else ("✗", "bold red")
    package = f" ({one['package']})" if one["package"] else ""
    verdict = "agrees" if one["holds"] else f"misses {drawing.count(len(one['misses']), 'bound')}"
    console.print(Text.assemble((f"{mark} ", style), (one["backend"], "bold"), f"{package} {verdict}"))
    told = [*one["misses"][:8]]
    told += [f"{kind} is not shown: {why}" for kind, why in one.get("not_shown", {}).items()]
    told += [f"{family} was not run: {why}" for family, why in one.get("refused", {}).items()]
    for sentence in told:
        console.print(Padding(Text(sentence, style="dim"), (0, 0, 0, 2)))
