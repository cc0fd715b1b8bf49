"""Causal tracing over facts: which states, restored, bring a corrupted fact back?"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mech_interp.backends.protocol import Capability
from mech_interp.datasets.pairs import TaskSet
from mech_interp.errors import InputError
from mech_interp.experiments.context import Context
from mech_interp.experiments.data import DataParams, Need
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.parts import DataFamily, by_group, control, data_of, flat, halves, number
from mech_interp.experiments.result import Control, Finding, Metric, Result
from mech_interp.experiments.resumable import resumable
from mech_interp.methods.common import rounding
from mech_interp.methods.tracing import causal_tracing
from mech_interp.methods.tracing_result import BINS, TracingResult
from mech_interp.statistics import Estimate, bootstrap_mean, select_then_quote

_WHAT = {"resid_post": "the residual stream", "mlp_out": "MLP outputs", "attn_out": "attention outputs"}


class CausalTracingParams(DataParams):
    """Parameters of `causal_tracing`."""

    kinds: list[Literal["resid_post", "mlp_out", "attn_out"]] | None = Field(
        default=None,
        min_length=1,
        description="What is restored; all three by default (resid_post if severed).",
    )
    window: int | None = Field(
        default=None,
        ge=1,
        description="Layers restored together for mlp_out and attn_out; by default a quarter, at most 10.",
    )
    noise: float = Field(
        default=3.0, ge=0, description="Noise on the subject, in standard deviations of subject embeddings."
    )
    samples: int = Field(default=10, ge=1, le=1000, description="Noise draws per fact.")
    severed: Literal["mlp", "attn"] | None = Field(
        default=None, description="Hold the later MLP (or attention) outputs at their corrupted values."
    )
    mode: Literal["noise", "interchange"] = Field(
        default="noise", description="Corrupt by noise, or by another subject (the corrupt prompt)."
    )
    span: str = Field(default="subject", min_length=1, description="The named words that are corrupted.")
    only_known: bool = Field(
        default=True, description="Keep only facts whose answer is the model's first choice."
    )

    def need(self) -> Need:
        """A prompt and its answer; for interchange the other subject's prompt."""
        return "corrupt" if self.mode == "interchange" else "answer"


class CausalTracing(DataFamily[CausalTracingParams]):
    """Corrupts the subject and restores one clean state at a time."""

    name, version = "causal_tracing", 1
    summary = "Which states bring back a fact whose subject was corrupted (ROME's causal tracing)."
    needs = frozenset({Capability.CAPTURE.value, Capability.INTERVENE.value, Capability.ROWS.value})
    Params = CausalTracingParams

    def check_data(self, params: CausalTracingParams, facts: ModelFacts, data: TaskSet) -> None:
        """The window against the layers; the span against every fact; what is restored."""
        kinds = params.kinds or (["resid_post"] if params.severed else ["resid_post", "mlp_out", "attn_out"])
        held = [f"{params.severed}_out"] if params.severed else []
        facts.check_kinds(("embed", "resid_pre", *kinds, *held), self.name)
        if params.window is not None and params.window > facts.n_layers:
            raise InputError(
                f"window is {params.window}, but {facts.name} has {facts.n_layers} layers.",
                f"Use 1 to {facts.n_layers}.",
            )
        for i, pair in enumerate(data):
            if params.span not in pair.spans:
                raise InputError(
                    f"Fact {i} ({pair.clean[:60]!r}) has no span {params.span!r}.",
                    f"Its spans: {', '.join(pair.spans) or 'none'}; name the subject's words under spans.",
                )
        if params.severed and set(params.kinds or ["resid_post"]) != {"resid_post"}:
            raise InputError(
                "A severed trace restores the residual stream only.",
                "Set kinds: [resid_post], or leave it out.",
            )

    def run(self, context: Context[CausalTracingParams]) -> Result:
        """Trace, a unit per portion of rows, and summarise."""
        params, data = context.params, data_of(context)
        found = causal_tracing(
            resumable(context.model, context),
            data,
            kinds=None if params.kinds is None else tuple(params.kinds),
            window=params.window,
            noise=params.noise,
            samples=params.samples,
            seed=context.seed,
            severed=params.severed,
            mode=params.mode,
            span=params.span,
            only_known=params.only_known,
            memory_budget=context.budget.memory_bytes,
            progress=lambda done, total: context.progress(done, total, "facts"),
        )
        found = dataclasses.replace(found, model=context.model.info.name)
        if found.dropped:
            context.note(f"{found.dropped} facts whose answer is not the model's first choice were left out.")
        return report(found, data.name, rounding(context.model))


def report(found: TracingResult, task: str, room: float) -> Result:
    """Metrics, tables, views and sentences of a trace; `room` is the size of harmless rounding."""
    noised = (
        f"noise of {found.noise:g} standard deviations ({found.samples} draws)" if found.noise else "noise"
    )
    corruption = noised if found.mode == "noise" else "another subject in its place"
    views = {f"effect_{kind}": found.view(kind) for kind in found.kinds}
    return Result(
        question=f"Where does {found.model} hold what it knows of the subject ({task})?",
        method=(
            f"Causal tracing: the subject is corrupted by {corruption}; one clean state at a time is put "
            "back "
            f"({', '.join(_WHAT[kind] for kind in found.kinds)}), and the probability that the answer "
            "regains is "
            "its indirect effect. Control: an unrelated fact's clean state at the last subject token. 95 % "
            "intervals by cluster bootstrap over facts; p by sign-flip max-T over layers and token roles."
        ),
        metrics=_metrics(found),
        tables={"cells": flat(found.table()), "facts": _facts(found)},
        tensors={f"effects_{kind}": found.binned(kind) for kind in found.kinds},
        views={**views, "last_subject": found.lines_view(), "strongest": found.table_view()},
        findings=[_finding(found, kind) for kind in found.kinds],
        controls=_controls(found, room),
        caveats=[
            "Noise takes the model off its usual inputs; the interchange mode asks the same with natural "
            "ones "
            "and may place the effect elsewhere."
            if found.mode == "noise"
            else "Effects are about what differs between the two subjects.",
            "That a state restores an answer does not show that the knowledge is stored there: it may only "
            "pass "
            "by. The severed variant tells more.",
            *(
                [
                    f"{found.dropped} facts that the model does not know were left out; the figures hold for "
                    "the rest."
                ]
                if found.dropped
                else []
            ),
        ],
    )


def _top(found: TracingResult, kind: str) -> tuple[tuple[int, int], Estimate, str]:
    """The strongest (layer, role) of the subject's tokens, its effect, and how it was chosen.

    The last token's residual stream behind the last layer is the output itself, so it is left out.
    """
    bins = [i for i in found.tested_bins(kind) if i <= BINS.index("last subject")]
    effects = found.binned(kind)[:, :, bins]
    if len(set(found.groups)) > 1:
        top = select_then_quote(effects, found.groups, by="highest", seed=found.seed)
        return (top.site[0], bins[top.site[1]]), top.estimate, halves(top)
    layer, column = np.unravel_index(int(effects.mean(0).argmax()), effects.shape[1:])
    cell = (int(layer), bins[int(column)])
    return cell, found.estimates(kind).at(*cell), "chosen and measured on the same facts"


def _metrics(found: TracingResult) -> dict[str, Metric]:
    groups, seed, unit = found.groups, found.seed, "probability"
    corrupted = found.corrupted.mean(1)
    metrics = {
        "known_rate": Metric.of(found.known, unit="fraction", better="higher"),
        "clean_probability": Metric.of(
            bootstrap_mean(found.clean, groups, seed=seed), unit=unit, per_group=by_group(found.clean, groups)
        ),
        "corrupted_probability": Metric.of(
            bootstrap_mean(corrupted, groups, seed=seed), unit=unit, per_group=by_group(corrupted, groups)
        ),
        "total_effect": Metric.of(
            found.total_effect, unit=unit, per_group=by_group(found.total_effects, groups)
        ),
    }
    for kind in found.kinds:
        cell, top, _ = _top(found, kind)
        others = found.control_estimates(kind)
        beside = None if others is None else others.at(cell[0])
        metrics[f"subject_effect_{kind}"] = Metric.of(
            top,
            unit=unit,
            control=control("an unrelated fact's state, last subject token, same layer", beside),
        )
        metrics[f"subject_layer_{kind}"] = Metric(
            value=cell[0],
            n=len(found),
            unit="layer",
            method="layer of the largest indirect effect on the choosing half",
            reason="a chosen layer has no interval",
        )
    return metrics


def _facts(found: TracingResult) -> list[dict[str, Any]]:
    first = found.kinds[0]
    return [
        {
            "prompt": found.prompts[i],
            "answer": found.answers[i],
            "subject": "".join(found.tokens[i][slice(*found.subjects[i])]).strip(),
            "clean_probability": float(found.clean[i]),
            "corrupted_probability": float(found.corrupted[i].mean()),
            "total_effect": float(found.total_effects[i]),
            f"largest_effect_{first}": float(found.effects[first][i].max()),
        }
        for i in range(len(found))
    ]


def _finding(found: TracingResult, kind: str) -> Finding:
    (layer, role), top, how = _top(found, kind)
    bins = found.tested_bins(kind)
    p = float(found.test(kind).adjusted_p[layer, bins.index(role)])
    if not p <= 0.05:
        text = (
            f"No token of the subject brings the answer back through {_WHAT[kind]} beyond chance (the best, "
            f"layer {layer}, {BINS[role]} token, {number(top, 3)}; adjusted p = {p:.2g})."
        )
        return Finding(
            text, [f"subject_effect_{kind}", "total_effect", f"effect_{kind}"], _named(found, kind)
        )
    text = (
        f"Within the subject, restoring {_WHAT[kind]} works best at layer {layer}, {BINS[role]} token: "
        f"{number(top, 3)} of the "
        f"{number(found.total_effect, 3)} in probability that the corruption takes ({how}; adjusted p = "
        f"{p:.2g})."
    )
    return Finding(text, [f"subject_effect_{kind}", "total_effect", f"effect_{kind}"], _named(found, kind))


def _named(found: TracingResult, kind: str) -> list[str]:
    """The controls of one kind's finding."""
    return [f"unrelated_fact_{kind}"] if found.control_estimates(kind) is not None else []


def _controls(found: TracingResult, room: float) -> list[Control]:
    controls = [
        Control(
            name,
            f"the identity {name.replace('_', ' ')} holds to rounding",
            error,
            error <= room,
            sanity=True,
        )
        for name, error in found.sanity.items()
    ]
    for kind in found.kinds:
        others = found.control_estimates(kind)
        if others is None:
            continue
        own = found.estimates(kind).value[:, BINS.index("last subject")]
        layer = int(np.abs(own).argmax())
        theirs = float(others.value[layer])
        controls.append(
            Control(
                f"unrelated_fact_{kind}",
                f"at layer {layer}, last subject token, an unrelated fact's state restores less than the "
                "fact's own",
                theirs,
                theirs < float(own[layer]),
            )
        )
    return controls


FAMILY = CausalTracing()
