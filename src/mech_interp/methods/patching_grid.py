"""Which cells a patching sweep visits, and the intervention each one means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

from mech_interp.errors import InputError, nearest
from mech_interp.interventions import Intervention, Operation
from mech_interp.methods.paired import Paired, Positions
from mech_interp.sites import KINDS, Site

Axis = Literal["layer", "head", "position", "site"]


@dataclass(frozen=True)
class Cell:
    """One site, the columns patched in each pair (None: all), and the heads patched together (None: all)."""

    site: Site
    columns: list[tuple[int, ...]] | None
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Grid:
    """Cells in row-major order of `axes`; `labels` name the values along each axis."""

    axes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    cells: list[Cell]
    what: str
    _made: dict[tuple[int, tuple[int, ...] | None, int], Intervention] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values along each axis."""
        return tuple(len(one) for one in self.labels)

    def patch(self, cell: int, pair: int, operation: Operation) -> tuple[Intervention, ...]:
        """The intervention of one cell in one pair (shared between pairs where it is the same)."""
        chosen = self.cells[cell]
        columns = None if chosen.columns is None else chosen.columns[pair]
        key = (cell, columns, hash(operation.group_key()))
        if key not in self._made:
            self._made[key] = Intervention(chosen.site, operation, columns, chosen.heads)
        return (self._made[key],)


def grid_of_kind(
    paired: Paired,
    kind: str,
    by: Sequence[Axis] | None,
    layers: Iterable[int] | None,
    heads: Iterable[int] | None,
    positions: Positions | None,
) -> Grid:
    """A grid over layers, heads and positions of one site kind."""
    info = paired.model.info
    if kind not in KINDS:
        raise InputError(f"There is no site kind {kind!r}.", nearest(kind, KINDS) or "See mech_interp.sites.")
    spec = KINDS[kind]
    axes: tuple[Axis, ...] = tuple(by) if by is not None else _default_axes(kind)
    allowed: set[Axis] = {"position"}
    allowed |= {"layer"} if spec.in_block else set()
    allowed |= {"head"} if spec.heads else set()
    _check_axes(axes, allowed, kind)
    chosen = {
        "layer": _numbers(layers, info.n_layers, "layer") if spec.in_block else [],
        "head": _numbers(heads, info.heads(kind), "head") if spec.heads else [],
    }
    if heads is not None and not spec.heads:
        raise InputError(f"{kind} has no heads.", "Leave out heads=.")
    if "layer" not in axes and len(chosen["layer"]) > 1:
        raise InputError(f"A {kind} grid without a layer axis needs one layer.", "Give layers=[…] or by=.")
    where, joint = _places(paired, axes, positions)
    values: list[Sequence[int | str]] = [
        list(where) if axis == "position" else chosen[axis] for axis in axes if axis != "site"
    ]
    cells = []
    for point in product(*values):
        at = dict(zip(axes, point, strict=True))
        layer = at.get("layer", chosen["layer"][0] if spec.in_block else None)
        site = Site(kind, None if layer is None else int(layer), int(at["head"]) if "head" in at else None)
        columns = where[str(at["position"])] if "position" in at else joint
        cells += [Cell(site, columns, None if heads is None or "head" in axes else tuple(chosen["head"]))]
    labels = tuple(tuple(str(v) for v in one) for one in values)
    return Grid(tuple(axes), labels, cells, kind)


def grid_of_sites(
    paired: Paired, sites: Sequence[Site | str], by: Sequence[Axis] | None, positions: Positions | None
) -> Grid:
    """A grid of explicit sites, and positions where `by` names them."""
    parsed = [Site.parse(site) for site in sites]
    if not parsed:
        raise InputError("No sites were given.", "Give at least one, such as blocks.3.hook_resid_pre.")
    axes: tuple[Axis, ...] = tuple(by) if by is not None else ("site",)
    if not axes or axes[0] != "site":
        raise InputError(f"Explicit sites cannot be laid out by {axes}.", 'Use "site" or "site", "position".')
    _check_axes(axes, {"site", "position"}, "an explicit list of sites")
    where, joint = _places(paired, axes, positions)
    names = tuple(str(site) for site in parsed)
    if "position" not in axes:
        return Grid(axes, (names,), [Cell(site, joint) for site in parsed], "sites")
    cells = [Cell(site, where[label]) for site in parsed for label in where]
    return Grid(axes, (names, tuple(where)), cells, "sites")


def _places(
    paired: Paired, axes: Sequence[Axis], positions: Positions | None
) -> tuple[dict[str, list[tuple[int, ...]]], list[tuple[int, ...]] | None]:
    """Positions as an axis; or, without one, the columns patched together (None: all)."""
    if "position" in axes:
        return paired.resolve(positions), None
    if positions is None or (isinstance(positions, str) and positions == "all"):
        return {}, None
    named = list(paired.resolve(positions).values())
    return {}, [tuple(sorted({c for one in named for c in one[i]})) for i in range(len(paired))]


def _default_axes(kind: str) -> tuple[Axis, ...]:
    spec = KINDS[kind]
    if not spec.in_block:
        return ("position",)
    return ("layer", "head") if spec.heads else ("layer", "position")


def _check_axes(axes: Sequence[Axis], allowed: set[Axis], what: str) -> None:
    wrong = [axis for axis in axes if axis not in allowed]
    if wrong or not axes or len(set(axes)) < len(axes):
        raise InputError(
            f"A grid by {tuple(axes)} does not fit {what}.", f"Axes, each once: {', '.join(sorted(allowed))}."
        )


def _numbers(given: Iterable[int] | None, count: int, what: str) -> list[int]:
    chosen = list(range(count)) if given is None else [int(i) for i in given]
    wrong = [i for i in chosen if not 0 <= i < count]
    if wrong or not chosen:
        shown = f"{what} {wrong[0]}" if wrong else f"no {what}"
        raise InputError(f"The grid names {shown}, and there are {count}.", f"Use 0 to {count - 1}.")
    return chosen
