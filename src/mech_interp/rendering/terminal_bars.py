"""Bars in the terminal, with their intervals drawn and printed."""

from __future__ import annotations

import math

from rich.text import Text

from mech_interp.rendering.colours import (
    QUIET,
    TERMINAL_ACCENT,
    TERMINAL_CONTRAST,
    aligned,
    decimals,
    hexadecimal,
    short,
)
from mech_interp.rendering.terminal_text import left, widest
from mech_interp.views import Bars, finite, visible

_LABEL = 28
_PARTS = " ▏▎▍▌▋▊▉█"


def bars(view: Bars, width: int, colour: bool) -> list[Text]:
    """`label ███├─┼─┤ 0.97 [0.91, 0.99]`, one line each."""
    if not view.labels:
        return [Text("no bars", style="dim")]
    intervals = view.intervals or [None] * len(view.labels)
    digits = decimals([*view.values, *(bound for one in intervals for bound in one or ())])
    numbers = [_number(value, one, digits) for value, one in zip(view.values, intervals, strict=True)]
    tail = max(len(number) for number in numbers)
    label = min(widest([visible(name) for name in view.labels]), _LABEL, max(width - tail - 14, 8))
    room = width - label - tail - 2
    low, high = _range(view)
    out = [Text(f"{view.label_axis}: {view.value_label}", style="dim")]
    for index, name in enumerate(view.labels):
        line = Text(left(visible(name), label) + " ")
        if room >= 6:
            style = hexadecimal(_colour(view, index)) if colour else ""
            line.append(_bar(view.values[index], intervals[index], low, high, room, view.reference), style)
            line.append(" ")
        line.append(numbers[index].rjust(tail) if view.intervals is None else numbers[index])
        out.append(line)
    if view.reference is not None:
        name = f"{view.reference_label} " if view.reference_label else ""
        out.append(Text(f"┆ {name}{short(view.reference)}", style="dim"))
    return out


def _number(value: float | None, interval: tuple[float, float] | None, digits: int | None) -> str:
    bounds = f" [{aligned(interval[0], digits)}, {aligned(interval[1], digits)}]" if interval else ""
    return aligned(value, digits) + bounds


def _colour(view: Bars, index: int) -> tuple[int, int, int]:
    value = view.values[index]
    if view.highlighted and index not in view.highlighted:
        return QUIET
    return TERMINAL_CONTRAST if view.diverging and value is not None and value < 0 else TERMINAL_ACCENT


def _range(view: Bars) -> tuple[float, float]:
    """Ends of the value axis; always holds 0, since a bar's length must mean its value."""
    known = [0.0, *finite(view.values), *finite([view.reference])]
    for interval in view.intervals or ():
        known += finite(interval or ())
    low, high = min(known), max(known)
    return (low, high) if high - low > 1e-290 else (0.0, 1.0)


def _bar(
    value: float | None,
    interval: tuple[float, float] | None,
    low: float,
    high: float,
    room: int,
    reference: float | None,
) -> str:
    """The cells of one bar, `room` wide."""
    cells = [" "] * room
    scale = (room - (low < 0)) / (high - low)
    zero = round(-low * scale)  # cells left of the axis; the axis itself takes one where there are any
    first = zero + (low < 0)

    def cell(at: float) -> int:
        place = first + at * scale if at >= 0 else zero + at * scale
        return min(max(int(place), 0), room - 1)

    if low < 0:
        cells[zero] = "│"
    if value is not None and math.isfinite(value):
        begin, end = (first, first + value * scale) if value > 0 else (zero + value * scale, zero)
        for i in range(room):
            covered = min(end, i + 1) - max(begin, i)
            if covered > 0:
                cells[i] = _PARTS[max(round(covered * 8), 1)] if value > 0 else "█▐"[covered < 0.75]
    if reference is not None and math.isfinite(reference):
        cells[cell(reference)] = "┆"
    if interval is not None and value is not None and all(map(math.isfinite, (value, *interval))):
        start, stop = cell(interval[0]), cell(interval[1])
        if stop - start >= 2:
            cells[start : stop + 1] = ["├", *["─"] * (stop - start - 1), "┤"]
            middle = cell(value)
            if start < middle < stop:
                cells[middle] = "┼"
    return "".join(cells)
