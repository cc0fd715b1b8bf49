"""`report.md` of one run: what was asked, what came out and how sure it is, for people.

Everything is taken from the plain values that the run stores, so that a report can be written again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mech_interp.reports.markdown import bounds, cell, number, table

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A figure of a run: `path` is relative to the report."""

    name: str
    path: str
    title: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a report says: a run's stored values.

    `run` and `key` name it; `spec` is the resolved spec, `receipt` what was known before it started;
    `notes` holds question, method and caveats.
    """

    run: str
    status: str
    spec: Plain
    receipt: Plain
    metrics: Mapping[str, Plain] = field(default_factory=dict)
    findings: Sequence[Plain] = ()
    controls: Sequence[Plain] = ()
    notes: Plain = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    tables: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()


def run_report(told: Told) -> str:
    """The report as Markdown."""
    sections = (
        _head(told),
        _findings(told),
        _numbers(told),
        _controls(told),
        _method(told),
        _figures(told),
        _caveats(told),
        _inputs(told),
        _check(told),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines) + "\n"


def _head(told: Told) -> Iterator[str]:
    spec = told.spec
    yield f"# {spec.get('name', told.run)}"
    yield ""
    yield f"{spec.get('family', 'unknown')} on {_model(told)} · {told.run} · {told.status}"
    if told.status == "void":
        failed = [str(one.get("name")) for one in told.controls if _is_failed_sanity(one)]
        yield ""
        yield (
            f"> **Void.** A sanity control failed ({', '.join(failed)}), so the numbers below do not mean "
            "what they say and must not be quoted."
        )
    if told.spec.get("description"):
        yield ""
        yield str(told.spec["description"])
    if told.notes.get("question"):
        yield ""
        yield f"**Question.** {told.notes['question']}"
    hypothesis = told.spec.get("hypothesis")
    if isinstance(hypothesis, Mapping):
        yield ""
        yield _hypothesis(hypothesis, told.metrics)


def _hypothesis(said: Plain, metrics: Mapping[str, Plain]) -> str:
    """The prediction that was written down before the run, and how it stands."""
    name, threshold, side = str(said.get("metric")), said.get("threshold"), said.get("direction")
    text = f"**Predicted before the run.** {said.get('claim')} ({name} {side} {number(threshold)})."
    metric = metrics.get(name)
    value = None if metric is None else metric.get("value")
    if value is None or threshold is None:
        return f"{text} The run has no such number, so it is undecided."
    interval = (metric or {}).get("interval")
    low, high = interval if interval else (value, value)
    above = side == "above"
    if (low > threshold) if above else (high < threshold):
        verdict = "confirmed" if interval else "met, without an interval to say how surely"
    elif (high < threshold) if above else (low > threshold):
        verdict = "refuted" if interval else "not met, without an interval to say how surely"
    else:
        verdict = "undecided: the interval holds the threshold"
    return f"{text} It is {verdict}: {number(value)}{bounds(interval)}."


def _findings(told: Told) -> Iterator[str]:
    if not told.findings:
        return
    yield "## Findings"
    yield ""
    for one in told.findings:
        yield f"- {one.get('sentence')}"
        for name in one.get("evidence") or ():
            yield f"  - Evidence: {_evidence(str(name), told)}"
        for name in one.get("controls") or ():
            yield f"  - Control: {_control(str(name), told)}"


def _evidence(name: str, told: Told) -> str:
    """A metric with its number, or a link to the table or figure of that name."""
    metric = told.metrics.get(name)
    if metric is not None:
        unit = f" {metric['unit']}" if metric.get("unit") else ""
        value = f"{number(metric.get('value'))}{unit}{bounds(metric.get('interval'))}"
        return f"`{name}` = {value}, n = {cell(metric.get('n'))}"
    if name in told.tables:
        return f"table [{name}]({told.tables[name]})"
    picture = next((one for one in told.pictures if one.name == name), None)
    return f"figure [{name}]({picture.path})" if picture else f"`{name}`"


def _control(name: str, told: Told) -> str:
    found = next((one for one in told.controls if one.get("name") == name), None)
    if found is None:
        return name
    verdict = "passed" if found.get("passed") else "**failed**"
    return f"{name}: {cell(found.get('value'))}, expected {cell(found.get('expected'))}; {verdict}"


def _numbers(told: Told) -> Iterator[str]:
    if not told.metrics:
        return
    yield "## Numbers"
    yield ""
    rows = []
    for name, metric in told.metrics.items():
        control = metric.get("control")
        rows.append(
            [
                f"`{name}`",
                number(metric.get("value")),
                _interval(metric),
                cell(metric.get("n")),
                cell(metric.get("unit")),
                _control_text(control),
            ]
        )
    yield from table(["metric", "value", "interval", "n", "unit", "the same where it should be absent"], rows)
    levels = {metric["level"] for metric in told.metrics.values() if metric.get("level")}
    if levels:
        yield ""
        yield f"Intervals are at {' and '.join(f'{level:.0%}' for level in sorted(levels))}."


def _interval(metric: Plain) -> str:
    text = bounds(metric.get("interval")).strip()
    reason = metric.get("reason")
    return text or (f"none: {reason}" if reason else "none")


def _control_text(control: Any) -> str:
    """A control, which may be a number, an estimate or a named estimate."""
    if control is None:
        return ""
    if not isinstance(control, Mapping):
        return number(control)
    what = control.get("what") or control.get("name") or control.get("kind")
    value = f"{number(control.get('value'))}{bounds(control.get('interval'))}"
    return f"{value} ({what})" if what else value


def _controls(told: Told) -> Iterator[str]:
    if not told.controls:
        return
    yield "## Controls"
    yield ""
    rows = [
        [
            cell(one.get("name")),
            cell(one.get("expected")),
            number(one["value"]) if isinstance(one.get("value"), float) else cell(one.get("value")),
            "passed" if one.get("passed") else "**failed**",
            "voids the run" if one.get("sanity") else "",
        ]
        for one in told.controls
    ]
    yield from table(["control", "expected", "found", "", "if it fails"], rows)


def _method(told: Told) -> Iterator[str]:
    if told.notes.get("method"):
        yield "## Method"
        yield ""
        yield str(told.notes["method"])


def _figures(told: Told) -> Iterator[str]:
    if not told.pictures and not told.tables:
        return
    yield "## Figures and tables"
    for picture in told.pictures:
        yield ""
        yield f"![{cell(picture.title)}]({picture.path})"
        if picture.note:
            yield ""
            yield picture.note
    if told.tables:
        yield ""
        yield "Tables: " + ", ".join(f"[{name}]({path})" for name, path in told.tables.items())


def _caveats(told: Told) -> Iterator[str]:
    caveats = list(told.notes.get("caveats") or ())
    if not caveats and not told.left_out:
        return
    yield "## What would change the conclusion"
    yield ""
    yield from (f"- {one}" for one in caveats)
    for name in told.left_out:
        yield f"- Not kept, because the run's files would exceed artifact_policy.max_artifact_bytes: {name}."


def _inputs(told: Told) -> Iterator[str]:
    yield "## Inputs"
    yield ""
    receipt, spec = told.receipt, told.spec
    model = receipt.get("model")
    weights = model.get("weights_sha256") if isinstance(model, Mapping) else None
    rows = [
        ["model", f"{_model(told)}" + (f", weights `{str(weights)[:12]}`" if weights else "")],
        ["backend", f"{spec.get('backend')}, {receipt.get('dtype')} on {receipt.get('device')}"],
        ["attention", cell(spec.get("attention"))],
        ["seed", cell(spec.get("seed"))],
    ]
    for name, digest in (receipt.get("datasets") or {}).items():
        rows.append(["data", f"{name} `{str(digest)[:12]}`"])
    for name, value in (spec.get("parameters") or {}).items():
        text = json.dumps(value, ensure_ascii=False)
        rows.append([f"parameters.{name}", text if len(text) <= 120 else f"{text[:117]}…"])
    yield from table(["input", "value"], rows)
    notes = told.notes.get("notes")
    if notes:
        yield ""
        yield from (f"- {note}" for note in notes)


def _check(told: Told) -> Iterator[str]:
    yield "## Check it"
    yield ""
    yield f"- `mech verify {told.run}`: are these the files that the run wrote?"
    yield f"- `mech replay {told.run}`: do the same numbers come out again?"
    key = told.receipt.get("key")
    yield f"- Run key `{key}`: equal for the same model, data, parameters and version of the method."
    yield "- `spec.yaml` says what was run, `receipt.json` in what environment."


def _model(told: Told) -> str:
    model = told.receipt.get("model")
    name = model.get("id") if isinstance(model, Mapping) else model
    return str(name or told.spec.get("model") or "unknown model")


def _is_failed_sanity(control: Plain) -> bool:
    return bool(control.get("sanity")) and control.get("passed") is False
