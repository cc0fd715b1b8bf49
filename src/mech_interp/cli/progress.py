"""How far a long command is, on stderr and only on a terminal; gone when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mech_interp.cli.output import Output
    from mech_interp.orchestration.progress import Step

PATIENCE = 1.0
"""Seconds before anything is drawn: most commands are over sooner."""
BAR = 24
"""Columns of the bar."""


class Display:
    """The line that is drawn: what is being done, how much of it is done, how long it will still take."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.spinner import Spinner

        self.title = title
        self.step: Step | None = None
        self._clock, self._began = clock, clock()
        self._spinner = Spinner("dots")

    def __call__(self, step: Step) -> None:
        """Take note of how far the work is."""
        self.step = step

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self._clock() - self._began < PATIENCE:
            return Group()
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [self._spinner, Text(self.title, overflow="ellipsis", no_wrap=True)]
        if self.step is None:
            cells.append(Text("getting ready", style="dim"))
        else:
            cells.append(ProgressBar(max(self.step.total, 1), self.step.done, width=BAR))
            cells.append(Text(str(self.step), style="dim", no_wrap=True))
        line.add_row(*cells)
        return line


@contextmanager
def shown(output: Output, title: str) -> Iterator[Display | None]:
    """A display while the block works; None where nobody looks."""
    if not (output.is_human and output.errors.is_terminal):
        yield None
        return
    from rich.live import Live

    display = Display(title)
    with Live(
        get_renderable=lambda: display,
        console=output.errors,
        transient=True,
        refresh_per_second=8,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield display
