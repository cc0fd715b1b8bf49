"""Bars, lines and scatter plots in figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mech_interp.rendering.colours import ACCENT, CONTRAST, PALETTE, QUIET, aligned, decimals, hexadecimal
from mech_interp.rendering.figure_text import BLUE, GREY, INK, empty, furnish, label, printable
from mech_interp.views import Bars, Lines, Scatter, View, finite

_MARKERS = "o^sDv<>P"
_MOST_VALUES = 24  # bars that still have room for their number


def bars_size(view: Bars) -> tuple[float, float]:
    """Inches for horizontal bars."""
    names = max((len(label(name, 32)) for name in view.labels), default=4) * 0.078
    return 5.0 + names, min(max(0.27 * len(view.labels), 0.9), 18) + 0.8


def plot_size(view: View) -> tuple[float, float]:
    """Inches for a plot with two axes."""
    del view
    return 5.8, 3.6


def bars(target: Any, axes: Any, view: Bars, width: float) -> None:
    """Horizontal bars from 0 with whiskers, first label on top."""
    del target, width
    if not view.labels:
        empty(axes, "no bars")
        return
    furnish(axes, view.value_label, view.label_axis)
    heights = [0.0 if v is None or not math.isfinite(v) else v for v in view.values]
    rows = list(range(len(heights)))
    axes.barh(rows, heights, height=0.72, color=[_bar_colour(view, row) for row in rows], zorder=2)
    intervals = view.intervals or [None] * len(rows)
    known = [
        (row, *one) for row, one in zip(rows, intervals, strict=True) if one and all(map(math.isfinite, one))
    ]
    if known:
        at, low, high = zip(*known, strict=True)
        axes.hlines(at, low, high, color=INK, linewidth=1.2, zorder=3)
        axes.plot([*low, *high], [*at, *at], "|", color=INK, markersize=5, zorder=3)
    axes.axvline(0, color="#8a939c", linewidth=0.8, zorder=1)
    if view.reference is not None:
        name = printable(view.reference_label or "reference")
        axes.axvline(view.reference, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=4, label=name)
        axes.legend(fontsize=7.5, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), borderpad=0)
    every = -(-len(rows) // 120)
    axes.set_yticks(rows[::every], [label(view.labels[row], 32) for row in rows[::every]])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#e6e9ec", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    if len(rows) <= _MOST_VALUES:
        _bar_values(axes, view, intervals)


def _bar_colour(view: Bars, row: int) -> str:
    value = view.values[row]
    if view.highlighted and row not in view.highlighted:
        return hexadecimal(QUIET)
    return hexadecimal(CONTRAST if view.diverging and value is not None and value < 0 else ACCENT)


def _bar_values(axes: Any, view: Bars, intervals: Sequence[tuple[float, float] | None]) -> None:
    """The number beyond the outer end of each bar or whisker."""
    digits = decimals(view.values)
    for row, (value, interval) in enumerate(zip(view.values, intervals, strict=True)):
        ends = [0.0, *finite([value]), *finite(interval or ())]
        at, side, step = (max(ends), "left", 4) if value is None or value >= 0 else (min(ends), "right", -4)
        axes.annotate(
            aligned(value, digits),
            (at, row),
            xytext=(step, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=7.5,
            color=INK,
            # A reference line may run just there.
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            zorder=5,
        )
    low, high = axes.get_xlim()
    room = 0.1 * (high - low)
    negative = any(value < 0 for value in finite(view.values))
    axes.set_xlim(low - (room if negative else 0), high + room)


def lines(target: Any, axes: Any, view: Lines, width: float) -> None:
    """Curves with bands; vertical markers and horizontal references are named in the legend."""
    del target, width
    furnish(axes, view.x_axis, view.y_axis)
    x = [math.nan if value is None else value for value in view.x]
    drawn = [value for one in view.series for value in finite(one.y)]
    if not finite(view.x) or not drawn:
        empty(axes, "no points")
        return
    for index, one in enumerate(view.series):
        colour = hexadecimal(PALETTE[index % len(PALETTE)])
        y = [math.nan if value is None else value for value in one.y]
        marker = _MARKERS[index % len(_MARKERS)] if len(x) <= 40 else None
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=1.6,
            marker=marker,
            markersize=4,
            label=printable(one.name),
            zorder=3,
        )
        if one.low is not None and one.high is not None:
            low = [math.nan if value is None else value for value in one.low]
            high = [math.nan if value is None else value for value in one.high]
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)
    for at, name in view.references:
        axes.axhline(at, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=printable(name), zorder=1)
    for at, name in view.markers:
        axes.axvline(at, color=INK, linewidth=1, linestyle=(0, (1, 2)), label=printable(name), zorder=1)
    _scales(axes, view, drawn)
    axes.grid(color="#e6e9ec", linewidth=0.7, zorder=0)
    if len(view.series) + len(view.markers) + len(view.references) > 1:
        axes.legend(fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none", loc="best")


def _scales(axes: Any, view: Lines, drawn: Sequence[float]) -> None:
    if view.log_x and all(value > 0 for value in finite(view.x)):
        axes.set_xscale("log")
    if view.log_y and all(value > 0 for value in drawn):
        axes.set_yscale("log")
    known = [(at, i) for i, at in enumerate(view.x) if at is not None and math.isfinite(at)]
    if view.x_labels is not None:
        longest = max(len(label(name, 14)) for name in view.x_labels)
        every = max(1, -(-len(known) * (longest + 1) // 62)) if longest <= 6 else max(1, len(known) // 24)
        ticks = known[::every]
        names = [label(view.x_labels[i], 14) for _, i in ticks]
        crowded = len(ticks) * (longest + 1) > 62
        axes.set_xticks(
            [at for at, _ in ticks], names, rotation=45 if crowded else 0, ha="right" if crowded else "center"
        )
        axes.minorticks_off()
    elif not view.log_x and all(at == int(at) for at, _ in known):
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def scatter(target: Any, axes: Any, view: Scatter, width: float) -> None:
    """Points by group, with the line of equal values where asked for."""
    del target, width
    furnish(axes, view.x_axis, view.y_axis)
    points = [
        (x, y, index)
        for index, (x, y) in enumerate(zip(view.x, view.y, strict=True))
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
    ]
    if not points:
        empty(axes, "no points")
        return
    names = list(dict.fromkeys(view.groups)) if view.groups is not None else [""]
    for place, name in enumerate(names):
        mine = [p for p in points if view.groups is None or view.groups[p[2]] == name]
        axes.scatter(
            [p[0] for p in mine],
            [p[1] for p in mine],
            s=18,
            alpha=0.8,
            linewidths=0,
            color=hexadecimal(PALETTE[place % len(PALETTE)]),
            marker=_MARKERS[place % len(_MARKERS)],
            label=printable(name),
            zorder=3,
        )
    if view.identity:
        ends = [value for p in points for value in p[:2]]
        low, high = min(ends), max(ends)
        axes.plot(
            [low, high], [low, high], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="equal values"
        )
    if view.labels is not None and len(points) <= 30:
        for x, y, index in points:
            axes.annotate(
                label(view.labels[index], 18),
                (x, y),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=6.5,
                color=BLUE,
            )
    axes.grid(color="#e6e9ec", linewidth=0.7, zorder=0)
    if view.groups is not None or view.identity:
        axes.legend(fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none", loc="best")
