"""How far a run is, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

PATIENCE = 2.0
"""Seconds after which the time left is told; before, it would only flicker."""
EVENT_EVERY = 5.0
"""Seconds between two progress lines in a run's events."""


@dataclass(frozen=True)
class Step:
    """One moment of a run: pieces of work done and in total, seconds so far and (past two seconds) left."""

    run: str
    what: str
    done: int
    total: int
    seconds: float
    left: float | None

    def __str__(self) -> str:
        left = "" if self.left is None else f", {spoken(self.left)} left"
        what = f"{self.what}: " if self.what else ""
        return f"{what}{self.done} of {self.total}{left}"


Listener = Callable[[Step], None]
Event = Callable[..., None]


class Meter:
    """Hears how a family gets on; tells a listener, and now and then the run's events.

    It is the observer that a family's context takes. The pace is that of this process: pieces that were
    stored earlier count as done and not as fast.
    """

    def __init__(
        self,
        run: str,
        listener: Listener | None = None,
        event: Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._listener, self._event, self._clock = run, listener, event, clock
        self._began = self._told = clock()
        self._what = ""
        self._start = self._at = self._began
        self._first = self._done = self._pieces = 0
        self._seconds = 0.0
        self._computed = self._has_computed = False

    def event(self, kind: str, **data: object) -> None:
        """Something happened that belongs in the run's events."""
        if kind == "unit":
            self._computed = self._has_computed = True
        if self._event is not None:
            self._event(kind, **data)

    def progress(self, done: int, total: int, what: str) -> None:
        """`done` of `total` pieces are finished."""
        if what != self._what or done < self._done:
            self._what = what
            self._restart(done)
        now = self._clock()
        if self._computed:
            self._pieces += done - self._done
            self._seconds += now - self._at
        self._computed, self._done, self._at = False, done, now
        step = Step(self._run, what, done, total, now - self._began, self._left(done, total, now))
        if self._listener is not None:
            self._listener(step)
        if self._event is not None and now - self._told >= EVENT_EVERY:
            self._told = now
            self._event("progress", what=what, done=done, total=total)

    def _restart(self, done: int) -> None:
        """A new count begins."""
        self._start = self._at = self._clock()
        self._first = self._done = done
        self._pieces, self._seconds = 0, 0.0
        self._computed = self._has_computed = False

    def _left(self, done: int, total: int, now: float) -> float | None:
        if now - self._start < PATIENCE:
            return None
        if self._has_computed:
            pieces, seconds = self._pieces, self._seconds
        else:  # work that is not stored piece by piece
            pieces, seconds = done - self._first, now - self._start
        return seconds / pieces * (total - done) if pieces > 0 else None


def spoken(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
