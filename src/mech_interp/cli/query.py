"""`mech query-runs`: the runs that match an expression, or options that amount to one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from mech_interp.cli import access, drawing
from mech_interp.cli import runs as listing
from mech_interp.cli.options import Family, Home, complete_models
from mech_interp.cli.output import Format, Output
from mech_interp.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.storage.index import Store
    from mech_interp.storage.records import RunRecord

CSV_COLUMNS = ("id", "name", "family", "backend", "model", "status", "seed", "created", "seconds")


class Table(StrEnum):
    """How the runs are listed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def _option(name: str, help: str, **more: object) -> object:
    return typer.Option(name, metavar="TEXT", help=help, rich_help_panel="Conditions", **more)  # type: ignore[arg-type]


def query_runs(
    context: typer.Context,
    expression: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPRESSION", help="For example 'metric.final_rank < 3 and tag = paper'."),
    ] = None,
    family: Family = None,
    status: Annotated[str | None, _option("--status", "complete, void, failed, …")] = None,
    model: Annotated[str | None, _option("--model", "Its model.", autocompletion=complete_models)] = None,
    backend: Annotated[str | None, _option("--backend", "What ran the model.")] = None,
    tag: Annotated[list[str] | None, _option("--tag", "A tag it has; each that is given.")] = None,
    metric: Annotated[str | None, _option("--metric", "A metric it has.")] = None,
    metric_min: Annotated[
        float | None,
        typer.Option(metavar="X", help="Least value of --metric.", rich_help_panel="Conditions"),
    ] = None,
    hook_site: Annotated[str | None, _option("--hook-site", "A site it touches.")] = None,
    layer: Annotated[
        int | None, typer.Option(metavar="N", help="A layer it touches.", rich_help_panel="Conditions")
    ] = None,
    dataset_hash: Annotated[str | None, _option("--dataset-hash", "Data it used.")] = None,
    matrix_id: Annotated[str | None, _option("--matrix-id", "The sweep it belongs to.")] = None,
    include_archived: Annotated[bool, typer.Option("--include-archived", help="Archived runs too.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many.")] = 100,
    output_format: Annotated[
        Table | None, typer.Option("--output-format", help="As a table, JSON or CSV.", show_default="table")
    ] = None,
    home: Home = None,
) -> None:
    """The runs that match an expression or some options.

    Fields: family, status, model, backend, name, tag, site, layer, dataset, seed, created, seconds,
    archived, parameter.NAME, metric.NAME and others. Operators: = != < <= > >= and ~ (contains), joined by
    and, or, not and parentheses; `has metric.NAME`. Dates may be cut short: created > 2026-03.
    """
    output: Output = context.obj
    if metric_min is not None and metric is None:
        raise InputError(
            "--metric-min needs --metric.", "Give for example --metric recovery --metric-min 0.5."
        )
    conditions = [
        *_equal("family", family),
        *_equal("status", status),
        *_equal("model", model),
        *_equal("backend", backend),
        *(one for text in tag or () for one in _equal("tag", text)),
        *([f"has {_quoted(f'metric.{metric}')}"] if metric is not None else []),
        *([f"{_quoted(f'metric.{metric}')} >= {metric_min!r}"] if metric_min is not None else []),
        *_equal("site", hook_site),
        *([f"layer = {layer}"] if layer is not None else []),
        *_equal("dataset", dataset_hash),
        *_equal("matrix", matrix_id),
    ]
    whole = conjunction(" ".join(expression or ()), conditions)
    advice = ""
    with access.opened(home, output) as store:
        found = store.runs(whole, limit=limit + 1, include_archived=include_archived) if store else []
        if store and not found:
            advice = store.advice(whole)
    if store is None:
        _check(whole)
    named = asked_metrics(whole)
    if output_format is Table.CSV:
        typer.echo(as_csv(found[:limit]), nl=False)
        return
    output.format = Format.JSON if output_format is Table.JSON else output.format
    output.emit(
        {"query": whole, **listing.document(found[:limit])},
        lambda console: _draw(console, output, found, limit, named, advice),
        quiet=[run.id for run in found[:limit]],
    )


def _draw(
    console: Console,
    output: Output,
    found: Sequence[RunRecord],
    limit: int,
    named: Sequence[str],
    advice: str,
) -> None:
    if not found:
        console.print(f"No run matches. {advice}".strip())
        return
    listing.draw(console, found[:limit], named)
    if len(found) > limit:
        output.note(f"\nThe latest {limit} of those that match; more with --limit.")
    else:
        output.note(f"\n{drawing.count(len(found), 'run')}.")


def conjunction(expression: str, conditions: Iterable[str]) -> str:
    """All of the conditions and the expression."""
    conditions = list(conditions)
    if not expression.strip():
        return " and ".join(conditions)
    return " and ".join([f"({expression})" if conditions else expression, *conditions])


def asked_metrics(expression: str) -> list[str]:
    """The metrics that an expression speaks of, in order."""
    from mech_interp.storage import query

    node = query.parse(expression)
    asked = [] if node is None else [field.name for field in query.fields(node) if field.table == "metric"]
    return list(dict.fromkeys(asked))


def as_csv(found: Sequence[RunRecord]) -> str:
    """One line per run: what it was, its tags and every metric that any of them has."""
    names = list(dict.fromkeys(name for run in found for name in run.metrics))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, "tags", *names])
    for run in found:
        about = [getattr(run, column) for column in CSV_COLUMNS]
        writer.writerow([*about, " ".join(run.tags), *(run.metrics.get(name) for name in names)])
    return out.getvalue()


def select(store: Store, expression: str, limit: int | None = None) -> list[RunRecord]:
    """Runs by expression, newest first.

    Raises:
        InputError: none matches; the hint names metrics and parameters that no run has.
    """
    found = store.runs(expression, limit=limit)
    if not found:
        raise InputError("No run matches.", store.advice(expression) or "See all with: mech runs")
    return found


def _check(expression: str) -> None:
    """Say what is wrong with an expression even where there is nothing to ask."""
    from mech_interp.storage import query

    query.parse(expression)


def _equal(field: str, value: str | None) -> list[str]:
    return [] if value is None else [f"{field} = {_quoted(value)}"]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
