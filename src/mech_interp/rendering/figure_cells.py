"""Heat maps and token strips in figures."""

from __future__ import annotations

import textwrap
from typing import Any

from mech_interp.rendering.colours import (
    DIVERGING,
    SEQUENTIAL,
    aligned,
    clipped,
    decimals,
    hexadecimal,
    ink,
    scale_colour,
    value_limits,
)
from mech_interp.rendering.figure_text import INK, empty, furnish, label, printable
from mech_interp.views import HeatMap, TokenStrip, visible

_CHAR = 0.078  # inches per character of a tick label
_STRIP = 78  # characters per line of a token strip
_MAX_WIDTH, _MAX_HEIGHT = 16.0, 20.0


def heat_map_size(view: HeatMap) -> tuple[float, float]:
    """Inches for a heat map, so that cells stay near a comfortable size."""
    cell, height, names, side = _cell_size(view)
    under = names if _rotated(view, cell) else 0.2
    return (
        max(len(view.column_labels) * cell + side + 1.5, 3.8),
        max(len(view.row_labels) * height, 0.8) + under + 0.75,
    )


def _cell_size(view: HeatMap) -> tuple[float, float, float, float]:
    """Cell width and height, and the room of column and row labels, in inches."""
    columns, rows = max(len(view.column_labels), 1), max(len(view.row_labels), 1)
    texts = _texts(view)
    wide = max((len(text) for row in texts for text in row), default=4) * 0.075 + 0.12
    names = max((len(label(name, 16)) for name in view.column_labels), default=0) * _CHAR
    wanted = max(wide if texts else 0.0, min(names + 0.06, 0.8) if columns <= 16 else 0.0, 0.42)
    cell = min(wanted, (_MAX_WIDTH - 3) / columns)
    height = min(0.3, (_MAX_HEIGHT - 3) / rows)
    side = max((len(label(name, 18)) for name in view.row_labels), default=0) * _CHAR
    return cell, height, names, side


def _rotated(view: HeatMap, cell: float) -> bool:
    longest = max((len(visible(name)) for name in view.column_labels), default=0)
    return longest * _CHAR > cell and longest > 2


def _texts(view: HeatMap) -> list[list[str]]:
    """What is written into the cells: the given text, or the values of a small map."""
    if view.cell_text is not None:
        return [[clipped(visible(text), 11) for text in row] for row in view.cell_text]
    if len(view.row_labels) * len(view.column_labels) > 320 or len(view.column_labels) > 26:
        return []
    digits = decimals(value for row in view.values for value in row)
    return [[aligned(value, digits) for value in row] for row in view.values]


def heat_map(target: Any, axes: Any, view: HeatMap, width: float) -> None:
    """Cells with their values where they fit, a colour bar with the unit."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    if not view.row_labels or not view.column_labels:
        empty(axes, "no cells")
        return
    limits = value_limits((v for row in view.values for v in row), view.diverging, view.limits)
    stops = [hexadecimal(rgb) for rgb in (DIVERGING if view.diverging else SEQUENTIAL)]
    colours = LinearSegmentedColormap.from_list("mech", stops).with_extremes(bad="#d9dde1")
    values = np.array([[np.nan if v is None else v for v in row] for row in view.values], dtype=float)
    image = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    furnish(axes, view.column_axis, view.row_axis)
    cell, height, _, _ = _cell_size(view)
    _column_ticks(axes, view, cell)
    every = max(1, round(0.14 / height))
    rows = range(0, len(view.row_labels), every)
    axes.set_yticks(list(rows), [label(view.row_labels[row], 18) for row in rows])
    for row, cells in enumerate(_texts(view)):
        for column, text in enumerate(cells):
            value = view.values[row][column]
            colour = INK if value is None else hexadecimal(ink(scale_colour(value, limits, view.diverging)))
            axes.text(column, row, printable(text), ha="center", va="center", fontsize=7, color=colour)
    for row, column in view.marked:
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#111111", linewidth=1.6)
        )
    bar = target.colorbar(image, ax=axes, pad=0.02, fraction=min(0.18 / max(width, 1), 0.05), aspect=18)
    text = "\n".join(textwrap.wrap(printable(view.value_label), 28))
    bar.set_label(text, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7.5, colors=INK, length=2)
    bar.outline.set_visible(False)


def _column_ticks(axes: Any, view: HeatMap, cell: float) -> None:
    columns = len(view.column_labels)
    rotated = _rotated(view, cell)
    longest = max(len(label(name, 16)) for name in view.column_labels) * _CHAR
    every = max(1, -(-round(0.15 * 100) // max(round(cell * 100), 1))) if rotated else 1
    if not rotated and longest > cell:
        every = int(longest / cell) + 1
    shown = range(0, columns, every)
    names = [label(view.column_labels[column], 16) for column in shown]
    if rotated:
        angle = 45 if cell >= 0.25 else 90
        axes.set_xticks(
            list(shown),
            names,
            rotation=angle,
            ha="right" if angle == 45 else "center",
            rotation_mode="anchor",
        )
        if angle == 90:
            for text in axes.get_xticklabels():
                text.set_rotation_mode("default")
    else:
        axes.set_xticks(list(shown), names)


def _strip_lines(view: TokenStrip) -> list[list[tuple[int, int, int]]]:
    """Lines of (token index, first character, width)."""
    out: list[list[tuple[int, int, int]]] = [[]]
    at = 0
    for index, token in enumerate(view.tokens):
        width = max(len(clipped(visible(token), _STRIP)), 5) + 1
        if at + width > _STRIP and out[-1]:
            out.append([])
            at = 0
        out[-1].append((index, at, width))
        at += width
    return out


def strip_size(view: TokenStrip) -> tuple[float, float]:
    """Inches for a token strip."""
    lines = _strip_lines(view)
    widest = max((line[-1][1] + line[-1][2] for line in lines if line), default=20)
    return max(widest * 0.1 + 1.3, 4.5), 0.52 * len(lines) + 0.75


def token_strip(target: Any, axes: Any, view: TokenStrip, width: float) -> None:
    """Coloured tokens with their values underneath."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Rectangle

    if not view.tokens:
        empty(axes, "no tokens")
        return
    limits, digits = value_limits(view.values, view.diverging), decimals(view.values)
    lines = _strip_lines(view)
    axes.set_axis_off()
    axes.set_xlim(0, max(line[-1][1] + line[-1][2] for line in lines))
    axes.set_ylim(2.6 * len(lines), -0.1)
    for row, line in enumerate(lines):
        for index, at, wide in line:
            value, top = view.values[index], 2.6 * row
            back = (217, 221, 225) if value is None else scale_colour(value, limits, view.diverging)
            axes.add_patch(Rectangle((at, top), wide - 0.15, 1.25, color=hexadecimal(back), linewidth=0))
            middle = at + (wide - 0.15) / 2
            text = printable(clipped(visible(view.tokens[index]), _STRIP))
            style = {"ha": "center", "va": "center"}
            axes.text(
                middle,
                top + 0.62,
                text,
                fontsize=8,
                family="monospace",
                color=hexadecimal(ink(back)),
                **style,
            )
            axes.text(middle, top + 1.75, aligned(value, digits), fontsize=7, color="#66707a", **style)
    stops = [hexadecimal(rgb) for rgb in (DIVERGING if view.diverging else SEQUENTIAL)]
    scale = ScalarMappable(Normalize(*limits), LinearSegmentedColormap.from_list("mech", stops))
    bar = target.colorbar(scale, ax=axes, location="bottom", fraction=0.08, aspect=50, shrink=0.5, pad=0.02)
    bar.set_label(printable(view.value_label), fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7.5, colors=INK, length=2)
    bar.outline.set_visible(False)
