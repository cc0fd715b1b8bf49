"""From an exception to what a person, or a script, is told: one sentence, one hint, one exit code.

Errors go to stderr in every format, so that stdout holds results only; with `--format json` the error is
the last line of stderr, one JSON object: {"error": {"type", "message", "hint", "exit_code"}}.

Exit codes: 0 done; 1 to 7 a `MechError`, by its class (2 is also a mistake in the arguments, 7 a store
or run folder that cannot be read or written); 8 done, but what was checked does not hold (a run is void, a
file has changed, a replay gave other numbers, a spec or a token is wrong); 70 a fault in mech itself; 130
interrupted; 141 the reader of stdout went away.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass
from typing import Any

import typer

from mech_interp.cli.output import Format, Output
from mech_interp.errors import InputError, MechError, OutOfMemoryError, nearest

UNSOUND, INTERNAL, INTERRUPTED, BROKEN_PIPE = 8, 70, 130, 141

# How torch's allocators say it where they raise no class of their own (CPU, MPS).
MEMORY_PHRASES = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Failure:
    """What is told about an exception."""

    type: str
    message: str
    hint: str
    exit_code: int


def describe(error: BaseException, command: str = "mech") -> Failure:
    """The failure that `error` amounts to for the person who typed `command`."""
    known = _translate(error, command)
    if isinstance(known, MechError):
        return Failure(type(known).__name__, known.message, known.hint, known.exit_code)
    return Failure(
        type(error).__name__,
        f"mech stopped on an unexpected {type(error).__name__}: {_first_line(error)}",
        "This is a fault in mech: run the same command with --debug for the traceback, and report it.",
        INTERNAL,
    )


def report(error: BaseException, output: Output) -> int:
    """Tell about `error` on stderr in the format of `output`; returns the exit code."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, BrokenPipeError):
        # Python flushes stdout again at exit; with the reader gone that would print a second error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    if output.debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        failure = Failure("Interrupted", "Interrupted.", "", INTERRUPTED)
    else:
        failure = describe(error, output.command)
    _print(failure, output)
    return failure.exit_code


def _print(failure: Failure, output: Output) -> None:
    if output.format is Format.JSON:
        sys.stderr.write(json.dumps({"error": asdict(failure)}) + "\n")
    elif output.format is Format.QUIET:
        sys.stderr.write(f"{failure.message} {failure.hint}".strip() + "\n")
    else:
        _draw(failure, output)


def _draw(failure: Failure, output: Output) -> None:
    """The human form: the sentence, then the hint on its own line; wrapped on a terminal only."""
    from rich.text import Text

    wrap = not output.errors.is_terminal
    label = () if failure.exit_code == INTERRUPTED else (("Error: ", "bold red"),)
    output.errors.print(Text.assemble(*label, failure.message), soft_wrap=wrap)
    if failure.hint:
        # A command to be typed again is left in one piece, so that it can be pasted.
        output.errors.print(Text(failure.hint), soft_wrap=wrap or failure.exit_code == INTERRUPTED)


def _translate(error: BaseException, command: str) -> BaseException:
    """Exceptions of other libraries that a person can act on, as a `MechError`; others unchanged."""
    if isinstance(error, MechError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage(error, command)
    if _is_out_of_memory(error):
        return OutOfMemoryError(
            f"There is not enough memory for this: {_first_line(error)}",
            "Use fewer or shorter prompts, a smaller model, or --dtype bfloat16.",
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return MechError(
            f"{error.strerror}: {os.fsdecode(error.filename)!r}.",
            "Check that the path exists, is writable and is of the right kind.",
        )
    return error


def _usage(error: typer.TyperException, command: str) -> InputError:
    """A mistake in the arguments, with the command whose help explains them."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else command
    hint = f"See what it takes with: {path} --help"
    option = getattr(error, "option_name", None)
    if option is not None and hasattr(error, "possibilities"):
        return InputError(
            f"There is no option {option}.", f"{nearest(option, _options(context), n=1)} {hint}".strip()
        )
    # Types are checked by pydantic, which puts its own label before the sentence.
    message = error.format_message().strip().replace("Value error, ", "")
    return InputError(message if message.endswith((".", "?")) else f"{message}.", hint)


def _options(context: Any) -> list[str]:
    """The options that the command of `context` takes."""
    parameters = context.command.get_params(context) if context is not None else []
    return [name for parameter in parameters for name in parameter.opts if name.startswith("--")]


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, told without importing torch."""
    named = type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch")
    said = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in MEMORY_PHRASES)
    return isinstance(error, MemoryError) or named or said


def _first_line(error: BaseException) -> str:
    """The first line of the message, or the class name where there is none; always ends a sentence."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if line.endswith((".", "!", "?")) else f"{line}."
