"""Requests to end, all in the form of Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from mech_interp.orchestration.errors import InterruptedRunError


class Stop:
    """Whether an end was asked for.

    `KeyboardInterrupt` can be lost: Python drops what is raised while it collects garbage. Whoever works in
    pieces asks between two of them.
    """

    def __init__(self) -> None:
        self.asked = False

    def ask(self, number: int, frame: Any) -> None:
        """The handler of a signal."""
        self.asked = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if an end was asked for."""
        if self.asked:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Inside the block a request to terminate (SIGTERM, SIGHUP) raises `KeyboardInterrupt`, as Ctrl-C does.

    What fails because of such a request, in a library that turns the interrupt into an error of its own,
    raises it too. Blocks may be nested. Only the main thread hears signals; elsewhere nothing changes.
    """
    with _heard() as stop:
        try:
            yield stop
        except InterruptedRunError:
            raise
        except Exception as error:
            if stop.asked:
                raise KeyboardInterrupt from error
            raise


@contextlib.contextmanager
def _heard() -> Iterator[Stop]:
    """Our handlers in the place of Python's own; those of an outer block stay."""
    outer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    if isinstance(outer, Stop) or threading.current_thread() is not threading.main_thread():
        yield outer if isinstance(outer, Stop) else Stop()
        return
    stop, before = Stop(), {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and _is_plain(signal.getsignal(number)):
            before[number] = signal.signal(number, stop.ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_plain(handler: Any) -> bool:
    """Whether nobody else has a say: a request that is ignored (nohup) or handled otherwise stays so."""
    return handler in (signal.SIG_DFL, signal.default_int_handler)
