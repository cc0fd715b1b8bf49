"""Metrics, tables, views and sentences of ACDC, over edges or nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mech_interp.experiments.circuit_judging import Judged
from mech_interp.experiments.result import Finding, Metric, Result
from mech_interp.methods.circuits.acdc_result import AcdcResult
from mech_interp.methods.circuits.faithfulness_result import FaithfulnessResult
from mech_interp.views import Lines, Series


def report(
    found: AcdcResult, judged: Judged, sweep: Sequence[tuple[AcdcResult, FaithfulnessResult]] = ()
) -> Result:
    """The result of one search, and of those at other thresholds."""
    name = "ACDC" if found.level == "edges" else "ACDC over nodes"
    views = {"loss": found.loss_view(), **judged.views}
    tables: dict[str, Any] = {"decisions": found.table(), **judged.tables}
    if sweep:
        views["sweep"] = _sweep_view(sweep)
        tables["sweep"] = [_sweep_row(one, judgement) for one, judgement in sweep]
    what = "edge" if found.level == "edges" else "head and MLP"
    loss = "the divergence from the full model" if found.loss == "kl" else f"the negative {found.metric}"
    return Result(
        question=f"Which {found.level} does {found.model} need for {found.task}?",
        method=(
            f"{name} (Conmy et al. 2023, Algorithm 1): from the logits backwards, every {what} is removed "
            f"whose removal raises {loss.replace('_', ' ')}, averaged over prompts, by less than tau = "
            f"{found.tau:g} {found.unit}; what is removed carries its {found.ablation} value. Order at a "
            f"reader: {found.order}. {found.circuit.graph.convention}. The decisions are those of the "
            "sequential algorithm, taken many at a time. 95 % intervals by cluster bootstrap over groups."
        ),
        metrics={**_metrics(found), **judged.metrics},
        tables=tables,
        tensors={"effects": found.effects, **judged.tensors},
        views=views,
        graphs=judged.graphs,
        findings=[*judged.findings, _cost(found)],
        controls=judged.controls,
        caveats=[*judged.caveats, *_caveats(found)],
    )


def _metrics(found: AcdcResult) -> dict[str, Metric]:
    counted = {
        "evaluated": (len(found.examined), f"{found.level} whose removal was evaluated"),
        "unevaluated": (found.unevaluated, "edges removed because their reader no longer reached the logits"),
        "close_calls": (len(found.close), f"{found.level} whose effect is within rounding of tau"),
        "wasted_rows": (found.wasted, f"forward rows that decided nothing, of {found.rows}"),
    }
    return {
        name: Metric(
            value=value,
            n=found.rows if name == "wasted_rows" else found.circuit.graph.n_edges,
            unit="rows" if name == "wasted_rows" else found.level,
            method=method,
            # On another processor a call within rounding may fall on the other side.
            absolute=1.0 if found.close else 1e-6,
            reason="a count has no interval",
        )
        for name, (value, method) in counted.items()
    }


def _cost(found: AcdcResult) -> Finding:
    close = f"; {len(found.close)} decided within rounding of tau" if found.close else ""
    skipped = f", {found.unevaluated:,} went unevaluated" if found.unevaluated else ""
    return Finding(
        f"{len(found.examined):,} {found.level} were evaluated{skipped}{close}; {found.wasted} of "
        f"{found.rows} rows decided nothing.",
        ["evaluated", "wasted_rows", "decisions"],
    )


def _caveats(found: AcdcResult) -> list[str]:
    out = [
        "ACDC is greedy: of parts that back each other up it keeps those it meets last, and another order "
        "may keep others.",
        "The curve ranks edges by the rise of the loss at their own decision, not by one common measure.",
    ]
    if found.close:
        out.append(f"Close calls: {', '.join(found.close[:10])}{' …' if len(found.close) > 10 else ''}.")
    return out


def _sweep_row(one: AcdcResult, judged: FaithfulnessResult) -> dict[str, Any]:
    f = judged.faithfulness
    low, high = f.interval or (None, None)
    return {
        "tau": one.tau,
        "edges": len(one.pruned),
        "share": one.share,
        "nodes": len(one.nodes),
        "faithfulness": f.value,
        "faithfulness_low": low,
        "faithfulness_high": high,
        "loss": one.losses[-1],
    }


def _sweep_view(sweep: Sequence[tuple[AcdcResult, FaithfulnessResult]]) -> Lines:
    ordered = sorted(sweep, key=lambda one: one[0].tau)
    first = ordered[0][0]
    f = [judged.faithfulness for _, judged in ordered]
    return Lines(
        title=f"Thresholds ({first.task}, {first.model})",
        x=[one.tau for one, _ in ordered],
        series=[
            Series(
                name="faithfulness",
                y=[one.value for one in f],
                low=[None if one.interval is None else one.interval[0] for one in f],
                high=[None if one.interval is None else one.interval[1] for one in f],
            ),
            Series(name="share of edges", y=[one.share for one, _ in ordered]),
        ],
        x_axis=f"tau ({first.unit})",
        y_axis="faithfulness; share of edges",
        log_x=True,
        references=[(1.0, "model")],
        note=f"n = {first.n} prompts; {first.ablation} ablation; {first.circuit.graph.convention}",
    )
