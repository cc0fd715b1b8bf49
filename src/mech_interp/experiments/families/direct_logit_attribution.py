"""Direct logit attribution over prompt pairs: which components write the answer?"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from mech_interp.backends.protocol import Capability
from mech_interp.datasets.pairs import TaskSet
from mech_interp.errors import MechError
from mech_interp.experiments.context import Context
from mech_interp.experiments.data import DataParams, Need, target_positions
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.parts import (
    DataFamily,
    by_group,
    control,
    data_of,
    flat,
    halves,
    number,
    portions,
)
from mech_interp.experiments.result import Control, Finding, Metric, Result
from mech_interp.methods.common import answer_ids, other_choice, prompt_positions, prompt_texts
from mech_interp.methods.dla import TOLERANCE, direct_logit_attribution
from mech_interp.methods.dla_result import Component, DLAResult
from mech_interp.statistics import Selection, bootstrap_mean, select_then_quote

_SUMS = {
    "embedding": ("embed", "pos_embed"),
    "attention": ("head", "attn", "attn_bias"),
    "mlp": ("mlp",),
    "bias": ("norm_bias", "unembed_bias"),
}
"""Sums of terms that are metrics of their own, and the kinds of component in each."""


class DirectLogitAttributionParams(DataParams):
    """Parameters of `direct_logit_attribution`."""

    position: int | None = Field(
        default=None,
        description="Token position where every answer is predicted (negative from the prompt's end); by "
        "default each pair's target_position, the last token.",
    )
    top_k: int = Field(default=12, ge=1, le=200, description="Components in the bar chart.")

    def need(self) -> Need:
        """A prompt, its answer and a foil."""
        return "wrong"


class DirectLogitAttribution(DataFamily[DirectLogitAttributionParams]):
    """Splits logit(answer) - logit(foil) exactly into what every component wrote."""

    name, version = "direct_logit_attribution", 1
    summary = "Which heads, MLPs, embeddings and biases write the answer's logit difference."
    needs = frozenset({Capability.CAPTURE.value, Capability.WEIGHTS.value, Capability.HEADS.value})
    Params = DirectLogitAttributionParams

    def check_data(self, params: DirectLogitAttributionParams, facts: ModelFacts, data: TaskSet) -> None:
        """The sites whose sum is the logit difference."""
        facts.check_kinds(("embed", "z", "attn_out_own", "attn_out", "resid_post", "ln_final"), self.name)

    def run(self, context: Context[DirectLogitAttributionParams]) -> Result:
        """Attribute all prompts, a unit per batch, and summarise."""
        data = data_of(context)
        return report(attribute(context, data), data, context.params.top_k)


def attribute(context: Context[DirectLogitAttributionParams], data: TaskSet) -> DLAResult:
    """What `direct_logit_attribution` returns for all pairs at once, put together from stored batches."""
    params, model = context.params, context.model
    tokens = model.tokens(data.clean)
    wanted = target_positions(data) if params.position is None else params.position
    where = prompt_positions(tokens, wanted)
    right = answer_ids(model, tokens, [pair.answer for pair in data], "correct")
    foil = answer_ids(model, tokens, [pair.wrong for pair in data], "wrong")
    others, kind = other_choice(list(zip(right, foil, strict=True)), model.info.vocabulary, context.seed)

    def batch(at: tuple[int, int]) -> dict[str, Any]:
        part, chosen = tokens.select(range(*at)), slice(*at)
        own = direct_logit_attribution(
            model, part, right[chosen], foil[chosen], position=where[chosen], seed=context.seed
        )
        # The control's answers are drawn from all pairs, so they are attributed as answers of their own.
        first, second = ([pair[i] for pair in others[chosen]] for i in (0, 1))
        other = direct_logit_attribution(model, part, first, second, position=where[chosen])
        return {
            "components": [[one.kind, one.layer, one.head] for one in own.components],
            "correct": list(own.correct),
            "wrong": list(own.wrong),
            "gap": max(own.gap, other.gap),
            "softcapped": own.softcapped,
            "terms": own.terms,
            "difference": own.logit_difference,
            "control_terms": other.terms,
            "control_difference": other.logit_difference,
        }

    parts = list(context.each(portions(len(data)), lambda at: f"prompts/{at[0]:06d}", batch, "prompts"))
    arrays = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("terms", "difference", "control_terms", "control_difference")
    }
    return DLAResult(
        model=model.info.name,
        prompts=prompt_texts(tokens),
        positions=tuple(where),
        correct=tuple(text for part in parts for text in part["correct"]),
        wrong=tuple(text for part in parts for text in part["wrong"]),
        components=[Component(*one) for one in parts[0]["components"]],
        terms=arrays["terms"],
        logit_difference=arrays["difference"],
        control_terms=arrays["control_terms"],
        control_difference=arrays["control_difference"],
        control_kind=kind,
        gap=max(float(part["gap"]) for part in parts),
        softcapped=any(part["softcapped"] for part in parts),
        n_layers=model.info.n_layers,
        n_heads=model.info.n_heads,
        groups=tuple(data.groups),
        seed=context.seed,
    )


def report(dla: DLAResult, data: TaskSet, top_k: int) -> Result:
    """Metrics, tables, views and sentences of an attribution."""
    top = _top(dla)
    views = {
        "components": dla.view(top_k),
        "accumulated": dla.accumulated_view(),
        "component_table": dla.table_view(),
    }
    if not np.isnan(dla.heads).all():
        views["heads"] = dla.heads_view()
    return Result(
        question=f"Which components of {dla.model} write the answer directly into the logits ({data.name})?",
        method=(
            "The logit difference between answer and foil is split into what each component added to the "
            "residual stream, read through the final norm with its scale frozen (direct logit attribution). "
            f"The terms sum to the difference. Control: {dla.control_kind} along the same prompts. "
            "95 % intervals by cluster bootstrap; p by sign-flip max-T over all components."
        ),
        metrics=_metrics(dla, top),
        tables={"components": flat(dla.table()), "prompts": _prompts(dla)},
        tensors={"terms": dla.terms, "control_terms": dla.control_terms},
        views=views,
        findings=[_finding(dla, top)],
        controls=_controls(dla),
        caveats=[
            "A direct effect leaves out what a component does through later ones; patching measures the "
            "whole.",
            "The final norm's scale is held at its value in the full run: removing a component would change "
            "it.",
            *([f"There are no intervals: {dla.total.reason}."] if dla.total.reason else []),
        ],
    )


def _top(dla: DLAResult) -> Selection | None:
    """The largest component, chosen on one half of the groups and quoted on the other."""
    try:
        return select_then_quote(dla.terms, dla.groups, seed=dla.seed)
    except MechError:
        return None


def _metrics(dla: DLAResult, top: Selection | None) -> dict[str, Metric]:
    found = {
        "logit_difference": Metric.of(
            dla.total,
            unit="logits",
            better="higher",
            control=control(dla.control_kind, dla.control_total),
            per_group=by_group(dla.logit_difference, dla.groups),
        )
    }
    for name, kinds in _SUMS.items():
        chosen = [i for i, one in enumerate(dla.components) if one.kind in kinds]
        if not chosen:
            continue
        own, other = dla.terms[:, chosen].sum(1), dla.control_terms[:, chosen].sum(1)
        found[f"{name}_total"] = Metric.of(
            bootstrap_mean(own, dla.groups, seed=dla.seed),
            unit="logits",
            control=control(dla.control_kind, bootstrap_mean(other, dla.groups, seed=dla.seed)),
            per_group=by_group(own, dla.groups),
        )
    if top is not None:
        found["top_contribution"] = Metric.of(
            top.estimate,
            unit="logits",
            control=control(dla.control_kind, dla.control_estimates.at(top.site[0])),
            per_group=by_group(dla.terms[:, top.site[0]], dla.groups),
        )
    found["significant_components"] = Metric(
        value=int(dla.test.significant().sum()),
        n=len(dla.components),
        unit="components",
        absolute=1.0,  # on another processor a borderline p may fall on the other side
        method="max-T over all components, p <= 0.05",
        reason="a count of tested components has no interval",
    )
    return found


def _prompts(dla: DLAResult) -> list[dict[str, Any]]:
    strongest = np.abs(dla.terms).argmax(1)
    return [
        {
            "prompt": dla.prompts[i],
            "position": dla.positions[i],
            "correct": dla.correct[i],
            "wrong": dla.wrong[i],
            "logit_difference": float(dla.logit_difference[i]),
            "control_logit_difference": float(dla.control_difference[i]),
            "strongest": dla.components[int(strongest[i])].label,
            "strongest_term": float(dla.terms[i, strongest[i]]),
        }
        for i in range(len(dla))
    ]


def _finding(dla: DLAResult, top: Selection | None) -> Finding:
    low = dla.total.interval[0] if dla.total.interval is not None else 0.0
    beats = "beats the foil" if low > 0 else "differs from the foil (not clearly above it)"
    total = f"{number(dla.total)} logits by which the answer {beats}"
    if top is None:
        strongest = dla.components[dla.top(1)[0]].label
        return Finding(
            f"{strongest} writes most of the {total}; it was chosen and measured on the same prompts.",
            ["logit_difference", "components"],
            ["other_answers"],
        )
    label, p = dla.components[top.site[0]].label, float(dla.test.adjusted_p[top.site[0]])
    return Finding(
        f"{label} writes {number(top.estimate)} of the {total} ({halves(top)}; adjusted p = {p:.2g}).",
        ["top_contribution", "logit_difference", "components"],
        ["other_answers"],
    )


def _controls(dla: DLAResult) -> list[Control]:
    exact = not any(one.kind == "remainder" for one in dla.components)
    return [
        Control(
            "terms_sum_to_the_difference",
            f"all terms together give the model's own logit difference to {TOLERANCE:g} of max(1, |logit|)"
            if exact
            else "all terms together give the model's logit difference; half precision leaves a remainder",
            dla.gap,
            dla.gap <= TOLERANCE if exact else bool(np.isfinite(dla.gap)),
            sanity=True,
        ),
        Control(
            "other_answers",
            f"the logit difference of {dla.control_kind} is smaller",
            float(dla.control_total.value),
            dla.control_total.value < dla.total.value,
        ),
    ]


FAMILY = DirectLogitAttribution()
