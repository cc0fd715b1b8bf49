"""Dates as people write them: a year, a month, a day, a minute, each the span of time it names, in UTC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mech_interp.storage.plain import spelled

_WRITTEN = re.compile(
    r"([0-9]{4})(?:-([0-9]{1,2})(?:-([0-9]{1,2})(?:[T ]([0-9]{1,2}):([0-9]{2})"
    r"(?::([0-9]{2})(?:\.([0-9]{1,3}))?)?Z?)?)?)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Span:
    """From `start` up to, not including, `end`; instants as the index spells them."""

    start: str
    end: str


def span(text: str) -> Span | None:
    """The span that `text` names, or None where it is no date.

    `2026` is a year, `2026-03` a month, `2026-03-01` a day, `2026-03-01T12:30` a minute, with seconds a
    second, with a fraction a millisecond.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        return None
    month, day, hour, minute, second = (int(part) if part else None for part in match.groups()[1:6])
    fraction = int((match[7] or "0").ljust(3, "0"))
    try:
        start = datetime(
            int(match[1]),
            1 if month is None else month,
            1 if day is None else day,
            hour or 0,
            minute or 0,
            second or 0,
            tzinfo=UTC,
        )
        start += timedelta(milliseconds=fraction)
        if month is None:
            end = start.replace(year=start.year + 1)
        elif day is None:
            end = (start + timedelta(days=32)).replace(day=1)
        else:
            end = start + _length(hour is not None, second is not None, match[7] is not None)
    except (ValueError, OverflowError):
        return None
    return Span(spelled(start), spelled(end))


def _length(to_minute: bool, to_second: bool, to_fraction: bool) -> timedelta:
    if to_fraction:
        return timedelta(milliseconds=1)
    if to_second:
        return timedelta(seconds=1)
    return timedelta(minutes=1) if to_minute else timedelta(days=1)
