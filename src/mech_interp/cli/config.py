"""`mech config`: every setting and where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from mech_interp.cli import drawing
from mech_interp.cli.drawing import Column
from mech_interp.cli.options import Home
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.config.settings import Settings


def config(context: typer.Context, home: Home = None) -> None:
    """Every setting, its value and where it came from.

    Flags of a command go before the environment (MECH_HOME), then the file .env, the project file
    (mech.toml, or [tool.mech] in pyproject.toml), the user's file and the defaults.
    """
    from mech_interp.config.settings import resolve_settings, user_file

    output: Output = context.obj
    settings, sources = resolve_settings({"home": home})
    values = _values(settings)

    def human(console: Console) -> None:
        columns = [Column("setting", keep=True), Column("value"), Column("from")]
        rows = [
            [name, values[name], drawing.short_path(source) if source.startswith("/") else source]
            for name, source in sources.items()
            if name in values
        ]
        console.print(drawing.table(console, columns, rows))
        output.note(f"\nYour own file is {user_file()}; each setting is also a variable, such as MECH_HOME.")

    output.emit(
        {"settings": settings.model_dump(mode="json"), "sources": sources},
        human,
        quiet=[f"{name}={'' if value is None else value}" for name, value in values.items()],
    )


def _values(settings: Settings) -> dict[str, Any]:
    """Settings as people read them; each alias is a line of its own."""
    plain = settings.model_dump(mode="json")
    aliases = plain.pop("aliases")
    if settings.memory_budget is not None:
        plain["memory_budget"] = settings.memory_budget.human_readable()
    return plain | {f"aliases.{name}": model for name, model in aliases.items()}
