"""Path patching: what one component tells another, with everything else as it was."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mech_interp.datasets.pairs import TaskSet
from mech_interp.experiments.circuit_judging import Judged, tell_ends
from mech_interp.experiments.circuit_task import CircuitFamily, CircuitParams, StoredTask, room, stored_task
from mech_interp.experiments.context import Context
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.parts import by_group, control, flat, halves, number
from mech_interp.experiments.result import Control, Finding, Metric, Result
from mech_interp.graph import CircuitGraph
from mech_interp.methods.circuits.common import CircuitTask
from mech_interp.methods.circuits.paths import path_patching
from mech_interp.methods.circuits.paths_result import PathPatchingResult
from mech_interp.methods.paired import prepare
from mech_interp.statistics import Estimate

SHARE = "fraction of the clean-corrupt difference"


class PathPatchingParams(CircuitParams):
    """Parameters of `path_patching`."""

    receivers: list[str] | dict[str, list[str]] = Field(
        default_factory=lambda: ["logits"],
        min_length=1,
        description="Receivers (a9.h9<q>, m5, logits), each for itself, or named groups patched together.",
    )
    senders: Literal["heads", "all"] | list[str] = Field(
        default="heads", description="Senders: all heads, all writers, or names (a5.h5, m0, input)."
    )
    variant: Literal["three_pass", "direct_edge"] = Field(
        default="three_pass",
        description="Three passes (paths through MLPs count) or the direct edge alone.",
    )
    direction: Literal["noising", "denoising"] = Field(
        default="noising", description="Corrupt into clean (noising) or clean into corrupt (denoising)."
    )
    positions: Literal["all"] | list[int | str] | None = Field(
        default=None,
        description='Split by where the sender writes: "all", numbers (negative from the end), names of '
        'spans, "last"; together by default.',
    )
    control_cells: int | None = Field(
        default=8, ge=0, description="Strongest senders of a receiver patched from an unrelated pair too."
    )

    def groups(self) -> dict[str, list[str]]:
        """Receivers patched together, by name."""
        return (
            dict(self.receivers)
            if isinstance(self.receivers, dict)
            else {name: [name] for name in self.receivers}
        )


class PathPatching(CircuitFamily[PathPatchingParams]):
    """Patches every path from a sender to a receiver, one at a time."""

    name, version = "path_patching", 1
    summary = "Which components tell a component, or the logits, what the answer needs (path patching)."
    Params = PathPatchingParams

    def check_circuit(self, params: PathPatchingParams, facts: ModelFacts) -> None:
        """Names of senders and receivers."""
        graph = CircuitGraph(facts.n_layers, facts.n_heads, facts.n_kv_heads)
        for members in params.groups().values():
            for name in members:
                graph.reader(name)
        for name in params.senders if isinstance(params.senders, list) else ():
            graph.writer(name)

    def run(self, context: Context[PathPatchingParams]) -> Result:
        """A unit per receiver."""
        task, data = stored_task(context)
        judged = Judged()
        tell_ends(task, judged)
        groups = context.params.groups()
        parts = list(
            context.each(
                list(groups),
                lambda name: f"receiver/{name}",
                lambda name: _column(context, task, data, {name: groups[name]}),
                "receivers",
            )
        )
        return report(_joined(context, task, data, parts), judged, room(task))


def _plain(task: StoredTask) -> CircuitTask:
    """The task without its units: inside a unit nothing else is stored."""
    own = {one.name: getattr(task, one.name) for one in dataclasses.fields(CircuitTask)}
    return CircuitTask(**own)


def _column(
    context: Context[PathPatchingParams], task: StoredTask, data: TaskSet, receivers: dict[str, list[str]]
) -> dict[str, Any]:
    """One receiver's map as plain values."""
    params = context.params
    named = None if params.positions is None else prepare(context.model, data).resolve(params.positions)
    found = path_patching(
        _plain(task),
        receivers,
        params.senders,
        variant=params.variant,
        direction=params.direction,
        positions=named,
        control_cells=params.control_cells,
        pairs=list(data),
        seed=context.seed,
        memory_budget=context.budget.memory_bytes,
    )
    kept = {one.name: getattr(found, one.name) for one in dataclasses.fields(found)}
    return {
        **{name: value for name, value in kept.items() if isinstance(value, str | bool | int | tuple)},
        "differences": found.differences,
        "control_differences": found.control_differences,
        "base": found.base,
        "other": found.other,
        "sanity": dict(found.sanity),
    }


def _joined(
    context: Context[PathPatchingParams], task: StoredTask, data: TaskSet, parts: list[dict[str, Any]]
) -> PathPatchingResult:
    """The maps of all receivers side by side."""
    first = parts[0]
    return PathPatchingResult(
        model=first["model"],
        task=first["task"],
        variant=first["variant"],
        direction=first["direction"],
        metric=first["metric"],
        senders=tuple(first["senders"]),
        receivers=tuple(name for part in parts for name in part["receivers"]),
        members=tuple(tuple(own) for part in parts for own in part["members"]),
        positions=tuple(first["positions"]),
        differences=np.concatenate([np.asarray(part["differences"]) for part in parts], 2),
        control_differences=np.concatenate([np.asarray(part["control_differences"]) for part in parts], 2),
        base=np.asarray(first["base"]),
        other=np.asarray(first["other"]),
        groups=task.groups,
        normalised=first["normalised"],
        sanity={name: max(part["sanity"][name] for part in parts) for name in first["sanity"]},
        notes=tuple(dict.fromkeys(note for part in parts for note in part["notes"])),
        seed=context.seed,
    )


def report(found: PathPatchingResult, judged: Judged, most: float) -> Result:
    """Metrics, tables, views and sentences of a map; `most` is the size of harmless rounding."""
    cell, top, how = _top(found)
    at: Any = (slice(None), *cell)
    others = found.control_estimates
    beside = None if others is None else others.at(*cell)
    p = float(found.adjusted_p[cell])
    n_paths = int(found.possible.sum())
    verb = "takes away" if found.direction == "noising" else "brings back"
    strongest = f"The path {found.label(cell)} {verb} {number(top)} of the clean-corrupt difference"
    text = (
        f"{strongest} ({how}; adjusted p = {p:.2g} over {n_paths} paths)."
        if p <= 0.05
        else f"No path of {n_paths} is told from zero after max-T ({found.label(cell)}: {number(top)})."
    )
    controls = [
        Control(name, f"the identity {name.replace('_', ' ')} holds to rounding", error, error <= most, True)
        for name, error in found.sanity.items()
    ]
    if beside is not None and beside.n:
        controls.append(
            Control(
                "unrelated_pair",
                "the same path from an unrelated pair carries less than the pair's own",
                float(beside.value),
                abs(beside.value) < abs(top.value),
            )
        )
    names = [one.name for one in controls]
    return Result(
        question=f"Who tells {', '.join(found.receivers)} of {found.model} what {found.task} needs?",
        method=(
            f"Path patching ({found.direction}): {found.definition}. Effects are shares of the mean "
            f"difference between the two runs in {found.metric.replace('_', ' ')} (a ratio of means). "
            "Controls: paths from a run to itself, all writers together, the same path from an unrelated "
            "pair. 95 % intervals by cluster bootstrap over groups; p by sign-flip max-T over all paths."
        ),
        metrics={
            **judged.metrics,
            "top_path_effect": Metric.of(
                top,
                unit=SHARE,
                control=control("the same path from an unrelated pair", beside),
                per_group=by_group(found.effects[at], found.groups),
            ),
            "significant_paths": Metric(
                value=int(found.test.significant().sum()),
                n=n_paths,
                unit="paths",
                absolute=1.0,  # on another processor a borderline p may fall on the other side
                method="max-T over all paths, p <= 0.05",
                reason="a count of tested paths has no interval",
            ),
        },
        tables={"paths": flat(found.table())},
        tensors={"effects": found.effects},
        views={"paths": found.view(), "strongest": found.table_view()},
        findings=[Finding(text, ["top_path_effect", "paths"], names)],
        controls=[*judged.controls, *controls],
        caveats=[
            "Another variant asks another question: three passes let paths go through MLPs, the direct edge "
            "does not.",
            "What a path carries is about what differs between the two prompts.",
            *(f"Note: {note}." for note in found.notes),
        ],
    )


def _top(found: PathPatchingResult) -> tuple[tuple[int, ...], Estimate, str]:
    top = found.top_path
    if top is not None:
        return top.site, top.estimate, halves(top)
    cell = found.top(1)[0]
    return cell, found.estimates.at(*cell), "chosen and measured on the same pairs"


FAMILY = PathPatching()
