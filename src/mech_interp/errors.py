"""Errors that people read: one sentence saying what was wrong, one saying what to do next.

Everything a user can cause raises a `MechError`; the command line prints it without a traceback
(unless `--debug`) and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MechError(Exception):
    """A problem a user can act on.

    `message` says what was wrong and where; `hint` says what to do next.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InputError(MechError):
    """A prompt, position, site, head, answer token or option that cannot be used."""

    exit_code = 2


class ModelError(MechError):
    """A model that cannot be found, read, trusted or verified."""

    exit_code = 3


class IdentityError(ModelError):
    """A loaded model fails a numerical identity, so its sites would carry wrong values."""


class CapabilityError(MechError):
    """The backend or architecture cannot do what was asked; the message says which can."""

    exit_code = 4


class MissingExtraError(MechError):
    """An optional dependency is not installed."""

    exit_code = 5

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs the package {package!r}, which is not installed.",
            f"Install it with: pip install 'mech-interpretability[{extra}]'",
        )


class OutOfMemoryError(MechError):
    """The work does not fit even one row at a time."""

    exit_code = 6


class NotFiredError(InputError):
    """A capture or intervention was asked for and never happened."""


def nearest(word: str, candidates: Iterable[str], n: int = 3) -> str:
    """A ' Did you mean a, b?' fragment for the candidates closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(candidates), n=n, cutoff=0.5)
    return f"Did you mean {', '.join(close)}?" if close else ""
