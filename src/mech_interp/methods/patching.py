"""Activation patching: put one run's activation into another and see how far the answer moves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from mech_interp.backends.metrics import Metric
from mech_interp.backends.protocol import InstrumentedModel, Progress, Row
from mech_interp.backends.tokens import Tokens
from mech_interp.datasets.pairs import PromptPair, TaskSet
from mech_interp.errors import InputError
from mech_interp.interventions import FromRun, Intervention, Replace
from mech_interp.methods.common import Floats, SanityError, rounding
from mech_interp.methods.operations import SetFromTable
from mech_interp.methods.paired import Paired, Positions, donors, prepare
from mech_interp.methods.patching_grid import Axis, Grid, grid_of_kind, grid_of_sites
from mech_interp.methods.patching_result import PatchingResult
from mech_interp.sites import Site
from mech_interp.statistics import bootstrap_ratio

Direction = Literal["denoising", "noising"]


def activation_patching(
    model: InstrumentedModel,
    pairs: TaskSet | Sequence[PromptPair],
    *,
    kind: str = "resid_pre",
    by: Sequence[Axis] | None = None,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    positions: Positions | None = None,
    sites: Sequence[Site | str] | None = None,
    direction: Direction = "denoising",
    metric: str | Metric | None = None,
    normalise: bool = True,
    control_cells: int | None = 8,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> PatchingResult:
    """Patch every cell of a grid of sites, one at a time, in every pair.

    Denoising runs the corrupt prompt and inserts the clean activation (what suffices to restore the
    answer); noising runs the clean prompt and inserts the corrupt one (what the answer needs). The two
    are not mirror images. A pair's effect in a cell is

        (patched - base) / mean over pairs of (other - base),

    where base is the run patched into and other the run that the activation comes from: 0 is no effect,
    1 moves the metric all the way. The mean effect is therefore a ratio of means; its interval resamples
    numerator and denominator together over groups of pairs.

    Checked in every call, and refused when wrong: a run patched with itself does not move, and patching
    resid_pre of layer 0 at all positions gives the other run's metric, both to 1e-5 of the metric's size
    in float32. Controlled in every call: the same patch from an unrelated pair.

    Source: Vig et al. 2020 (arXiv 2004.12265); Wang et al. 2022 (arXiv 2211.00593); choices as in Zhang
    and Nanda 2023 (arXiv 2309.16042) and Heimersheim and Nanda 2024 (arXiv 2404.15255).

    Args:
        model: any instrumented model that evaluates rows.
        pairs: a task or prompt pairs; clean and corrupt prompts have equally many tokens.
        kind: the site kind patched, such as resid_pre, attn_out, mlp_out, z, q, k, v, pattern.
        by: axes of the grid, of "layer", "head", "position"; by default layer x head for kinds with
            heads, else layer x position. An axis left out is patched jointly (all heads; all positions).
        layers, heads: which to visit; all by default.
        positions: "all" (needs prompts of one length), integers (negative from the end), names ("last",
            a span of the pairs such as "subject", "subject_last"), or a function (pair, token texts) ->
            {name: positions}. Without a position axis the patch is made at all of them together.
        sites: explicit sites instead of `kind`; one axis "site" (and "position" where `by` names it).
        direction: "denoising" or "noising".
        metric: "logit_difference", "probability", "probability_difference" or "kl" (all at the last
            token), or a `Metric`; the task's own by default.
        normalise: False reports effects in the metric's own unit, patched - base.
        control_cells: cells patched from an unrelated pair too: the largest by magnitude; None for all.
        seed: of donors, halves and resampling.
        memory_budget: bytes for the sweep. progress: called with (rows done, rows in all).

    Returns:
        A `PatchingResult`; effects are [pairs, *grid].

    Raises:
        InputError: for pairs that do not line up, sites or positions that do not exist.
        UnstableRatioError: when clean and corrupt do not differ by three standard errors in the metric.
        SanityError: when an identity fails.
    """
    if direction not in ("denoising", "noising"):
        raise InputError(f"There is no direction {direction!r}.", "Use denoising or noising.")
    paired = prepare(model, pairs)
    grid = (
        grid_of_kind(paired, kind, by, layers, heads, positions)
        if sites is None
        else grid_of_sites(paired, sites, by, positions)
    )
    name, measure = paired.metric(metric)
    sweep = _Sweep(paired, direction, measure, memory_budget)
    base, other = sweep.endpoints()
    if normalise:
        # Refused before the sweep rather than after it.
        bootstrap_ratio(other - base, other - base, paired.groups, n_resamples=100)
    sanity = {
        "restore_all": sweep.restore_all(base, other),
        "self_patch": sweep.self_patch(grid, base, other),
    }
    patched = sweep.patch(grid, range(len(grid)), progress)
    change = patched - base[:, None]
    control, donor = sweep.control(grid, _largest(change, control_cells), seed)
    shape = (len(paired), *grid.shape)
    return PatchingResult(
        model=model.info.name,
        task=paired.name,
        direction=direction,
        metric=name,
        axes=grid.axes,
        labels=grid.labels,
        differences=change.reshape(shape),
        control_differences=(control - base[:, None]).reshape(shape),
        base=base,
        other=other,
        groups=tuple(paired.groups),
        normalised=normalise,
        sanity=sanity,
        donors=tuple(donor),
        patched_what=grid.what,
        seed=seed,
    )


class _Sweep:
    """Runs rows of one call: `base` is patched into, `other` is where activations come from."""

    def __init__(self, paired: Paired, direction: Direction, metric: Metric, budget: int | None) -> None:
        self.paired, self.metric, self.budget = paired, metric, budget
        ends = (paired.corrupt, paired.clean) if direction == "denoising" else (paired.clean, paired.corrupt)
        self.base, self.other = ends

    @property
    def _runs(self) -> dict[str, Tokens]:
        return {"base": self.base, "other": self.other}

    def endpoints(self) -> tuple[Floats, Floats]:
        """The metric of both runs, [n] each."""
        numbers = range(len(self.paired))
        rows = [Row(i, (), run) for run in ("base", "other") for i in numbers]
        values = self._values(self._runs, rows)
        return values[: len(numbers)], values[len(numbers) :]

    def patch(
        self, grid: Grid, cells: Sequence[int], progress: Progress | None = None, source: str = "other"
    ) -> Floats:
        """The metric with each cell patched from `source`, [n, cells]."""
        n = len(self.paired)
        rows = [Row(i, grid.patch(cell, i, Replace(FromRun(source)))) for i in range(n) for cell in cells]
        return self._values(self._runs, rows, progress).reshape(n, len(cells))

    def restore_all(self, base: Floats, other: Floats) -> float:
        """Largest error of patching the whole input, which must give the other run's metric."""
        whole = (Intervention("resid_pre.0", Replace(FromRun("other"))),)
        values = self._values(self._runs, [Row(i, whole) for i in range(len(self.paired))])
        return self._checked(values - other, base, other, "Patching resid_pre.0 everywhere")

    def self_patch(self, grid: Grid, base: Floats, other: Floats) -> float:
        """Largest change when some pairs' own activations are patched in; it must be none."""
        chosen = list(range(min(4, len(self.paired))))
        cells = sorted({0, len(grid) // 2, len(grid) - 1})
        places = sorted({grid.cells[cell].site.whole for cell in cells}, key=str)
        tokens = self.base.select(chosen)
        found = self.paired.model.forward(tokens, capture=places, logits="none").activations
        own = {site: SetFromTable(found[site]) for site in places}
        rows = [
            Row(i, grid.patch(cell, i, own[grid.cells[cell].site.whole])) for i in chosen for cell in cells
        ]
        values = self._values({"base": tokens}, rows).reshape(len(chosen), len(cells))
        return self._checked(values - base[chosen, None], base, other, "Patching a run with itself")

    def control(self, grid: Grid, cells: Sequence[int], seed: int) -> tuple[Floats, list[int | None]]:
        """The metric with cells patched from an unrelated pair's `other` run, [n, grid]; NaN elsewhere."""
        n = len(self.paired)
        chosen = donors(self.paired.pairs, self.base.lengths, seed)
        values = np.full((n, len(grid)), np.nan)
        if not cells or all(donor is None for donor in chosen):
            return values, chosen
        order = [i if donor is None else donor for i, donor in enumerate(chosen)]
        runs = {"base": self.base, "unrelated": self.other.select(order)}
        numbers = [i for i, donor in enumerate(chosen) if donor is not None]
        insert = Replace(FromRun("unrelated"))
        rows = [Row(i, grid.patch(cell, i, insert)) for i in numbers for cell in cells]
        values[np.ix_(numbers, list(cells))] = self._values(runs, rows).reshape(len(numbers), len(cells))
        return values, chosen

    def _values(
        self, runs: Mapping[str, Tokens], rows: Sequence[Row], progress: Progress | None = None
    ) -> Floats:
        values = np.full(len(rows), np.nan)
        results = self.paired.model.rows(
            runs, rows, self.metric, memory_budget=self.budget, progress=progress
        )
        for result in results:
            if result.value.numel() != 1:
                raise InputError(
                    "The metric gives several values per row, and patching needs one.", "Use a scalar metric."
                )
            values[result.index] = float(result.value)
        if np.isnan(values).any():
            raise SanityError(
                f"The metric of row {int(np.flatnonzero(np.isnan(values))[0])} is not a number.",
                "Check the model's weights and the metric.",
            )
        return values

    def _checked(self, error: Floats, base: Floats, other: Floats, what: str) -> float:
        size = max(1.0, float(np.abs(base).max()), float(np.abs(other).max()))
        worst = float(np.abs(error).max()) / size
        if not worst <= rounding(self.paired.model):
            raise SanityError(
                f"{what} missed the known answer by {worst:.1e} of the metric's size.",
                "The backend's rows are wrong for this model, so its sweeps are void; report it.",
            )
        return worst


def _largest(change: Floats, count: int | None) -> list[int]:
    """Cells with the largest mean change by magnitude, in grid order; all for None."""
    if count is None:
        return list(range(change.shape[1]))
    order: Iterator[int] = iter(np.argsort(-np.abs(change.mean(0)), kind="stable")[: max(count, 0)])
    return sorted(int(cell) for cell in order)
