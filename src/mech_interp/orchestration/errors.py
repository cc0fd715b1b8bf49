"""How a run can end otherwise than with a result."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from mech_interp.errors import MechError
from mech_interp.storage.errors import StorageError


class InterruptedRunError(MechError):
    """Ctrl-C, or a request to end: what is finished is kept."""

    exit_code = 130


class BusyError(StorageError):
    """Another process is executing the same run."""


def interrupted(run: str, units: int | None) -> InterruptedRunError:
    """The error for a run that was stopped from outside; `units` is None where it had just finished."""
    if units is None:
        return InterruptedRunError(f"Stopped just after {run} was finished.")
    kept = {0: "nothing was finished yet", 1: "1 piece of its work is kept"}.get(
        units, f"{units} pieces of its work are kept"
    )
    return InterruptedRunError(f"{run} was interrupted; {kept}.", f"Continue it with: {same_command()}")


def same_command() -> str:
    """What was typed, as a person would type it again; for a script, words that say so."""
    program = Path(sys.argv[0])
    if program.name == "mech" or (program.name == "__main__.py" and program.parent.name == "mech_interp"):
        return shlex.join(["mech", *sys.argv[1:]])
    return "the same spec again"
