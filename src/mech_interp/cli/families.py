"""`mech families`: the kinds of experiment, and the parameters of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import drawing
from mech_interp.cli.drawing import Column
from mech_interp.cli.options import complete_families
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.experiments.registry import Listed


def families(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[FAMILY]", help="Show its parameters.", autocompletion=complete_families),
    ] = None,
) -> None:
    """The kinds of experiment, and the parameters of each."""
    from mech_interp.experiments import registry

    output: Output = context.obj
    if name is not None:
        found = registry.get(name)
        told = {**_about(found), "parameters": list(parameters(found.Params))}
        output.emit(
            told, lambda console: _draw_one(console, told), quiet=[p["name"] for p in told["parameters"]]
        )
        return
    listing = registry.listing()
    rows = [_listed(one) for one in listing]
    output.emit(
        {"families": rows}, lambda console: _draw(console, output, rows), quiet=[r["name"] for r in rows]
    )


def _about(family: Any) -> dict[str, Any]:
    return {
        "name": family.name,
        "version": family.version,
        "summary": family.summary,
        "needs": sorted(map(str, family.needs)),
    }


def _listed(one: Listed) -> dict[str, Any]:
    about = {"name": one.name} if one.family is None else _about(one.family)
    return {**about, "package": one.package, "problem": one.problem}


def parameters(model: Any) -> Iterator[dict[str, Any]]:
    """Name, type, default and description of every parameter."""
    schema = model.model_json_schema(by_alias=True)
    required = set(schema.get("required", ()))
    for name, about in schema.get("properties", {}).items():
        yield {
            "name": name,
            "type": _type(about),
            "required": name in required,
            "default": about.get("default"),
            "description": about.get("description", ""),
        }


def _type(about: Mapping[str, Any]) -> str:
    """A JSON Schema's type in words."""
    if "enum" in about:
        return " | ".join(map(str, about["enum"]))
    if "const" in about:
        return str(about["const"])
    parts = about.get("anyOf") or about.get("oneOf")
    if parts:
        return " | ".join(dict.fromkeys(_type(part) for part in parts if part.get("type") != "null"))
    if "$ref" in about:
        return "mapping"
    if about.get("type") == "array":
        return f"list of {_type(about.get('items') or {})}"
    words = {"integer": "whole number", "string": "text", "boolean": "true | false", "object": "mapping"}
    return words.get(str(about.get("type")), str(about.get("type", "anything")))


def _draw(console: Console, output: Output, rows: Sequence[dict[str, Any]]) -> None:
    columns = [
        Column("family", keep=True),
        Column("version", right=True),
        Column("what it measures"),
        Column("package", at=drawing.WIDE),
    ]
    lines = [
        [r["name"], r.get("version"), r.get("summary") or f"broken: {r['problem']}", r["package"]]
        for r in rows
    ]
    console.print(drawing.table(console, columns, lines))
    output.note("\nThe parameters of one: mech families NAME")


def _draw_one(console: Console, told: Mapping[str, Any]) -> None:
    """Name and facts of each parameter, its meaning below, so that it reads at any width."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text.assemble((told["name"], "bold"), f", version {told['version']}"))
    console.print(Text(told["summary"]))
    if told["needs"]:
        console.print(Text(f"Needs a backend that can do: {', '.join(told['needs'])}", style="dim"))
    console.print()
    for p in told["parameters"]:
        default = _shown(p["default"])
        rest = "required" if p["required"] else f"default {default}" if default else ""
        facts = "  ".join(part for part in (p["type"], rest) if part)
        console.print(Text.assemble((p["name"], "bold"), "  ", (facts, "dim")))
        console.print(Padding(Text(p["description"]), (0, 0, 0, 4), expand=False))


def _shown(value: object) -> str:
    if value is None or value == [] or value == {}:
        return ""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
