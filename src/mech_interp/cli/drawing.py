"""How results look in a terminal: tables, numbers with their intervals, times, sizes, states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

STATUS_STYLES = {
    "complete": "green",
    "void": "bold yellow",
    "failed": "bold red",
    "damaged": "bold red",
    "interrupted": "yellow",
    "running": "cyan",
}

WIDE = 100
"""Terminal columns from which a table shows more than the essential."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: its title.
        right: numbers, aligned at their ends.
        keep: never wrapped (ids, numbers, times).
        at: the least terminal width at which it is shown.
        style: of its cells.
    """

    head: str
    right: bool = False
    keep: bool = False
    at: int = 0
    style: str = ""


def table(console: Console, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> Table:
    """A table without frame; text that does not fit goes on in the next line, ids and numbers never do."""
    from rich import box
    from rich.table import Table

    shown = [index for index, column in enumerate(columns) if console.width >= column.at]
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for index in shown:
        column = columns[index]
        drawn.add_column(
            column.head,
            justify="right" if column.right else "left",
            no_wrap=column.keep or column.right,
            overflow="fold",
            style=column.style,
        )
    for row in rows:
        drawn.add_row(*(cell(row[index]) for index in shown))
    return drawn


Filled = tuple[Column, Sequence[object]]
"""A column and its cells."""


def filled(console: Console, columns: Sequence[Filled]) -> Table:
    """A table given by its columns."""
    rows = zip(*(cells for _, cells in columns), strict=True)
    return table(console, [column for column, _ in columns], rows)


GAP = 3
"""Terminal columns between two columns of a table."""


TEXT = 32
"""Terminal columns in which text can still be read."""


def breadth(column: Column, cells: Iterable[object]) -> int:
    """Terminal columns that a column takes, with the gap after it, if nothing in it is wrapped."""
    return max(len(column.head), *(len(cell(value).plain) for value in cells), 0) + GAP


def cell(value: object) -> Text:
    """A value as the text of a cell; nothing is a dash."""
    from rich.text import Text

    if isinstance(value, Text):
        return value
    if value is None or value == "":
        return Text("–", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, float):
        return Text(number(value))
    return Text(str(value))


def facts(pairs: Iterable[tuple[str, object]]) -> RenderableType:
    """Labels and what they say, aligned; those that say nothing are left out."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, said in pairs:
        if said not in (None, "", [], ()):
            grid.add_row(label, said if isinstance(said, Text) else Text(str(said)))
    return grid


def state(status: str) -> Text:
    """A status in its colour."""
    from rich.text import Text

    return Text(status, style=STATUS_STYLES.get(status, ""))


def number(value: object) -> str:
    """Four significant digits, as in reports; a dash where there is none."""
    from mech_interp.reports import markdown

    return "–" if value is None else markdown.number(value)


def interval(bounds: object) -> str:
    """`[low, high]`, or nothing."""
    from mech_interp.reports import markdown

    has_ends = isinstance(bounds, list | tuple) and None not in bounds
    return markdown.bounds(bounds).strip() if has_ends else ""


def estimate(metric: Mapping[str, Any]) -> str:
    """`0.81 [0.74, 0.88]`."""
    return f"{number(metric.get('value'))} {interval(metric.get('interval'))}".strip()


def ago(moment: str | None, now: datetime | None = None) -> str:
    """An ISO instant as people say it: `3 min ago`; a date where that is long ago."""
    if moment is None:
        return ""
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return moment
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    if seconds < 45:
        return "just now" if seconds > -45 else then.astimezone().strftime("%Y-%m-%d %H:%M")
    for size, unit, most in ((60, "min", 90), (3600, "h", 36), (86400, "days", 21)):
        if round(seconds / size) < most:
            count = max(round(seconds / size), 1)
            return f"{count} {'day' if (unit, count) == ('days', 1) else unit} ago"
    return then.astimezone().strftime("%Y-%m-%d")


def lasted(seconds: float | None) -> str:
    """A length of time: `0.4 s`, `12 s`, `3 min`, `2 h 5 min`."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    from mech_interp.orchestration.progress import spoken

    return spoken(seconds)


def size(n: int | None) -> str:
    """Bytes in the unit that suits: `912 B`, `4.1 kB`, `2.3 MB`."""
    if n is None:
        return ""
    value, unit = float(n), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{n} B" if unit == "B" else f"{value:.1f} {unit}"


def count(n: int, one: str, many: str = "") -> str:
    """`1 run`, `3 runs`."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def short_path(path: object) -> str:
    """A path relative to the current folder where it lies below it."""
    from pathlib import Path

    absolute = Path(str(path)).absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def scientific(value: float | None) -> str:
    """`0`, or one digit and a power of ten: sizes of differences."""
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.0e}"


def number_tables(
    console: Console, first: Sequence[Filled], metrics: Mapping[str, Sequence[object]]
) -> list[Table]:
    """Numbers by name, a line for each run; `first` are the columns that say which run a line is."""
    columns: list[Filled] = [
        (Column(name, right=True), [number(value) for value in values]) for name, values in metrics.items()
    ]
    return split(console, first, columns)


def split(console: Console, first: Sequence[Filled], rest: Sequence[Filled]) -> list[Table]:
    """As many tables as the width asks for; each begins with the columns `first`."""
    left_over = list(rest)
    room = console.width - sum(map(_room, first)) + GAP
    tables = []
    while left_over:
        part, left = [left_over.pop(0)], room
        left -= _room(part[0])
        while left_over and _room(left_over[0]) <= left:
            part.append(left_over.pop(0))
            left -= _room(part[-1])
        tables.append(filled(console, [*first, *part]))
    return tables or [filled(console, first)]


def _room(one: Filled) -> int:
    """The breadth of a column; of long text, which can be wrapped, no more than it needs to be read."""
    column, cells = one
    needed = breadth(column, cells)
    return needed if column.keep or column.right else min(needed, TEXT)


def bullets(sentences: Iterable[object]) -> Table:
    """Sentences that are wrapped under themselves."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    for sentence in sentences:
        grid.add_row("•", cell(sentence))
    return grid
