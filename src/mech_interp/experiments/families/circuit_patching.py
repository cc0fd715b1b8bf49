"""Activation patching over prompt pairs: which sites carry what tells clean from corrupt?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from mech_interp.backends.metrics import LogitDifference, Probability
from mech_interp.backends.metrics import Metric as RowMetric
from mech_interp.backends.protocol import Capability, InstrumentedModel
from mech_interp.datasets.pairs import PromptPair, TaskSet
from mech_interp.errors import InputError, nearest
from mech_interp.experiments.context import Context
from mech_interp.experiments.data import DataParams, target_positions
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.parts import DataFamily, check_layers, data_of
from mech_interp.experiments.patching_report import report
from mech_interp.experiments.places import kind_of, named_sites
from mech_interp.experiments.result import Result
from mech_interp.experiments.resumable import resumable
from mech_interp.methods.common import answer_ids, rounding
from mech_interp.methods.paired import Positions
from mech_interp.methods.patching import activation_patching
from mech_interp.methods.patching_result import PatchingResult
from mech_interp.sites import KINDS, Site
from mech_interp.statistics import UnstableRatioError

_LISTS = ("hook_sites", "sites", "patch_sites")


class CircuitPatchingParams(DataParams):
    """Parameters of `circuit_patching`."""

    hook_site: str | None = Field(
        default=None, description="One site to patch, such as blocks.3.hook_resid_pre."
    )
    hook_sites: list[str] | None = Field(
        default=None, min_length=1, description="Sites or kinds to patch, one at a time."
    )
    sites: list[str] | None = Field(default=None, min_length=1, description="The same as hook_sites.")
    patch_sites: list[str] | None = Field(default=None, min_length=1, description="The same as hook_sites.")
    kind: str | None = Field(default=None, description="A kind of site to patch in every layer (a grid).")
    per_head: bool = Field(default=False, description="Patch each head on its own, for kinds with heads.")
    by: list[Literal["layer", "head", "position", "site"]] | None = Field(
        default=None,
        min_length=1,
        description="Axes of the grid; by default layer and head for kinds with heads, else layer, position.",
    )
    layers: list[int] | None = Field(
        default=None, min_length=1, description="Layers, from 0; all by default."
    )
    heads: list[int] | None = Field(default=None, min_length=1, description="Heads, from 0; all by default.")
    positions: Literal["all"] | int | str | list[int | str] | None = Field(
        default=None,
        description='Token positions: "all", numbers (negative from the end), names of spans, "last".',
    )
    patch_position: int | None = Field(default=None, description="One token position to patch at.")
    target_position: int | None = Field(
        default=None, description="Token position where the metric is read; the last token by default."
    )
    direction: Literal["denoising", "noising"] = Field(
        default="denoising", description="Clean into corrupt (denoising) or corrupt into clean (noising)."
    )
    metric: Literal["logit_difference", "probability", "probability_difference", "kl"] | None = Field(
        default=None, description="What is read off the logits; the task's own by default."
    )
    normalise: bool | Literal["auto"] = Field(
        default=True,
        description="Effects as shares of the clean-corrupt difference; auto: in the metric's unit where "
        "that difference is too small to divide by.",
    )
    control_cells: int | None = Field(
        default=8,
        ge=0,
        description="Strongest cells patched from an unrelated pair too; null for all cells.",
    )
    control_sites: list[str] | None = Field(
        default=None, min_length=1, description="Sites or kinds where no effect is expected, swept besides."
    )

    @model_validator(mode="after")
    def _one_way(self) -> CircuitPatchingParams:
        given = [name for name in ("hook_site", *_LISTS, "kind") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"sites are given as {' and as '.join(given)}; give one of them")
        if self.positions is not None and self.patch_position is not None:
            raise ValueError("positions and patch_position are both given; give one of them")
        return self

    def named(self) -> list[str]:
        """The sites or kinds asked for, as written; empty for the default grid."""
        many = next((getattr(self, name) for name in _LISTS if getattr(self, name)), None)
        one = self.hook_site or self.kind
        return list(many) if many else [one] if one else []


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What `activation_patching` is asked for: a kind in all layers, or (with an empty kind) these sites."""

    kind: str
    sites: tuple[Site, ...] = ()
    by: tuple[Literal["layer", "head", "position", "site"], ...] | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """The grid's axes, the method's own where none are asked for."""
        if self.by is not None:
            return self.by
        return ("site",) if not self.kind else ("layer", "head" if KINDS[self.kind].heads else "position")


class CircuitPatching(DataFamily[CircuitPatchingParams]):
    """Patches every site of a grid in every pair, one at a time."""

    name, version = "circuit_patching", 1
    summary = "Which sites carry what tells a clean prompt from its corrupt twin (activation patching)."
    needs = frozenset({Capability.CAPTURE.value, Capability.INTERVENE.value, Capability.ROWS.value})
    Params = CircuitPatchingParams

    def check_data(self, params: CircuitPatchingParams, facts: ModelFacts, data: TaskSet) -> None:
        """Sites, layers and heads against the config; named positions against the pairs."""
        check_layers(facts, params.layers)
        wanted = sweep(params, facts.n_layers, facts.heads_of)
        if wanted.kind:
            for layer in range(facts.n_layers) if params.layers is None else params.layers:
                facts.check_site(Site(wanted.kind, layer), "kind", changed=True)
        for site in (*wanted.sites, *control_sites(params, facts.n_layers)):
            facts.check_site(site, changed=True)
        count = max(
            facts.heads_of(one) for one in ([wanted.kind] if wanted.kind else {s.kind for s in wanted.sites})
        )
        for head in params.heads or ():
            if not 0 <= head < count:
                raise InputError(
                    f"heads names head {head}, but {facts.name} has {count} there.", f"Use 0 to {count - 1}."
                )
        _read_position(params, data)
        for number, pair in enumerate(data):
            known = ["last", *(f"{name}{end}" for name in pair.spans for end in ("", "_first", "_last"))]
            for name in _listed(params.positions):
                if isinstance(name, str) and name not in known:
                    raise InputError(
                        f"Pair {number} has no position named {name!r}.",
                        nearest(name, known) or f"It has: last, {', '.join(pair.spans)}.",
                    )

    def positions(self, params: CircuitPatchingParams, pair: PromptPair) -> list[int]:
        """Where it patches and reads, where these are numbers."""
        given = [*_listed(params.positions), params.patch_position, params.target_position]
        own = [pair.metadata.get(name) for name in ("patch_position", "target_position")]
        return [one for one in (*given, *own) if isinstance(one, int)]

    def run(self, context: Context[CircuitPatchingParams]) -> Result:
        """Sweep, a unit per portion of rows, and summarise."""
        params, model, data = context.params, context.model, data_of(context)
        wanted = sweep(params, model.info.n_layers, model.info.heads)
        try:
            found = patch(context, data, wanted, params.normalise is not False)
        except UnstableRatioError as error:
            if params.normalise != "auto":
                raise UnstableRatioError(
                    error.message,
                    "Set normalise: auto, or use prompts on which clean and corrupt differ clearly.",
                ) from None
            context.note(f"Effects are in the metric's own unit: {error.message}")
            found = patch(context, data, wanted, False, name="raw")
        others = control_sites(params, model.info.n_layers)
        control = None
        if others:
            control = patch(context, data, Sweep("", others), found.normalised, name="control")
        return report(found, control, rounding(model))


def patch(
    context: Context[CircuitPatchingParams], data: TaskSet, wanted: Sweep, normalise: bool, name: str = "rows"
) -> PatchingResult:
    """`activation_patching` of one sweep, its rows stored as units."""
    params = context.params
    model = resumable(context.model, context, name)
    where = _positions(params, data, context.model, wanted)
    metric, label = _metric(params, data, context.model)
    found = activation_patching(
        model,
        data,
        kind=wanted.kind or "resid_pre",
        by=wanted.by,
        layers=None if wanted.sites else params.layers,
        heads=None if wanted.sites else params.heads,
        positions=where,
        sites=wanted.sites or None,
        direction=params.direction,
        metric=metric,
        normalise=normalise,
        control_cells=params.control_cells,
        seed=context.seed,
        memory_budget=context.budget.memory_bytes,
        progress=lambda done, total: context.progress(done, total, "rows"),
    )
    return dataclasses.replace(found, model=context.model.info.name, metric=label or found.metric)


def sweep(params: CircuitPatchingParams, n_layers: int, heads_of: Callable[[str], int]) -> Sweep:
    """The grid or the explicit sites that the parameters mean.

    Raises:
        InputError: for a name that is neither a site nor a kind, or heads of a kind that has none.
    """
    by = None if params.by is None else tuple(params.by)
    names = params.named() or ["z" if params.per_head else "resid_pre"]
    kind = kind_of(names[0])
    if len(names) == 1 and kind is not None:
        _check_heads(kind, params.per_head)
        return Sweep(kind, by=by or (("layer", "head") if params.per_head else None))
    sites: list[Site] = []
    for site in named_sites(names, params.layers, n_layers):
        _check_heads(site.kind, params.per_head)
        each = params.per_head and site.head is None
        chosen = params.heads or range(heads_of(site.kind))
        sites += [Site(site.kind, site.layer, head) for head in chosen] if each else [site]
    return Sweep("", tuple(sites), by)


def control_sites(params: CircuitPatchingParams, n_layers: int) -> tuple[Site, ...]:
    """The sites of the control sweep; kinds stand for all their layers."""
    return tuple(named_sites(params.control_sites or (), None, n_layers))


def _check_heads(kind: str, per_head: bool) -> None:
    if per_head and not KINDS[kind].heads:
        raise InputError(
            f"per_head is set, and {kind} has no heads.",
            f"Kinds with heads: {', '.join(k for k, s in KINDS.items() if s.heads)}.",
        )


def _positions(
    params: CircuitPatchingParams, data: TaskSet, model: InstrumentedModel, wanted: Sweep
) -> Positions | None:
    """Where to patch: as given, or each pair's own patch_position, or names where lengths differ."""
    if params.patch_position is not None:
        return [params.patch_position]
    if params.positions is not None:
        return [params.positions] if isinstance(params.positions, int) else params.positions
    own = ["patch_position" in pair.metadata for pair in data]
    if all(own):
        return _own_position
    if any(own):
        raise InputError(
            f"Pair {own.index(False)} has no patch_position, and others have one.", "Give it for all pairs."
        )
    if "position" not in wanted.axes or len(set(model.tokens(data.clean).lengths)) == 1:
        return None
    shared = [name for name in data[0].spans if all(name in pair.spans for pair in data)]
    # Absolute positions of prompts of different lengths mean different things; named words do not.
    return [*shared, "last"]


def _listed(positions: int | str | list[int | str] | None) -> list[int | str]:
    """Positions one by one; none where they are all, or not given."""
    if positions is None or positions == "all":
        return []
    return positions if isinstance(positions, list) else [positions]


def _own_position(pair: PromptPair, texts: list[str]) -> Mapping[str, Sequence[int]]:
    return {"patch_position": [int(pair.metadata["patch_position"])]}


def _read_position(params: CircuitPatchingParams, data: TaskSet) -> int:
    if params.target_position is not None:
        return params.target_position
    found = sorted(set(target_positions(data)))
    if len(found) > 1:
        raise InputError(
            f"The pairs read the answer at different positions ({found[0]}, {found[1]}).",
            "Give them the same target_position: a sweep reads all pairs at one.",
        )
    return found[0]


def _metric(
    params: CircuitPatchingParams, data: TaskSet, model: InstrumentedModel
) -> tuple[str | RowMetric | None, str]:
    """The metric by name; as an object (and its name) where it is not read at the last token."""
    at = _read_position(params, data)
    if at == -1:
        return params.metric, ""
    name = params.metric or data.metric
    tokens = model.tokens(data.clean)
    right = tuple(answer_ids(model, tokens, [pair.answer for pair in data], "answer"))
    if name == "logit_difference":
        wrong = answer_ids(model, tokens, [pair.wrong for pair in data], "wrong")
        return LogitDifference(right, tuple(wrong), at), name
    if name == "probability":
        return Probability(right, at), name
    raise InputError(
        f"The metric {name} is read at the last token only.", "Use logit_difference or probability."
    )


FAMILY = CircuitPatching()
