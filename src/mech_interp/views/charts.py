"""The kinds of chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mech_interp.errors import InputError
from mech_interp.views.base import (
    Cell,
    Interval,
    Number,
    View,
    as_cell,
    as_interval,
    as_number,
    as_numbers,
    check_grid,
    check_labels,
    check_length,
    plain_cell,
    register,
    view_from_dict,
)


@register
@dataclass(frozen=True, kw_only=True)
class HeatMap(View):
    """A grid of values [rows][columns], such as layer x position.

    `diverging` centres the colour scale at 0. `cell_text` (same shape) is written into the cells
    instead of the value, such as the top token of a lens. `marked` cells (row, column) are outlined.
    `limits` fixes the colour scale.
    """

    kind: ClassVar[str] = "heat_map"
    values: Sequence[Sequence[Number]]
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    row_axis: str
    column_axis: str
    value_label: str
    diverging: bool = True
    limits: Interval | None = None
    cell_text: Sequence[Sequence[str]] | None = None
    marked: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        check_labels(self, "row_labels", "column_labels")
        self._set("values", tuple(as_numbers(row, self.title) for row in self.values))
        shape = (len(self.row_labels), len(self.column_labels))
        check_grid(self.title, "values", self.values, shape)
        if self.cell_text is not None:
            self._set("cell_text", tuple(tuple(str(text) for text in row) for row in self.cell_text))
            check_grid(self.title, "cell texts", self.cell_text or (), shape)
        marked = tuple((int(row), int(column)) for row, column in self.marked)
        if any(not (0 <= row < shape[0] and 0 <= column < shape[1]) for row, column in marked):
            raise InputError(
                f"View {self.title!r} marks a cell outside its {shape} grid.", "Mark cells inside."
            )
        self._set("marked", marked)
        self._set("limits", as_interval(self.limits, self.title))


@register
@dataclass(frozen=True, kw_only=True)
class Bars(View):
    """One value per label, with an interval where there is one.

    `highlighted` are indices of bars drawn in the accent colour (all, when empty). `reference` is a
    value drawn as a line (chance, a control) and named by `reference_label`.
    """

    kind: ClassVar[str] = "bars"
    labels: Sequence[str]
    values: Sequence[Number]
    value_label: str
    label_axis: str
    intervals: Sequence[Interval | None] | None = None
    diverging: bool = False
    highlighted: Sequence[int] = ()
    reference: float | None = None
    reference_label: str = ""

    def __post_init__(self) -> None:
        check_labels(self, "labels")
        self._set("values", as_numbers(self.values, self.title))
        check_length(self.title, "values", self.values, len(self.labels))
        if self.intervals is not None:
            self._set("intervals", tuple(as_interval(one, self.title) for one in self.intervals))
            check_length(self.title, "intervals", self.intervals or (), len(self.labels))
        self._set("highlighted", tuple(int(i) for i in self.highlighted))
        if any(not 0 <= i < len(self.labels) for i in self.highlighted):
            raise InputError(f"View {self.title!r} highlights a bar that it lacks.", "Use indices of labels.")
        self._set("reference", as_number(self.reference))


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: y at each x of its `Lines`, with a band `low`..`high` where known."""

    name: str
    y: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise InputError(f"Series {self.name!r} has one side of a band.", "Give both low and high.")
        for name in ("y", "low", "high"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, as_numbers(values, self.name))
                check_length(self.name, name, values, len(self.y))


@register
@dataclass(frozen=True, kw_only=True)
class Lines(View):
    """Curves over one x axis.

    `x_labels` replaces the numbers on the axis. `markers` are named vertical lines, `references`
    named horizontal ones.
    """

    kind: ClassVar[str] = "lines"
    x: Sequence[Number]
    series: Sequence[Series]
    x_axis: str
    y_axis: str
    x_labels: Sequence[str] | None = None
    markers: Sequence[tuple[float, str]] = ()
    references: Sequence[tuple[float, str]] = ()
    log_x: bool = False
    log_y: bool = False

    def __post_init__(self) -> None:
        self._set("x", as_numbers(self.x, self.title))
        self._set("series", tuple(self.series))
        for one in self.series:
            check_length(self.title, f"points of series {one.name!r}", one.y, len(self.x))
        if self.x_labels is not None:
            check_labels(self, "x_labels")
            check_length(self.title, "x labels", self.x_labels or (), len(self.x))
        for name in ("markers", "references"):
            self._set(name, tuple((float(at), str(label)) for at, label in getattr(self, name)))

    @classmethod
    def _build(cls, data: dict[str, Any]) -> View:
        return cls(**{**data, "series": [Series(**one) for one in data["series"]]})


@register
@dataclass(frozen=True, kw_only=True)
class Scatter(View):
    """Points (x, y); `groups` names a class per point, `labels` a text per point.

    `identity` draws the line y = x, for measured against predicted.
    """

    kind: ClassVar[str] = "scatter"
    x: Sequence[Number]
    y: Sequence[Number]
    x_axis: str
    y_axis: str
    groups: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    identity: bool = False

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            self._set(name, as_numbers(getattr(self, name), self.title))
        for name in ("y", "groups", "labels"):
            if getattr(self, name) is not None:
                check_length(self.title, name, getattr(self, name), len(self.x))
        check_labels(self, *(name for name in ("groups", "labels") if getattr(self, name) is not None))


@register
@dataclass(frozen=True, kw_only=True)
class TokenStrip(View):
    """A prompt with one value per token; spaces inside tokens are drawn visibly."""

    kind: ClassVar[str] = "token_strip"
    tokens: Sequence[str]
    values: Sequence[Number]
    value_label: str
    diverging: bool = True

    def __post_init__(self) -> None:
        check_labels(self, "tokens")
        self._set("values", as_numbers(self.values, self.title))
        check_length(self.title, "values", self.values, len(self.tokens))


@register
@dataclass(frozen=True, kw_only=True)
class Table(View):
    """Rows of cells under headed columns (headers carry the units)."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        check_labels(self, "columns")
        self._set("rows", tuple(tuple(as_cell(cell) for cell in row) for row in self.rows))
        for row in self.rows:
            check_length(self.title, "cells in a row", row, len(self.columns))

    def to_dict(self) -> dict[str, Any]:
        """As for every view."""
        return {**super().to_dict(), "rows": [[plain_cell(cell) for cell in row] for row in self.rows]}


@register
@dataclass(frozen=True, kw_only=True)
class Grid(View):
    """Several views as panels of one figure, `columns` to a row."""

    kind: ClassVar[str] = "grid"
    views: Sequence[View]
    columns: int = 1

    def __post_init__(self) -> None:
        self._set("views", tuple(self.views))
        if any(isinstance(view, Grid) for view in self.views):
            raise InputError(f"Grid {self.title!r} holds another grid.", "Put all panels into one grid.")
        if self.columns < 1:
            raise InputError(f"Grid {self.title!r} has {self.columns} columns.", "Use at least one.")

    @classmethod
    def _build(cls, data: dict[str, Any]) -> View:
        return cls(**{**data, "views": [view_from_dict(one) for one in data["views"]]})
