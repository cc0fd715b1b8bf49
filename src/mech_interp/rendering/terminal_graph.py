"""Layered graphs in the terminal: what every node reads, level by level from the top."""

from __future__ import annotations

from rich.text import Text

from mech_interp.rendering.colours import (
    TERMINAL_ACCENT,
    TERMINAL_CONTRAST,
    aligned,
    decimals,
    hexadecimal,
)
from mech_interp.rendering.terminal_text import cut, left, widest
from mech_interp.views import LayeredGraph, visible

_LABEL = 16


def layered_graph(view: LayeredGraph, width: int, colour: bool) -> list[Text]:
    """A line per node, `node ← source:inputs value, …`, strongest first, under the name of its level."""
    if not view.nodes:
        return [Text("no nodes", style="dim")]
    digits = decimals(view.values)
    label = min(widest([visible(name) for name in view.nodes]), _LABEL)
    out = [Text(cut(f"node ← what it reads, strongest first: {view.value_label}", width), style="dim")]
    for level in sorted(set(view.levels), reverse=True):
        out.append(Text(cut(visible(view.level_name(level)), width), style="dim"))
        for node in (i for i, at in enumerate(view.levels) if at == level):
            out += _node(view, node, label, digits, width, colour)
    return out


def _node(
    view: LayeredGraph, node: int, label: int, digits: int | None, width: int, colour: bool
) -> list[Text]:
    into = [i for i, (_, target) in enumerate(view.edges) if target == node]
    into.sort(key=lambda i: -abs(view.values[i] or 0.0))
    name = left(visible(view.nodes[node]), label)
    line = Text(f"  {name} ← " if into else f"  {name}".rstrip())
    indent = label + 5
    lines = [line]
    for number, edge in enumerate(into):
        text = _edge(view, edge, digits)
        text = cut(text, max(width - indent - 1, 4)) + ("," if number < len(into) - 1 else "")
        if lines[-1].cell_len + Text(text).cell_len > width and lines[-1].cell_len > indent:
            lines[-1].rstrip()
            lines.append(Text(" " * indent))
        value = view.values[edge]
        shade = TERMINAL_CONTRAST if value is not None and value < 0 else TERMINAL_ACCENT
        lines[-1].append(text, hexadecimal(shade) if colour and value is not None else "")
        lines[-1].append(" " if lines[-1].cell_len < width else "")
    return lines


def _edge(view: LayeredGraph, edge: int, digits: int | None) -> str:
    inputs = visible(view.edge_labels[edge]) if view.edge_labels and view.edge_labels[edge] else ""
    name = visible(view.nodes[view.edges[edge][0]]) + (f":{inputs}" if inputs else "")
    value = view.values[edge]
    return name if value is None else f"{name} {aligned(value, digits)}"
