"""`mech inspect-run`: what one run found."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import access, drawing
from mech_interp.cli.drawing import Column, Filled
from mech_interp.cli.options import Home, Run
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mech_interp.storage.reading import RunReader
    from mech_interp.storage.records import RunRecord


def inspect_run(
    context: typer.Context,
    run: Run,
    table: Annotated[
        str | None, typer.Option("--table", "-t", metavar="NAME", help="Show this table.")
    ] = None,
    view: Annotated[str | None, typer.Option("--view", "-v", metavar="NAME", help="Draw this view.")] = None,
    top_n: Annotated[int, typer.Option("--top-n", metavar="N", min=1, help="Rows of a table.")] = 10,
    home: Home = None,
) -> None:
    """What one run found, with its controls, tables and figures."""
    output: Output = context.obj
    with access.existing(home, output) as store:
        record = store.find(run)
    folder = record.open()
    if table is not None:
        rows = folder.table(table)
        output.emit(
            {"run": record.id, "table": table, "rows": rows},
            lambda console: _draw_table(console, output, rows, top_n),
            quiet=[folder._find("tables", table)[0]],
        )
    elif view is not None:
        data = folder.view(view)
        output.emit(
            {"run": record.id, "view": view, "data": data},
            lambda console: _draw_view(console, data),
            quiet=[folder._find("views", view)[0]],
        )
    else:
        output.emit(
            document(record, folder), lambda console: _draw(console, record, folder), quiet=[folder.path]
        )


def document(record: RunRecord, folder: RunReader) -> dict[str, Any]:
    """Everything about a run as plain values; of an unfinished one, what there is."""
    from mech_interp.storage.export import export_json

    about = {"status": record.status, "tags": list(record.tags), "archived": record.archived}
    if record.finished is not None:
        return {**about, **export_json(folder.path), "path": str(folder.path)}
    known = {"run": record.id, "spec": folder.spec(), "receipt": folder.receipt(), "units": folder.units()}
    return {**about, **known, "events": folder.events(), "path": str(folder.path)}


def _draw(console: Console, record: RunRecord, folder: RunReader) -> None:
    from rich.text import Text

    title = Text.assemble((record.name or record.id, "bold"), "  ", drawing.state(record.status))
    console.print(title)
    console.print(drawing.facts(_facts(record, folder)))
    if record.error:
        console.print(Text(f"\n{record.error}", style="red"))
    if record.finished is None or record.status == "damaged":
        console.print(f"\n{_unfinished(record, folder)}", highlight=False, soft_wrap=True)
    elif record.status != "failed":
        draw_result(console, record.id, folder.path, record.status)


def draw_result(console: Console, run: str, path: Path, status: str) -> None:
    """Question, findings, numbers and controls of a finished run, and where the rest is."""
    from mech_interp.storage.reading import RunReader

    for part in _parts(console, run, RunReader(path), status):
        console.print()
        console.print(part)


def _facts(record: RunRecord, folder: RunReader) -> Iterator[tuple[str, object]]:
    receipt = folder.receipt()
    environment = receipt.get("environment") or receipt
    took = f", took {drawing.lasted(record.seconds)}" if record.seconds is not None else ""
    yield "run", record.id
    yield "family", record.family
    yield "model", record.model
    on = f" on {record.device}" if record.device else ""
    yield "backend", f"{record.backend or 'unknown'}, {record.dtype or 'unknown dtype'}{on}"
    yield "seed", record.seed
    yield "tags", ", ".join(record.tags) + (" (archived)" if record.archived else "")
    yield "started", f"{drawing.ago(record.created)}{took}"
    yield "environment", _environment(environment)
    yield "follows", record.parent
    yield "sweep", record.matrix
    yield "key", (record.key or "")[:16]
    yield "folder", drawing.short_path(record.path)


def _environment(found: Mapping[str, Any]) -> str:
    packages, code = found.get("packages") or {}, found.get("code") or {}
    commit = f" at {str(code['commit'])[:10]}" if code.get("commit") else ""
    parts = [
        f"mech {str(code.get('version')).replace('uninstalled', 'from source')}{commit}",
        "with changes" if code.get("dirty") else "",
        f"Python {found.get('python')}",
        *(f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages),
    ]
    return ", ".join(part for part in parts if part) if code else ""


def _parts(console: Console, run: str, folder: RunReader, status: str) -> Iterator[RenderableType]:
    from rich.text import Text

    told = folder.findings()
    notes = told.get("notes") or {}
    if status == "void":
        failed = [str(one.get("name")) for one in told.get("controls", ()) if is_failed_sanity(one)]
        yield Text(
            f"Void: a sanity control failed ({', '.join(failed)}), so these numbers must not be quoted.",
            style="bold yellow",
        )
    if notes.get("question"):
        yield Text(str(notes["question"]), style="italic")
    if told.get("findings"):
        yield drawing.bullets(str(one.get("sentence")) for one in told["findings"])
    metrics = folder.metrics()
    if metrics:
        yield metric_table(console, metrics)
    if told.get("controls"):
        yield _controls(console, told["controls"])
    yield drawing.facts(_contents(run, folder))


def metric_table(console: Console, metrics: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Metrics with intervals, n, units and controls."""
    columns = [
        Column("metric", keep=True),
        Column("value", right=True),
        Column("95 % interval", keep=True),
        Column("n", right=True),
        Column("unit"),
        Column("control", at=drawing.WIDE),
    ]
    rows = [
        [
            name,
            drawing.number(metric.get("value")),
            drawing.interval(metric.get("interval")),
            metric.get("n"),
            metric.get("unit"),
            _control(metric.get("control")),
        ]
        for name, metric in metrics.items()
    ]
    return drawing.table(console, columns, rows)


def _control(control: object) -> str:
    if isinstance(control, Mapping):
        what = control.get("what") or control.get("name") or control.get("kind")
        return drawing.estimate(control) + (f" ({what})" if what else "")
    return "" if control is None else drawing.number(control)


def _controls(console: Console, controls: Sequence[Mapping[str, Any]]) -> RenderableType:
    from rich.text import Text

    verdicts = {True: Text("passed", style="green"), False: Text("failed", style="bold red")}
    columns = [Column("control"), Column("expected"), Column("found", right=True), Column("", keep=True)]
    rows = [
        [
            one.get("name"),
            _plain(one.get("expected")),
            _plain(one.get("value")),
            verdicts.get(one.get("passed"), Text("not judged", style="dim")),  # type: ignore[arg-type]
        ]
        for one in controls
    ]
    return drawing.table(console, columns, rows)


def _plain(value: object) -> object:
    return drawing.number(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _contents(run: str, folder: RunReader) -> Iterator[tuple[str, str]]:
    for what in ("tables", "views", "figures", "tensors", "graphs"):
        yield what, ", ".join(folder.names(what))
    if folder.report() is not None:
        yield "report", drawing.short_path(folder.path / "report.md")
    from mech_interp.storage import naming

    number, _ = naming.split(run) or (run, "")
    yield "next", f"mech verify {number} · mech replay {number} · mech inspect-run {number} --view NAME"


def _unfinished(record: RunRecord, folder: RunReader) -> str:
    if record.status == "damaged":
        return f"Its result cannot be read. See what has changed with: mech verify {record.number}"
    stored = drawing.count(len(folder.units()), "piece")
    if record.status == "running":
        return f"Being executed; {stored} of work stored so far."
    return f"Interrupted, with {stored} of work stored. Continue it with: {_command(folder)}"


def _command(folder: RunReader) -> str:
    """What was typed to start the run, as far as it was a command."""
    environment = folder.receipt().get("environment") or {}
    typed = [str(word) for word in environment.get("command") or ()]
    if typed and typed[0] in ("mech", "__main__.py"):
        return shlex.join(["mech", *typed[1:]])
    return "the same command"


def _draw_table(console: Console, output: Output, rows: Sequence[Mapping[str, Any]], top: int) -> None:
    columns = table_columns(rows, top)
    for index, drawn in enumerate(drawing.split(console, columns[:1], columns[1:])):
        if index:
            console.print()
        console.print(drawn)
    if len(rows) > top:
        output.note(f"\n{top} of {len(rows)} rows; more with --top-n, all with --format json.")


def table_columns(rows: Sequence[Mapping[str, Any]], top: int) -> list[Filled]:
    """The first rows by column; `x`, `x_low` and `x_high` are one column, `x [low, high]`."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    ends = {name: (f"{name}_low", f"{name}_high") for name in names}
    joined = {name: pair for name, pair in ends.items() if set(pair) <= set(names)}
    hidden = {end for pair in joined.values() for end in pair}
    columns: list[Filled] = []
    for name in names:
        if name in joined:
            low, high = joined[name]
            cells = [
                drawing.estimate({"value": row.get(name), "interval": (row.get(low), row.get(high))})
                for row in rows[:top]
            ]
            columns.append((Column(name, keep=True), cells))
        elif name not in hidden:
            numeric = _is_numeric([row.get(name) for row in rows])
            columns.append((Column(name, right=numeric), [row.get(name) for row in rows[:top]]))
    return columns


def _draw_view(console: Console, data: Mapping[str, Any]) -> None:
    import json

    from mech_interp.rendering.terminal import render
    from mech_interp.views import view_from_json

    console.print(render(view_from_json(json.dumps(data))))


def _is_numeric(values: Sequence[object]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)


def is_failed_sanity(control: Mapping[str, Any]) -> bool:
    """Whether this control voids its run."""
    return bool(control.get("sanity")) and control.get("passed") is False
