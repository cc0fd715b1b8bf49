"""Reports across runs and sweeps: every number of every run in one place, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mech_interp.reports.markdown import bounds, cell, number, table

if TYPE_CHECKING:
    from mech_interp.storage.reading import RunReader

QUOTABLE = "complete"


@dataclass(frozen=True)
class Line:
    """One run of a report.

    `values` are what sets it apart (a sweep's axes); `metrics` as stored; `findings` its sentences.
    """

    run: str
    name: str
    family: str
    model: str
    status: str
    values: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    findings: Sequence[str] = ()
    failed_controls: Sequence[str] = ()
    error: str | None = None


def line_of(run: RunReader, values: Mapping[str, Any] | None = None) -> Line:
    """What a report says of a run, finished or not.

    Raises:
        StorageError: its files are damaged.
    """
    spec, receipt, status = run.spec(), run.receipt(), run.status
    has_numbers = status in (QUOTABLE, "void")
    told = run.findings() if has_numbers else {}
    model = receipt.get("model")
    matrix = receipt.get("matrix")
    if values is None:
        values = matrix.get("values", {}) if isinstance(matrix, Mapping) else {}
    return Line(
        run=run.id,
        name=str(spec.get("name", run.id)),
        family=str(spec.get("family", "")),
        model=str(model.get("id") if isinstance(model, Mapping) else spec.get("model")),
        status=status,
        values=values or {},
        metrics=run.metrics() if has_numbers else {},
        findings=[str(one.get("sentence")) for one in told.get("findings", ())],
        failed_controls=[str(one.get("name")) for one in told.get("controls", ()) if not one.get("passed")],
        error=run.result().get("error") if run.is_finished else None,
    )


def across(lines: Sequence[Line], title: str = "Runs", note: str = "") -> str:
    """A report of many runs: how they stand, then one table of numbers per family."""
    parts = [_head(lines, title, note)]
    parts += [_family(family, lines) for family in dict.fromkeys(line.family for line in lines)]
    parts += [_problems(lines)]
    return "\n\n".join("\n".join(part) for part in map(list, parts) if part) + "\n"


def sweep_report(title: str, axes: Sequence[str], lines: Sequence[Line], waiting: Sequence[str] = ()) -> str:
    """A report of one sweep: a row per child with its axis values, and what has not been run."""
    note = f"Axes: {', '.join(axes)}." if axes else ""
    text = across(lines, title, note)
    if not waiting:
        return text
    rows = "\n".join(f"- {name}" for name in waiting)
    return f"{text}\n## Not run yet\n\n{rows}\n"


def _head(lines: Sequence[Line], title: str, note: str) -> Iterator[str]:
    counts = Counter(line.status for line in lines)
    stand = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "none"
    yield f"# {title}"
    yield ""
    yield f"{len(lines)} runs: {stand}."
    if note:
        yield ""
        yield note


def _family(family: str, lines: Sequence[Line]) -> Iterator[str]:
    members = [line for line in lines if line.family == family]
    quotable = [line for line in members if line.status == QUOTABLE]
    yield f"## {family}"
    yield ""
    if not quotable:
        yield "No run of this family is complete."
        return
    yield from _numbers(quotable)
    found = [(line, sentence) for line in quotable for sentence in line.findings]
    if found:
        yield ""
        yield from (f"- {sentence} ({line.run})" for line, sentence in found)


def _numbers(lines: Sequence[Line]) -> Iterator[str]:
    """A row per run; a column per axis and per metric, with unit and interval."""
    axes = list(dict.fromkeys(axis for line in lines for axis in line.values))
    names = list(dict.fromkeys(name for line in lines for name in line.metrics))
    units = {name: str(line.metrics[name].get("unit") or "") for line in lines for name in line.metrics}
    heads = [f"{name} ({units[name]})" if units[name] else name for name in names]
    rows = [
        [
            line.run,
            *([] if axes else [line.name]),
            line.model,
            *(cell(line.values.get(axis)) for axis in axes),
            *(_metric(line.metrics.get(name)) for name in names),
        ]
        for line in lines
    ]
    yield from table(["run", *([] if axes else ["name"]), "model", *axes, *heads], rows)


def _metric(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    return f"{number(metric.get('value'))}{bounds(metric.get('interval'))}, n = {cell(metric.get('n'))}"


def _problems(lines: Sequence[Line]) -> Iterator[str]:
    bad = [line for line in lines if line.status != QUOTABLE or line.failed_controls]
    if not bad:
        return
    yield "## Not to be quoted, or with care"
    yield ""
    for line in bad:
        controls = f"; controls failed: {', '.join(line.failed_controls)}" if line.failed_controls else ""
        error = f": {line.error}" if line.error else ""
        yield f"- {line.run} ({line.name}) is {line.status}{error}{controls}"
