"""Views as matplotlib figures and PNG files.

Object interface only: no pyplot, no global state. Every panel has a title, units on its axes and its
note (n, what the intervals are) underneath.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp import views
from mech_interp.errors import InputError
from mech_interp.rendering import figure_cells, figure_graph, figure_plots, figure_text
from mech_interp.rendering.figure_text import GREY, INK, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")
_DRAW: dict[type[views.View], tuple[Callable[[Any], tuple[float, float]], Callable[..., None]]] = {
    views.HeatMap: (figure_cells.heat_map_size, figure_cells.heat_map),
    views.TokenStrip: (figure_cells.strip_size, figure_cells.token_strip),
    views.Bars: (figure_plots.bars_size, figure_plots.bars),
    views.Lines: (figure_plots.plot_size, figure_plots.lines),
    views.Scatter: (figure_plots.plot_size, figure_plots.scatter),
    views.LayeredGraph: (figure_graph.graph_size, figure_graph.layered_graph),
    views.Table: (figure_text.table_size, figure_text.table),
}


def figure(view: views.View) -> Figure:
    """The view as a matplotlib `Figure`, sized to its content."""
    from matplotlib.figure import Figure

    if isinstance(view, views.Grid):
        return _grid(view)
    width, height = _size(view)
    whole = Figure(figsize=(width, height), layout="constrained")
    whole.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    _panel(whole, view, width)
    return whole


def save(view: views.View, path: str | Path, dpi: int = 150) -> Path:
    """Write the view as PNG (or SVG, PDF, by the suffix) and return the path."""
    target = Path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"Figures are not written as {target.suffix or 'files without suffix'!r}.", "Use .png."
        )
    if not target.parent.is_dir():
        raise InputError(f"The folder {str(target.parent)!r} does not exist.", "Create it first.")
    metadata = {"Software": None} if target.suffix.lower() == ".png" else None
    figure(view).savefig(target, dpi=dpi, facecolor="white", metadata=metadata)
    return target


def _size(view: views.View) -> tuple[float, float]:
    """Width and height in inches, with room for title and note."""
    for kind, (size, _) in _DRAW.items():
        if isinstance(view, kind):
            width, height = size(view)
            title, note = _wrapped(view.title, width, 10.5), _wrapped(view.note, width, 7.5)
            return width, height + 0.2 * len(title) + 0.15 * len(note)
    raise InputError(f"{type(view).__name__} has no figure form.", "Give a HeatMap, Bars, Lines or the like.")


def _wrapped(text: str, width: float, points: float) -> list[str]:
    """Lines of a text in a width of inches; a character is about 0.55 points wide per point."""
    per_line = max(int(width * 72 / (points * 0.55)), 12)
    return textwrap.wrap(printable(text), per_line)


def _panel(target: Any, view: views.View, width: float) -> None:
    """Draw one view into a figure or subfigure with its title and note."""
    title, note = _wrapped(view.title, width, 10.5), _wrapped(view.note, width, 7.5)
    if title:
        target.suptitle(
            "\n".join(title), fontsize=10.5, fontweight="bold", color=INK, x=0.1 / width, ha="left"
        )
    if note:
        target.supxlabel("\n".join(note), fontsize=7.5, color=GREY, x=0.1 / width, ha="left")
    axes = target.subplots()
    for kind, (_, draw) in _DRAW.items():
        if isinstance(view, kind):
            draw(target, axes, view, width)


def _grid(view: views.Grid) -> Figure:
    """Panels side by side; rows as high as their highest panel, columns as wide as their widest."""
    from matplotlib.figure import Figure

    if not view.views:
        raise InputError(f"Grid {view.title!r} has no panels to draw.", "Give it at least one view.")
    columns = min(view.columns, len(view.views))
    sizes = [_size(one) for one in view.views]
    rows = -(-len(sizes) // columns)
    widths = [max(size[0] for size in sizes[column::columns]) for column in range(columns)]
    heights = [max(size[1] for size in sizes[row * columns : (row + 1) * columns]) for row in range(rows)]
    title, note = _wrapped(view.title, sum(widths), 13), _wrapped(view.note, sum(widths), 8)
    frame = (sum(widths), sum(heights) + 0.32 * len(title) + 0.22 * len(note))
    whole = Figure(figsize=frame, layout="constrained")
    whole.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    if title:
        whole.suptitle(
            "\n".join(title), fontsize=13, fontweight="bold", color=INK, x=0.12 / frame[0], ha="left"
        )
    if note:
        whole.supxlabel("\n".join(note), fontsize=8, color=GREY, x=0.12 / frame[0], ha="left")
    panels = whole.subfigures(rows, columns, squeeze=False, width_ratios=widths, height_ratios=heights)
    for index, one in enumerate(view.views):
        _panel(panels[index // columns][index % columns], one, widths[index % columns])
    return whole
