"""Pieces of Markdown: tables, numbers, intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table."""
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(cell(one) for one in row)} |"


def cell(value: Any) -> str:
    """A value as one line that breaks no table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    # A stroke that is escaped already stays as it is, so that cells can be made of cells.
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(str(value).split()))


def number(value: Any) -> str:
    """Four significant digits; whole numbers as they are; `none` where there is no number."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else cell(str(value))
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return str(int(value))
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4g}"


def bounds(interval: Any) -> str:
    """` [low, high]`, or nothing."""
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return ""
    return f" [{number(interval[0])}, {number(interval[1])}]"
