"""The demo's panel in the terminal, its page in Markdown and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp.reports.demo import Demo, document
from mech_interp.reports.demo_findings import Finding
from mech_interp.views import Grid, View, visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from mech_interp.backends.protocol import ModelInfo
    from mech_interp.statistics import Estimate


def write(demo: Demo, summary: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Write the three files."""
    from mech_interp.rendering.figure import save

    files["json"].write_text(document(summary), encoding="utf-8")
    files["md"].write_text(markdown(demo, summary["run_ids"]), encoding="utf-8")
    save(picture(demo), files["png"])


def picture(demo: Demo) -> View:
    """Three panels: attribution, lens, patching."""
    info = demo.model.info
    return Grid(
        title=f"How {info.name} recalls capitals: “{_blank(demo)}”",
        views=[
            replace(demo.dla.view(), title="Direct logit attribution"),
            replace(demo.lens.view(), title="Logit lens"),
            replace(demo.residual.view(), title="Patching the residual stream"),
        ],
        columns=3,
        note=f"{len(demo.task)} countries; {demo.known} capitals are the model's first choice",
    )


def show(demo: Demo, summary: Mapping[str, Any], console: Console) -> None:
    """Print the panel."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    info = demo.model.info
    heading = Text.assemble(
        (f"{info.name}", "bold"),
        f"  {info.architecture}, {info.n_layers} layers, {info.n_parameters / 1e6:.2f} M parameters, "
        f"{info.dtype} on {where(info)}\n",
        f"“{_blank(demo)}”: {demo.known} of {len(demo.task)} countries recalled; 95 % intervals in brackets",
    )
    parts: list[RenderableType] = [heading, Text(), _findings(demo.findings), _detail(demo)]
    console.print(Panel(Group(*parts), title="How does the model recall a capital?", padding=(1, 2)))
    worst = max(summary["checks"].values())
    checked = "terms sum, last layer = output, self-patch = 0, whole patch = 1"
    console.print(f"Checked: {checked} (largest gap {worst:.0e}). {summary['seconds']:.1f} s.", style="dim")
    names = ", ".join(Path(path).name for path in summary["files"].values())
    console.print(f"Wrote {names} to {Path(summary['files']['md']).parent}/", style="dim", highlight=False)
    runs = " ".join(run.split("-")[1].lstrip("0") for run in summary["run_ids"])
    console.print(f"Stored runs {runs}: mech verify {runs}, mech report {runs}", style="dim", highlight=False)


def markdown(demo: Demo, run_ids: Sequence[str]) -> str:
    """`summary.md`."""
    info = demo.model.info
    lines = [
        f"# How {info.name} recalls capitals",
        "",
        f"Prompt: “{_blank(demo)}”, {len(demo.task)} countries; the prompts never contain the answer. "
        f"The model's first choice is right for {demo.known} of them.",
        f"Model: {info.architecture}, {info.n_layers} layers, {info.n_heads} heads, "
        f"{info.n_parameters / 1e6:.2f} M parameters, {info.dtype} on {where(info)}; "
        f"weights sha256 `{info.weights_hash[:16]}…`.",
        "",
        "| method | finding | value | control |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {f.method} | {f.sentence} | {f.quantity}: {f.estimate.format()} ({f.unit}) | "
        f"{f.control_what}: {_control(f)} |"
        for f in demo.findings
    ]
    lines += [
        "",
        "![Attribution, lens and patching](summary.png)",
        "",
        f"## In detail: {demo.pair.clean}",
        "",
    ]
    lines += ["| after layer | first choice | probability of the answer |", "| --- | --- | --- |"]
    lines += [f"| {label} | `{token}` | {p:.3f} |" for label, token, p in _readings(demo)]
    lines += ["", f"Stored as {', '.join(run_ids)}: `mech verify` and `mech replay` check each.", ""]
    lines += _reading_notes(demo)
    return "\n".join(lines) + "\n"


def where(info: ModelInfo) -> str:
    """The device, and the backend where it is not the default."""
    return info.device if info.backend == "huggingface" else f"{info.device} by {info.backend}"


def _findings(findings: tuple[Finding, ...]) -> RenderableType:
    """One block per finding, which reads the same at 80 columns and at 120."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column()
    for finding in findings:
        table.add_row("method", Text(finding.method, style="bold"))
        table.add_row("finding", finding.sentence)
        table.add_row("value", _number(finding.estimate, finding.unit, finding.quantity))
        table.add_row("control", _number(finding.control, finding.unit, finding.control_what))
        table.add_row()
    return table


def _number(estimate: Estimate | None, unit: str, what: str) -> Text:
    from rich.text import Text

    from mech_interp.statistics.estimate import rounded

    if estimate is None:
        return Text("not measured", style="dim")
    bounds = [] if estimate.interval is None else [rounded(bound) for bound in estimate.interval]
    shown = f"{rounded(estimate.value)} [{', '.join(bounds)}]" if bounds else rounded(estimate.value)
    why = "" if bounds else f" (no interval: {estimate.reason})"
    return Text.assemble((shown, "bold cyan"), f" {unit}: {what}, n = {estimate.n}", (why, "dim"))


def _detail(demo: Demo) -> RenderableType:
    from rich import box
    from rich.table import Table

    answer = visible(demo.pair.answer)
    table = Table(
        title=f"{demo.pair.clean} …{answer}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        show_edge=False,
    )
    table.add_column("after layer")
    table.add_column("first choice")
    table.add_column(f"p({answer})", justify="right")
    table.add_column("")
    for label, token, probability in _readings(demo):
        table.add_row(label, token, f"{probability:.3f}", "█" * round(20 * probability))
    return table


def _readings(demo: Demo) -> list[tuple[str, str, float]]:
    lens, at = demo.lens, demo.shown
    return [
        (label, visible(lens.top_texts[at][stream][0]), float(lens.target.probability[at, stream]))
        for stream, label in enumerate(lens.labels)
    ]


def _reading_notes(demo: Demo) -> list[str]:
    return [
        "## How to read this",
        "",
        "- **Direct logit attribution** splits the logit difference between the right capital and another "
        f"country's exactly into what each component wrote ({len(demo.dla.components)} terms; their sum is "
        "checked). The largest is chosen on one half of the countries and quoted on the other.",
        "- **Logit lens** reads each layer's residual stream through the model's own final norm and "
        f"unembedding. A capital that never becomes first choice counts as layer {demo.lens.n_layers}.",
        "- **Activation patching** runs the prompt of another country and inserts one activation of the "
        "right one (denoising). 0 is no effect, 1 restores the whole logit difference. The control inserts "
        "the activation of a third country: that takes away the wrong answer, which is about half of the "
        "difference, and brings in no right one.",
        "- Intervals are 95 % bootstrap intervals over countries; every control repeats the measurement "
        "where the effect must be absent.",
    ]


def _control(finding: Finding) -> str:
    return "not measured" if finding.control is None else finding.control.format()


def _blank(demo: Demo) -> str:
    low, high = demo.pair.spans["subject"]
    return demo.pair.clean[:low] + "…" + demo.pair.clean[high:]
