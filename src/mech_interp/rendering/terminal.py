"""Views as terminal text, with rich.

Charts fit the width they are given and stay readable without colour: then every value is printed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from mech_interp import views
from mech_interp.errors import InputError
from mech_interp.rendering.colours import short
from mech_interp.rendering.terminal_bars import bars
from mech_interp.rendering.terminal_cells import heat_map, token_strip
from mech_interp.rendering.terminal_graph import layered_graph
from mech_interp.rendering.terminal_plots import lines, scatter

if TYPE_CHECKING:
    Chart = Callable[..., list[Text]]

_WIDEST = 160  # wider charts are harder to read, not easier


@dataclass(frozen=True)
class Drawn:
    """A rich renderable of one view; it learns the width and the colours when it is printed."""

    view: views.View

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colour = console.color_system is not None and not console.no_color
        width = max(min(options.max_width, _WIDEST), 20)
        if self.view.title:
            yield Text(self.view.title, style="bold")
        yield from _body(self.view, width, colour)
        if self.view.note:
            yield Text(self.view.note, style="dim")


def render(view: views.View) -> RenderableType:
    """A rich renderable: `console.print(render(view))`."""
    if not isinstance(view, views.View):
        raise InputError(f"{type(view).__name__} is not a view.", "Give a HeatMap, Bars, Lines or the like.")
    return Drawn(view)


def show(view: views.View, console: Console | None = None) -> None:
    """Print a view to a console (standard output by default)."""
    (console or Console()).print(render(view))


def to_text(view: views.View, width: int = 80) -> str:
    """The view as plain text without colour codes."""
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(render(view))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _body(view: views.View, width: int, colour: bool) -> list[RenderableType]:
    if isinstance(view, views.Grid):
        return [_grid(view, width)]
    if isinstance(view, views.Table):
        return [_table(view)]
    for kind, chart in _CHARTS.items():
        if isinstance(view, kind):
            return list(chart(view, width, colour))
    raise InputError(f"Views of kind {view.kind!r} have no terminal form.", "Save them as a figure.")


_CHARTS: dict[type[views.View], Chart] = {
    views.HeatMap: heat_map,
    views.TokenStrip: token_strip,
    views.Bars: bars,
    views.Lines: lines,
    views.Scatter: scatter,
    views.LayeredGraph: layered_graph,
}


def _table(view: views.Table) -> RenderableType:
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for index, name in enumerate(view.columns):
        numeric = all(_is_number(row[index]) for row in view.rows) and bool(view.rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in view.rows:
        table.add_row(*(Text(cell_text(cell)) for cell in row))
    if not view.rows:
        return Group(table, Text("no rows", style="dim"))
    return table


def cell_text(cell: views.Cell) -> str:
    """A table cell as text."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return short(cell) if isinstance(cell, float) else str(cell)


def _is_number(cell: views.Cell) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def _grid(view: views.Grid, width: int) -> RenderableType:
    panels = [Panel(Drawn(one), border_style="dim", padding=(0, 1)) for one in view.views]
    if not panels:
        return Text("no panels", style="dim")
    columns = min(view.columns, max(width // 60, 1), len(panels))
    if columns == 1:
        return Group(*panels)
    grid = RichTable.grid(expand=True, padding=(0, 1))
    for _ in range(columns):
        grid.add_column(ratio=1)
    for start in range(0, len(panels), columns):
        row: list[RenderableType] = list(panels[start : start + columns])
        grid.add_row(*row, *[Text("")] * (columns - len(row)))
    return grid
