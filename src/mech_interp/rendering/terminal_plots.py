"""Lines and points on a grid of characters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.text import Text

from mech_interp.rendering.colours import TERMINAL_PALETTE, hexadecimal, short
from mech_interp.rendering.terminal_text import cut, left
from mech_interp.views import Lines, Scatter, finite, visible

_HEIGHT = 12
_GLYPHS = "●▲■◆○△□◇"


@dataclass
class _Canvas:
    """Characters addressed by data coordinates."""

    width: int
    x: tuple[float, float]
    y: tuple[float, float]
    colour: bool
    cells: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)

    def column(self, x: float) -> int:
        return round((x - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - 1))

    def row(self, y: float) -> int:
        return round((y - self.y[0]) / (self.y[1] - self.y[0]) * (_HEIGHT - 1))

    def put(self, column: int, row: int, glyph: str, style: str = "", *, over: bool = True) -> None:
        if 0 <= column < self.width and 0 <= row < _HEIGHT and (over or (column, row) not in self.cells):
            self.cells[column, row] = (glyph, style if self.colour or style == "dim" else "")

    def lines(self, y_scale: Sequence[str]) -> list[Text]:
        margin = max(len(label) for label in y_scale)
        out = []
        for row in reversed(range(_HEIGHT)):
            edge = "┤" if y_scale[row] else "│"
            line = Text(y_scale[row].rjust(margin) + edge)
            for column in range(self.width):
                line.append(*self.cells.get((column, row), (" ", "")))
            out.append(line)
        return out


def lines(view: Lines, width: int, colour: bool) -> list[Text]:
    """Curves with a glyph per data point; the band of a single curve is shaded."""
    x = [_logged(value, view.log_x) for value in view.x]
    values = [v for one in view.series for v in (*one.y, *(one.low or ()), *(one.high or ()))]
    logged = [_logged(value, view.log_y) for value in (*values, *(at for at, _ in view.references))]
    if not finite(x) or not finite(logged[: len(values)]):
        return [Text("no points", style="dim")]
    canvas = _canvas(finite(x), finite(logged), width, colour)
    for at, _ in view.references:
        level = _logged(at, view.log_y)
        if level is not None:
            for column in range(canvas.width):
                canvas.put(column, canvas.row(level), "┄", "dim")
    for at, _ in view.markers:
        place = _logged(at, view.log_x)
        if place is not None:
            for row in range(_HEIGHT):
                canvas.put(canvas.column(place), row, "┆", "dim")
    for index, one in enumerate(view.series):
        style, glyph = (
            hexadecimal(TERMINAL_PALETTE[index % len(TERMINAL_PALETTE)]),
            _GLYPHS[index % len(_GLYPHS)],
        )
        y = [_logged(value, view.log_y) for value in one.y]
        if len(view.series) == 1 and one.low is not None and one.high is not None:
            low = [_logged(value, view.log_y) for value in one.low]
            _band(canvas, x, low, [_logged(value, view.log_y) for value in one.high])
        _curve(canvas, x, y, glyph, style)
    out = [Text(view.y_axis + (" (log scale)" if view.log_y else ""), style="dim")]
    out += canvas.lines(_ticks(canvas.y, view.log_y))
    names = [visible(label) for label in view.x_labels] if view.x_labels is not None else None
    out += _x_axis(canvas, x, names, view.x_axis, view.log_x, _ticks(canvas.y, view.log_y))
    out.append(_legend([one.name for one in view.series], colour))
    at_x = dict(zip(view.x, names or (), strict=False))
    out += [Text(f"┆ {name}: {at_x.get(at) or _tick_text(at)}", style="dim") for at, name in view.markers]
    out += [Text(f"┄ {name}: {short(at)}", style="dim") for at, name in view.references]
    return out


def scatter(view: Scatter, width: int, colour: bool) -> list[Text]:
    """Points, one glyph and colour per group."""
    points = [
        (x, y, index)
        for index, (x, y) in enumerate(zip(view.x, view.y, strict=True))
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
    ]
    if not points:
        return [Text("no points", style="dim")]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    canvas = _canvas(xs + ys if view.identity else xs, ys + xs if view.identity else ys, width, colour)
    if view.identity:
        for column in range(canvas.width):
            x = canvas.x[0] + (canvas.x[1] - canvas.x[0]) * column / (canvas.width - 1)
            canvas.put(column, canvas.row(x), "·", "dim")
    names = list(dict.fromkeys(view.groups)) if view.groups is not None else []
    for x, y, index in points:
        group = names.index(view.groups[index]) if view.groups is not None else 0
        style = hexadecimal(TERMINAL_PALETTE[group % len(TERMINAL_PALETTE)])
        canvas.put(canvas.column(x), canvas.row(y), _GLYPHS[group % len(_GLYPHS)], style)
    scale = _ticks(canvas.y, False)
    out = [Text(view.y_axis, style="dim"), *canvas.lines(scale)]
    even = [canvas.x[0] + (canvas.x[1] - canvas.x[0]) * step / 4 for step in range(5)]
    out += _x_axis(canvas, even, None, view.x_axis, False, scale)
    if names:
        out.append(_legend(names, colour))
    if view.identity:
        out.append(Text("· line of equal values", style="dim"))
    return out


def _logged(value: float | None, log: bool) -> float | None:
    if value is None or not math.isfinite(value) or (log and value <= 0):
        return None
    return math.log10(value) if log else value


def _canvas(x: Sequence[float], y: Sequence[float], width: int, colour: bool) -> _Canvas:
    return _Canvas(max(min(width - 10, 100), 10), _padded(min(x), max(x)), _padded(min(y), max(y)), colour)


def _padded(low: float, high: float) -> tuple[float, float]:
    """Ends of an axis, never equal."""
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    return low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2


def _ticks(ends: tuple[float, float], log: bool) -> list[str]:
    """Labels of the canvas rows, bottom first."""
    out = [""] * _HEIGHT
    for row in (0, _HEIGHT // 2, _HEIGHT - 1):
        value = ends[0] + (ends[1] - ends[0]) * row / (_HEIGHT - 1)
        out[row] = short(10**value if log else value)
    return out


def _curve(
    canvas: _Canvas, x: Sequence[float | None], y: Sequence[float | None], glyph: str, style: str
) -> None:
    points = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        first, last = sorted((canvas.column(x0), canvas.column(x1)))
        for column in range(first + 1, last):
            share = (column - canvas.column(x0)) / (canvas.column(x1) - canvas.column(x0))
            canvas.put(column, canvas.row(y0 + (y1 - y0) * share), "·", style)
    for a, b in points:
        canvas.put(canvas.column(a), canvas.row(b), glyph, style)


def _band(
    canvas: _Canvas, x: Sequence[float | None], low: Sequence[float | None], high: Sequence[float | None]
) -> None:
    rows = [
        (canvas.column(a), canvas.row(b), canvas.row(c))
        for a, b, c in zip(x, low, high, strict=True)
        if a is not None and b is not None and c is not None
    ]
    for (start, low0, high0), (stop, low1, high1) in itertools.pairwise(rows):
        for column in range(min(start, stop), max(start, stop) + 1):
            share = (column - start) / (stop - start) if stop != start else 0.0
            bottom, top = low0 + (low1 - low0) * share, high0 + (high1 - high0) * share
            for row in range(round(bottom), round(top) + 1):
                canvas.put(column, row, "░", "dim", over=False)


def _x_axis(
    canvas: _Canvas,
    x: Sequence[float | None],
    names: Sequence[str] | None,
    axis: str,
    log: bool,
    y_scale: Sequence[str],
) -> list[Text]:
    """The axis line, its tick labels (as many as fit without touching) and its name."""
    margin = max(len(label) for label in y_scale)
    ruler, labels, free = ["─"] * canvas.width, "", 0
    entries = [(at, names[i] if names is not None else None) for i, at in enumerate(x) if at is not None]
    for at, name in sorted(dict(entries).items()):
        column = canvas.column(at)
        text = cut(name if name is not None else _tick_text(10**at if log else at), 12)
        start = max(column - cell_len(text) // 2, 0)
        if start < free:
            continue
        ruler[column] = "┬"
        labels = left(labels, start) + text
        free = start + cell_len(text) + 1
    title = axis + (" (log scale)" if log else "")
    return [
        Text(" " * margin + "└" + "".join(ruler)),
        Text(" " * (margin + 1) + labels),
        Text(" " * (margin + 1) + title.center(canvas.width).rstrip(), style="dim"),
    ]


def _tick_text(value: float) -> str:
    """Whole numbers without decimals, the others short."""
    whole = round(value)
    return str(whole) if abs(value - whole) <= 1e-9 * max(abs(value), 1.0) and whole < 1e5 else short(value)


def _legend(names: Sequence[str], colour: bool) -> Text:
    line = Text()
    for index, name in enumerate(names):
        style = hexadecimal(TERMINAL_PALETTE[index % len(TERMINAL_PALETTE)]) if colour else ""
        line.append(f"{_GLYPHS[index % len(_GLYPHS)]} ", style)
        line.append(f"{name}   ")
    return line
