"""Text in figures: printable labels, axes furniture, tables."""

from __future__ import annotations

import functools
import textwrap
from typing import Any

from mech_interp.rendering.colours import ACCENT, clipped, hexadecimal, short
from mech_interp.views import Cell, Table, visible

INK = "#1f2933"
GREY = "#66707a"
BLUE = hexadecimal(ACCENT)
_CELL = 40


@functools.cache
def _glyphs() -> frozenset[int]:
    """Code points of both bundled fonts, the proportional and the monospaced one."""
    from matplotlib import font_manager, ft2font

    fonts = (font_manager.findfont(name) for name in ("DejaVu Sans", "DejaVu Sans Mono"))
    return frozenset.intersection(*(frozenset(ft2font.FT2Font(font).get_charmap()) for font in fonts))


def printable(text: str) -> str:
    """Text that draws as it reads: no mathematics between dollars, no boxes for missing glyphs."""
    known = _glyphs()
    shown = "".join(c if ord(c) in known or c == "\n" else f"\\u{ord(c):04x}" for c in text)
    return shown.replace("$", r"\$")


def label(name: str, width: int = 24) -> str:
    """A tick label: visible spaces, at most `width` characters."""
    return printable(clipped(visible(name), width))


def furnish(axes: Any, x_axis: str, y_axis: str) -> None:
    """Axis names and the quiet look that all charts share."""
    axes.set_xlabel(printable(x_axis), fontsize=8.5, color=INK)
    axes.set_ylabel(printable(y_axis), fontsize=8.5, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=3, width=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#a9b2bb")
        axes.spines[side].set_linewidth(0.8)


def empty(axes: Any, text: str) -> None:
    """Say that there is nothing to draw."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=9, color=GREY, transform=axes.transAxes)


def _cell_lines(cell: Cell) -> list[str]:
    if cell is None:
        return ["–"]
    if isinstance(cell, bool):
        return ["yes" if cell else "no"]
    text = short(cell) if isinstance(cell, float) else str(cell)
    return textwrap.wrap(text, _CELL) or [" "]


def _layout(view: Table) -> tuple[list[int], list[list[list[str]]], list[list[str]]]:
    """Column widths in characters, the wrapped cells and the wrapped headers."""
    rows = [[_cell_lines(cell) for cell in row] for row in view.rows]
    heads = [textwrap.wrap(name, 18) or [" "] for name in view.columns]
    widths = [
        max(len(line) for lines in ([heads[i]] + [row[i] for row in rows]) for line in lines) + 3
        for i in range(len(heads))
    ]
    return widths, rows, heads


def table_size(view: Table) -> tuple[float, float]:
    """Inches for a table."""
    widths, rows, heads = _layout(view)
    lines = sum(max((len(cell) for cell in row), default=1) for row in rows)
    head = max((len(one) for one in heads), default=1)
    return max(0.085 * sum(widths) + 0.4, 3.2), 0.2 * (lines + head) + 0.05 * len(rows) + 0.45


def table(target: Any, axes: Any, view: Table, width: float) -> None:
    """Rows of text under ruled headers; numbers are right-aligned."""
    del target, width
    if not view.columns:
        empty(axes, "no columns")
        return
    widths, rows, heads = _layout(view)
    axes.set_axis_off()
    total, y = sum(widths), 0.0
    numeric = [_numeric(view, i) for i in range(len(widths))]

    def line(cells: list[list[str]], bold: bool) -> None:
        nonlocal y
        left = 0.0
        for i, lines in enumerate(cells):
            at = left + widths[i] - 2 if numeric[i] else left
            side = "right" if numeric[i] else "left"
            for row, text in enumerate(lines):
                weight = "bold" if bold else "normal"
                axes.text(
                    at, y + row, printable(text), ha=side, va="top", fontsize=8, fontweight=weight, color=INK
                )
            left += widths[i]
        y += max(len(lines) for lines in cells)

    line(heads, True)
    axes.plot([0, total], [y + 0.1, y + 0.1], color=GREY, linewidth=0.8)
    y += 0.3
    for row in rows:
        line(row, False)
        y += 0.25
    if not rows:
        axes.text(0, y, "no rows", va="top", fontsize=8, color=GREY)
        y += 1
    axes.set_xlim(0, total)
    axes.set_ylim(y, 0)


def _numeric(view: Table, column: int) -> bool:
    cells = [row[column] for row in view.rows]
    return bool(cells) and all(
        cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool)) for cell in cells
    )
