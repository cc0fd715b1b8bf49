"""Logit lens over a set of prompts: when does the residual stream name the answer?"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from mech_interp.backends.protocol import Capability
from mech_interp.datasets.pairs import TaskSet
from mech_interp.experiments.context import Context
from mech_interp.experiments.data import DataParams, Need, target_positions
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.parts import DataFamily, by_group, control, data_of, flat, number, portions
from mech_interp.experiments.result import Control, Finding, Metric, Result
from mech_interp.methods.common import answer_ids, other_choice, prompt_positions, prompt_texts, rounding
from mech_interp.methods.lens import logit_lens
from mech_interp.methods.lens_result import LensResult, TargetReading
from mech_interp.statistics import Estimate, bootstrap_columns, bootstrap_mean

_ARRAYS = ("rank", "probability", "cross_entropy")


class LogitLensParams(DataParams):
    """Parameters of `logit_lens`."""

    position: int | None = Field(
        default=None,
        description="Token position where every prompt is read (negative from its end); by default each "
        "pair's target_position, the last token.",
    )
    top_k: int = Field(default=5, ge=1, le=100, description="Most likely tokens listed per layer.")

    def need(self) -> Need:
        """A prompt and its answer."""
        return "answer"


class LogitLens(DataFamily[LogitLensParams]):
    """Reads every layer's residual stream through the final norm and the unembedding."""

    name, version = "logit_lens", 1
    summary = "When each layer's residual stream, read as logits, comes to name the answer."
    needs = frozenset({Capability.CAPTURE.value})
    Params = LogitLensParams

    def check_data(self, params: LogitLensParams, facts: ModelFacts, data: TaskSet) -> None:
        """The residual stream."""
        facts.check_kinds(("resid_pre", "resid_post"), self.name)

    def run(self, context: Context[LogitLensParams]) -> Result:
        """Read all prompts, a unit per batch, and summarise."""
        data = data_of(context)
        lens = read(context, data)
        return report(lens, data, rounding(context.model))


def read(context: Context[LogitLensParams], data: TaskSet) -> LensResult:
    """What `logit_lens` returns for all prompts at once, put together from stored batches."""
    params, model = context.params, context.model
    tokens = model.tokens(data.clean)
    wanted = target_positions(data) if params.position is None else params.position
    where = prompt_positions(tokens, wanted)
    ids = answer_ids(model, tokens, [pair.answer for pair in data], "target")
    others, kind = other_choice([(i,) for i in ids], model.info.vocabulary, context.seed)

    def batch(at: tuple[int, int]) -> dict[str, Any]:
        part = tokens.select(range(*at))
        chosen = slice(*at)
        target = logit_lens(model, part, ids[chosen], positions=where[chosen], top_k=params.top_k)
        # The control is drawn from all prompts, so it is read as a target of its own.
        foil = logit_lens(model, part, [o[0] for o in others[chosen]], positions=where[chosen], top_k=1)
        readings = (("target", target.target), ("control", foil.target))
        return {
            "texts": [list(one.texts) for _, one in readings],
            "top_texts": [[list(cell) for cell in row] for row in target.top_texts],
            "top_probability": target.top_probability,
            "final_gap": target.final_gap,
            **{f"{name}_{array}": getattr(one, array) for name, one in readings for array in _ARRAYS},
        }

    parts = list(context.each(portions(len(data)), lambda at: f"prompts/{at[0]:06d}", batch, "prompts"))

    def joined(which: str, column: int, own: list[int]) -> TargetReading:
        arrays = {name: np.concatenate([part[f"{which}_{name}"] for part in parts]) for name in _ARRAYS}
        texts = tuple(text for part in parts for text in part["texts"][column])
        return TargetReading(ids=tuple(own), texts=texts, **arrays)

    return LensResult(
        model=model.info.name,
        prompts=prompt_texts(tokens),
        positions=tuple(where),
        target=joined("target", 0, ids),
        control=joined("control", 1, [other[0] for other in others]),
        control_kind=kind,
        top_texts=[row for part in parts for row in part["top_texts"]],
        top_probability=np.concatenate([part["top_probability"] for part in parts]),
        final_gap=max(float(part["final_gap"]) for part in parts),
        groups=tuple(data.groups),
        seed=context.seed,
    )


def report(lens: LensResult, data: TaskSet, room: float) -> Result:
    """Metrics, tables, views and sentences of a reading; `room` is the size of harmless rounding."""
    return Result(
        question=f"From which layer on does {lens.model}'s residual stream name the answer ({data.name})?",
        method=(
            "The residual stream after each layer passes the model's own final norm and unembedding "
            "(logit lens); the answer's rank, probability and cross-entropy are read there, and the same "
            f"for a control token: {lens.control_kind}. Means over prompts, 95 % intervals by cluster "
            "bootstrap."
        ),
        metrics=_metrics(lens),
        tables={"layers": flat(lens.table()), "prompts": _prompts(lens)},
        tensors={
            "target_rank": lens.target.rank,
            "target_probability": lens.target.probability,
            "control_probability": lens.control.probability,
        },
        views={"lens": lens.view(), "prompt": lens.prompt_view(0), "layer_table": lens.table_view()},
        findings=[_finding(lens)],
        controls=_controls(lens, room),
        caveats=[
            "The lens reads intermediate layers with a norm and an unembedding trained for the last one; a "
            "layer "
            "may hold the answer in a form that this reading misses. A trained translator would settle it.",
            "Reading is not use: that a layer can name the answer does not show that later layers need it. "
            "Patching would.",
            *_few(lens),
        ],
    )


def _metrics(lens: LensResult) -> dict[str, Metric]:
    last, groups = lens.n_layers, lens.groups
    logs = bootstrap_columns(np.log(lens.target.rank[:, -1:]), groups=groups, seed=lens.seed).at(0)
    other = bootstrap_columns(np.log(lens.control.rank[:, -1:]), groups=groups, seed=lens.seed).at(0)
    gain = lens.control.cross_entropy[:, -1] - lens.target.cross_entropy[:, -1]
    never = [last if layer is None else layer for layer in lens.decision_layers]
    crossed = [last if layer is None else layer for layer in lens.crossover_layers]
    per_rank = by_group(np.log(lens.target.rank[:, -1]), groups)
    found = {
        "final_rank": Metric.of(
            _exponential(logs),
            unit="rank",
            better="lower",
            control=control(lens.control_kind, _exponential(other)),
            per_group=None if per_rank is None else {k: float(np.exp(v)) for k, v in per_rank.items()},
        ),
        "final_probability": Metric.of(
            lens.probability.at(last),
            unit="probability",
            better="higher",
            control=control(lens.control_kind, lens.control_probability.at(last)),
            per_group=by_group(lens.target.probability[:, -1], groups),
        ),
        "final_cross_entropy": Metric.of(
            lens.cross_entropy.at(last),
            unit="nats",
            better="lower",
            control=control(lens.control_kind, lens.control_cross_entropy.at(last)),
            per_group=by_group(lens.target.cross_entropy[:, -1], groups),
        ),
        "final_top1_rate": Metric.of(
            lens.top1_rates[-1],
            unit="fraction",
            better="higher",
            control={"name": lens.control_kind, "value": float((lens.control.rank[:, -1] == 1).mean())},
            per_group=by_group(lens.target.rank[:, -1] == 1, groups),
        ),
        "advantage": Metric.of(
            bootstrap_mean(gain, groups, seed=lens.seed),
            unit="nats",
            better="higher",
            per_group=by_group(gain, groups),
        ),
    }
    for name, estimate, layers in (
        ("crossover_layer", lens.crossover_estimate, crossed),
        ("decision_layer", lens.decision_estimate, never),
    ):
        theirs = lens.control.crossover if name == "crossover_layer" else lens.control.decision
        filled = bootstrap_mean([last if one is None else one for one in theirs], groups, seed=lens.seed)
        found[name] = Metric.of(
            estimate,
            unit=f"layer (-1 embedding, {last} never)",
            control=control(lens.control_kind, filled),
            per_group=by_group(layers, groups),
        )
    return found


def _exponential(estimate: Estimate) -> Estimate:
    """exp of a mean of logarithms: a geometric mean."""
    interval = estimate.interval
    bounds = None if interval is None else (float(np.exp(interval[0])), float(np.exp(interval[1])))
    return Estimate(
        float(np.exp(estimate.value)),
        bounds,
        estimate.n,
        f"geometric mean; {estimate.method}",
        estimate.level,
        estimate.reason,
        estimate.n_groups,
    )


def _prompts(lens: LensResult) -> list[dict[str, Any]]:
    return [
        {
            "prompt": lens.prompts[i],
            "position": lens.positions[i],
            "target": lens.target.texts[i],
            "final_rank": int(lens.target.rank[i, -1]),
            "final_probability": float(lens.target.probability[i, -1]),
            "crossover_layer": lens.crossover_layers[i],
            "decision_layer": lens.decision_layers[i],
            "control": lens.control.texts[i],
            "control_probability": float(lens.control.probability[i, -1]),
        }
        for i in range(len(lens))
    ]


def _finding(lens: LensResult) -> Finding:
    first, layer = int((lens.target.rank[:, -1] == 1).sum()), lens.decision_layer
    evidence = ["decision_layer", "final_top1_rate", "lens"]
    if layer is None:
        text = (
            f"The answer is the model's first choice in {first} of {len(lens)} prompts, too few for a layer."
        )
    else:
        when = "from the embedding on" if layer < 0 else f"after layer {layer} of 0 to {lens.n_layers - 1}"
        text = (
            f"The answer becomes and stays the first choice {when} (median; mean layer "
            f"{number(lens.decision_estimate)}); at the output it is first in {first} of {len(lens)} prompts."
        )
    return Finding(text, evidence, ["control_token"])


def _controls(lens: LensResult, room: float) -> list[Control]:
    mine, theirs = (float((one.rank[:, -1] == 1).mean()) for one in (lens.target, lens.control))
    return [
        Control(
            "last_stream_is_the_output",
            "the last stream read this way gives the model's own logits, to rounding",
            lens.final_gap,
            lens.final_gap <= room,
            sanity=True,
        ),
        Control(
            "control_token",
            f"the control token ({lens.control_kind}) is the first choice less often than the answer",
            theirs,
            theirs < mine,
        ),
    ]


def _few(lens: LensResult) -> list[str]:
    reason = lens.probability.at(lens.n_layers).reason
    return [f"There are no intervals: {reason}. More prompts would give them."] if reason else []


FAMILY = LogitLens()
