"""Layered graphs in figures: nodes in rows, edges as curves whose width and colour show their value."""

from __future__ import annotations

import math
from typing import Any

from mech_interp.rendering.colours import ACCENT, CONTRAST, hexadecimal, short
from mech_interp.rendering.figure_text import GREY, INK, empty, label
from mech_interp.views import LayeredGraph, finite

_CHAR = 0.075  # inches per character of a node's name
_ROW = 0.62  # inches between levels
_MOST = 16.0
_SWEEPS = 12


def graph_size(view: LayeredGraph) -> tuple[float, float]:
    """Inches for a layered graph, so that the widest level fits."""
    levels = _levels(view)
    widest = max((_width_of(view, members) for members in levels.values()), default=2.0)
    side = _side(view)
    return min(max(widest + side + 0.5, 6.0), _MOST), max(_ROW * len(levels), 1.2) + 0.5


def layered_graph(target: Any, axes: Any, view: LayeredGraph, width: float) -> None:
    """Nodes in rows, in an order that keeps neighbours close; the strongest edges on top."""
    from matplotlib.patches import FancyArrowPatch

    del target
    if not view.nodes:
        empty(axes, "no nodes")
        return
    levels = _levels(view)
    places = _places(view, levels)
    axes.set_axis_off()
    side = _side(view)
    share = side / max(width, 1.0)  # of the width, for the names of the levels
    axes.set_xlim(-share / (1 - share) - 0.03, 1.03)
    axes.set_ylim(-0.6, len(levels) - 0.2)
    reach = max((abs(v) for v in finite(view.values)), default=0.0)
    order = sorted(range(len(view.edges)), key=lambda i: abs(view.values[i] or 0.0))
    for edge in order:
        source, end = view.edges[edge]
        start, stop = places[source], places[end]
        value = view.values[edge]
        strength = 0.4 if value is None or reach == 0 else min(abs(value) / reach, 1.0)
        strength = strength if math.isfinite(strength) else 1.0
        # An edge that skips levels bends around the nodes between.
        bend = 0.0 if stop[1] - start[1] <= 1 else 0.12 * (1 if stop[0] >= start[0] else -1)
        axes.add_patch(
            FancyArrowPatch(
                (start[0], start[1] + 0.16),
                (stop[0], stop[1] - 0.18),
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-|>",
                mutation_scale=5 + 4 * strength,
                linewidth=0.5 + 2.6 * strength,
                alpha=0.35 + 0.6 * strength,
                color=_colour(value),
                zorder=1 + strength,
                shrinkA=0,
                shrinkB=0,
            )
        )
    for node, (x, y) in places.items():
        axes.text(
            x,
            y,
            label(view.nodes[node], 14),
            ha="center",
            va="center",
            fontsize=7.5,
            color=INK,
            zorder=4,
            bbox={
                "boxstyle": "round,pad=0.25",
                "facecolor": "white",
                "edgecolor": "#a9b2bb",
                "linewidth": 0.8,
            },
        )
    for row, level in enumerate(levels):
        axes.text(
            -share / (1 - share), row, label(view.level_name(level), 16), ha="left", va="center",
            fontsize=7, color=GREY,
        )  # fmt: skip
    if view.edges and reach:
        axes.text(
            1.0, -0.55, f"{label(view.value_label, 60)}: blue > 0, orange < 0, widest {short(reach)}",
            ha="right", va="bottom", fontsize=7, color=GREY,
        )  # fmt: skip


def _colour(value: float | None) -> str:
    return GREY if value is None else hexadecimal(CONTRAST if value < 0 else ACCENT)


def _levels(view: LayeredGraph) -> dict[int, list[int]]:
    """The levels in use, from the bottom, with their nodes."""
    found: dict[int, list[int]] = {level: [] for level in sorted(set(view.levels))}
    for node, level in enumerate(view.levels):
        found[level].append(node)
    return found


def _width_of(view: LayeredGraph, members: list[int]) -> float:
    return sum(len(label(view.nodes[node], 14)) * _CHAR + 0.32 for node in members)


def _side(view: LayeredGraph) -> float:
    names = [label(view.level_name(level), 16) for level in set(view.levels)]
    return max((len(name) for name in names), default=0) * 0.065 + 0.25


def _places(view: LayeredGraph, levels: dict[int, list[int]]) -> dict[int, tuple[float, float]]:
    """[0, 1] across and the row up of every node; nodes stand near the mean of their neighbours."""
    order = {level: list(members) for level, members in levels.items()}
    neighbours: dict[int, list[int]] = {node: [] for node in range(len(view.nodes))}
    for source, end in view.edges:
        neighbours[source].append(end)
        neighbours[end].append(source)
    across = {node: x for members in order.values() for node, x in _spread(members).items()}
    for _ in range(_SWEEPS):
        for members in order.values():
            members.sort(key=lambda node: _middle(node, neighbours, across))
            across.update(_spread(members))
    found = {}
    for row, members in enumerate(order.values()):
        # Lone nodes stand left and right of the middle in turn, so that long edges do not run through them.
        inner = len(members) == 1 and 0 < row < len(order) - 1
        aside = (0.14 if row % 2 else -0.14) if inner and len(order) > 3 else 0.0
        found.update({node: (across[node] + aside, float(row)) for node in members})
    return found


def _spread(members: list[int]) -> dict[int, float]:
    return {node: (i + 0.5) / len(members) for i, node in enumerate(members)}


def _middle(node: int, neighbours: dict[int, list[int]], across: dict[int, float]) -> float:
    near = neighbours[node]
    return sum(across[other] for other in near) / len(near) if near else across[node]
