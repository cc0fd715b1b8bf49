"""Where a command prints: results on stdout, everything else on stderr, in the format asked for.

`human` draws with rich; `json` prints one document on stdout and nothing else; `quiet` prints only the
bare answer (names, paths), one per line. Progress and notes appear in `human` alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class Format(StrEnum):
    """How results are printed."""

    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


@dataclass
class Output:
    """The two streams of one invocation; `command` is what was typed, for hints.

    `is_asked`: the format was given on the command line, so that the settings no longer matter.
    """

    format: Format = Format.HUMAN
    debug: bool = False
    command: str = "mech"
    is_asked: bool = field(default=False, compare=False)

    @classmethod
    def requested(cls, arguments: Sequence[str]) -> Output:
        """Read `--format` and `--debug` wherever they stand, before anything else is parsed.

        The same options are declared on every command, so a bad value is refused there; reading them
        first lets a mistake in any other argument be reported in the format that was asked for.
        """
        output = cls()
        ours = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
        for index, argument in enumerate(ours):
            name, equals, value = argument.partition("=")
            if name == "--format":
                value = value if equals else "".join(ours[index + 1 : index + 2])
                output.is_asked = value in set(Format)
                output.format = Format(value) if output.is_asked else output.format
            output.debug = output.debug or argument == "--debug"
        return output

    def follow_settings(self) -> None:
        """Take the format from the settings, where the command line gives none.

        Raises:
            InputError: a setting, wherever it stands, is wrong.
        """
        if not self.is_asked:
            from mech_interp.config.settings import resolve_settings

            self.format = Format(resolve_settings()[0].format)

    @cached_property
    def console(self) -> Console:
        """What people read on stdout; silent unless the format is human."""
        from rich.console import Console

        return Console(quiet=self.format is not Format.HUMAN)

    @cached_property
    def errors(self) -> Console:
        """Problems and notes, on stderr."""
        from rich.console import Console

        return Console(stderr=True)

    @property
    def is_human(self) -> bool:
        """Whether people read this."""
        return self.format is Format.HUMAN

    def note(self, text: str) -> None:
        """Something worth knowing that is no result: on stderr, for people alone."""
        if self.is_human:
            from rich.text import Text

            self.errors.print(Text(text, style="dim"), soft_wrap=not self.errors.is_terminal)

    def emit(self, data: Any, human: Callable[[Console], None], quiet: Iterable[object] = ()) -> None:
        """Print a result: `data` as JSON, or drawn by `human`, or the lines of `quiet`."""
        if self.format is Format.JSON:
            self.document(data)
        elif self.format is Format.QUIET:
            sys.stdout.writelines(f"{line}\n" for line in quiet)
        else:
            human(self.console)

    def document(self, data: Any) -> None:
        """Print `data` on stdout as indented JSON; numbers that JSON lacks (NaN) are a programming error."""
        unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        text = json.dumps(data, indent=2, ensure_ascii=not unicode, allow_nan=False)
        sys.stdout.write(text + "\n")
