"""Coloured cells in the terminal: heat maps and token strips."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

from mech_interp.rendering.colours import (
    aligned,
    decimals,
    hexadecimal,
    ink,
    scale_colour,
    short,
    value_limits,
)
from mech_interp.rendering.terminal_text import cut, left, middle, right, widest
from mech_interp.views import HeatMap, TokenStrip, visible

_LABEL = 18
_CELL = 12
_TEXT_CELL = 7


def heat_map(view: HeatMap, width: int, colour: bool) -> list[Text]:
    """Rows of cells: the value on its colour where it fits, else colour alone with a legend."""
    if not view.row_labels or not view.column_labels:
        return [Text("no cells", style="dim")]
    texts = _texts(view)
    limits = value_limits((v for row in view.values for v in row), view.diverging, view.limits)
    label = min(widest([visible(name) for name in view.row_labels]), _LABEL)
    room = width - label - 1
    need = max(widest(row) for row in texts)
    if view.cell_text is not None:
        need = min(need, _TEXT_CELL)
    need += 1
    columns = len(view.column_labels)
    numbers = not colour or room // columns >= need
    if numbers:
        names = widest([visible(name) for name in view.column_labels]) + 1
        cell = max(min(room // columns, max(need, names), _CELL), need)
    else:
        cell = min(max(room // columns, 1), 4)
    blocks = -(-columns // max(room // cell, 1))
    per_block = -(-columns // blocks)  # blocks of equal width, rather than a last one of one column
    if numbers:  # fewer columns to a block leave room for longer names
        cell = max(min(room // per_block, max(need, names), _CELL), need)
    out = [Text(f"{view.row_axis} ↓   {view.column_axis} →", style="dim")]
    for start in range(0, columns, per_block):
        part = range(start, min(start + per_block, columns))
        out.append(_header(view, part, label, cell, numbers))
        for row in range(len(view.row_labels)):
            out.append(_row(view, texts, row, part, label, cell, limits, colour, numbers))
    if not numbers:
        out.extend(_column_legend(view, width))
    out.extend(_scale(view.value_label, limits, view.diverging, colour, width))
    if not numbers or view.cell_text is not None:
        out.append(_extremes(view))
    if view.marked:
        out.append(Text("* marked cell" if len(view.marked) == 1 else "* marked cells", style="dim"))
    return out


def token_strip(view: TokenStrip, width: int, colour: bool) -> list[Text]:
    """Tokens over their values, wrapped to the width."""
    if not view.tokens:
        return [Text("no tokens", style="dim")]
    limits = value_limits(view.values, view.diverging)
    digits = decimals(view.values)
    out: list[Text] = []
    above, below = Text(), Text()
    for token, value in zip(view.tokens, view.values, strict=True):
        name, number = cut(visible(token), width - 2), aligned(value, digits)
        cell = widest([name, number])
        if above.cell_len + cell + 1 > width and above.cell_len:
            out += [above, below, Text()]
            above, below = Text(), Text()
        style = _style(value, limits, view.diverging) if colour else None
        above.append(middle(name, cell), style)
        below.append(middle(number, cell), style)
        above.append(" ")
        below.append(" ")
    return [*out, above, below, *_scale(view.value_label, limits, view.diverging, colour, width)]


def _texts(view: HeatMap) -> list[list[str]]:
    if view.cell_text is not None:
        texts = [[visible(text) for text in row] for row in view.cell_text]
    else:
        digits = decimals(value for row in view.values for value in row)
        texts = [[aligned(value, digits) for value in row] for row in view.values]
    if view.marked:
        marked = set(view.marked)
        texts = [
            [text + ("*" if (row, column) in marked else " ") for column, text in enumerate(cells)]
            for row, cells in enumerate(texts)
        ]
    return texts


def _header(view: HeatMap, part: range, label: int, cell: int, numbers: bool) -> Text:
    line = Text(" " * (label + 1))
    if numbers:
        for column in part:
            line.append(right(visible(view.column_labels[column]), cell - 1) + " ")
        return line
    wide = len(str(part[-1])) + 1
    every = -(-wide // cell)  # print an index only every so many columns, so that they do not touch
    for column in part:
        if column % every == 0:
            room = min(every * cell, (part[-1] - column + 1) * cell)
            line.append(left(str(column), room))
        elif column == part[0]:
            line.append(" " * (cell * (every - column % every)))
    return line


def _row(
    view: HeatMap,
    texts: Sequence[Sequence[str]],
    row: int,
    part: range,
    label: int,
    cell: int,
    limits: tuple[float, float],
    colour: bool,
    numbers: bool,
) -> Text:
    line = Text(right(visible(view.row_labels[row]), label) + " ")
    for column in part:
        value = view.values[row][column]
        mark = "*" if (row, column) in view.marked else ""
        body = right(texts[row][column], cell - 1) + " " if numbers else middle(mark, cell)
        line.append(body, _style(value, limits, view.diverging) if colour else None)
    return line


def _style(value: float | None, limits: tuple[float, float], diverging: bool) -> Style | None:
    if value is None:
        return None
    background = scale_colour(value, limits, diverging)
    return Style(color=hexadecimal(ink(background)), bgcolor=hexadecimal(background))


def _scale(label: str, limits: tuple[float, float], diverging: bool, colour: bool, width: int) -> list[Text]:
    """The colour scale with its ends, or what the numbers are."""
    low, high = limits
    if not colour:
        return [Text(f"values: {label}", style="dim")]
    line = Text(f"{short(low)} ", style="dim")
    steps = 15
    for step in range(steps):
        value = low + (high - low) * step / (steps - 1)
        mark = "0" if diverging and step == steps // 2 else " "
        line.append(mark, _style(value, limits, diverging))
    line.append(f" {short(high)}")
    name = Text(f"{label}  ", style="dim")
    return [name + line] if name.cell_len + line.cell_len <= width else [name, line]


def _column_legend(view: HeatMap, width: int) -> list[Text]:
    """Which column is which, where cells are too narrow for their names."""
    if all(name == str(index) for index, name in enumerate(view.column_labels)):
        return []
    out, line = [], "columns:"
    for index, name in enumerate(view.column_labels):
        item = f" {index} {cut(visible(name), 24)}"
        if widest([line + item]) > width:
            out.append(Text(line, style="dim"))
            line = "        "
        line += item
    return [*out, Text(line, style="dim")]


def _extremes(view: HeatMap) -> Text:
    """The largest and smallest cell by name, since the colours alone do not give their values."""
    known = [
        (value, row, column)
        for row, cells in enumerate(view.values)
        for column, value in enumerate(cells)
        if value is not None
    ]
    if not known:
        return Text("all values are missing", style="dim")
    parts = []
    for word, (value, row, column) in (("highest", max(known)), ("lowest", min(known))):
        place = f"{visible(view.row_labels[row])}, {visible(view.column_labels[column])}"
        parts.append(f"{word} {short(value)} at {place}")
    return Text("; ".join(parts), style="dim")
