"""Command lines and settings without what should not be shared: secrets and the home directory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

HIDDEN = "***"

# Names whose value is a secret. `correct_token` and its like are words of this field, not secrets.
_NAME = re.compile(
    r"(?:^|[._-])(?:api[_-]?key|password|passwd|secret|secret[_-]?key|credentials?|private[_-]?key"
    r"|authorization|(?:mech|hf|hub|access|auth|api|bearer|github|read|write|refresh|session)[_-]?token)$"
    r"|^token$",
    re.IGNORECASE,
)
# Values that are recognisable as secrets wherever they stand.
_VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|xox[abp]-[\w-]{10,}|AKIA[A-Z0-9]{12,}|AIza[\w-]{30,}|Bearer\s+\S{8,})"
)
_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")


def is_secret(name: str) -> bool:
    """Whether an option or a key of this name holds a secret."""
    return _NAME.search(name.lstrip("-")) is not None


def text(value: str, home: Path | None = None) -> str:
    """`value` without recognisable secrets and with the home directory as `~`."""
    value = _USERINFO.sub(f"{HIDDEN}@", _VALUE.sub(HIDDEN, value))
    place = str(home or Path.home()).rstrip("/")
    if len(place) < 2:
        return value
    return re.sub(rf"(?<![\w.-]){re.escape(place)}(?=/|$|[\s:;,'\"])", "~", value)


def command_line(arguments: Sequence[str], home: Path | None = None) -> list[str]:
    """`arguments` as they may be shown: `--hf-token X`, `--set api_key=X` and the like lose their X."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next:
            shown.append(HIDDEN)
        elif equals and is_secret(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(text(argument, home))
        hide_next = not hide_next and not equals and argument.startswith("-") and is_secret(argument)
    return shown
