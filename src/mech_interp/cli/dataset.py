"""`mech dataset`: look at files of prompt pairs before an experiment does."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import drawing
from mech_interp.cli.access import settings_of
from mech_interp.cli.commands import MechCommand, noun
from mech_interp.cli.drawing import Column
from mech_interp.cli.failures import UNSOUND
from mech_interp.cli.options import complete_models
from mech_interp.cli.output import Output
from mech_interp.errors import InputError, MechError

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.datasets.pairs import PromptPair, TaskSet
    from mech_interp.experiments.data import Need

app = noun("Look at files of prompt pairs.")

File = Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, one prompt or pair on each.")]

# Of many problems a person reads the first few; JSON holds them all.
SHOWN = 10


@app.command(cls=MechCommand)
def inspect(context: typer.Context, path: File) -> None:
    """Rows, fields, hashes and the lines that cannot be read.

    Exits with 8 if a line is no JSON object, or if the file holds no prompt pairs that a spec can use.
    """
    output: Output = context.obj
    found = survey(path)
    output.emit(found, lambda console: _draw(console, output, found), quiet=[found["sha256"]])
    if found["invalid"] or found["problem"]:
        raise typer.Exit(UNSOUND)


@app.command("validate-tokens", cls=MechCommand)
def validate_tokens(
    context: typer.Context,
    path: File,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="A bundled model, a folder, an alias or a hub id.",
            autocompletion=complete_models,
        ),
    ],
) -> None:
    """Is every answer one token for this model, and every pair equally long?

    Only the tokenizer is loaded. Exits with 8 if a row cannot be used.
    """
    from mech_interp.orchestration.models import find_model

    output: Output = context.obj
    data = pairs_of(path)
    settings = settings_of()
    tokenizer = find_model(model, aliases=settings.aliases, offline=settings.offline).tokenizer
    if tokenizer is None:
        raise InputError(f"{model} came without a tokenizer.", "Choose a model that reads text.")
    rows = list(judged(data, tokenizer))
    bad = [row for row in rows if row["problem"]]
    document = {
        "path": str(path),
        "model": model,
        "rows": len(rows),
        "usable": len(rows) - len(bad),
        "problems": bad,
    }
    output.emit(
        document,
        lambda console: _draw_tokens(console, output, document),
        quiet=[f"{row['row']}: {row['problem']}" for row in bad],
    )
    if bad:
        raise typer.Exit(UNSOUND)


def survey(path: Path) -> dict[str, Any]:
    """What a JSON-lines file holds, as plain values.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    raw = _bytes(path)
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is no text: {error.reason}.", "Give a file of JSON lines.") from None
    records: list[Mapping[str, Any]] = []
    invalid: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record, why = _record(line)
            if record is None:
                invalid.append({"line": number, "problem": why})
            else:
                records.append(record)
    usable: dict[str, Any] = {"pairs": None, "groups": None, "content_sha256": None, "problem": None}
    try:
        data = pairs_of(path)
        usable |= {"pairs": len(data), "groups": len(set(data.groups)), "content_sha256": data.content_hash()}
    except MechError as error:
        usable["problem"] = str(error)
    rows = [record for record in records if "task_set" not in record]
    about = {"path": str(path), "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    return {**about, "rows": len(rows), "fields": list(_fields(rows)), "invalid": invalid, **usable}


def pairs_of(path: Path) -> TaskSet:
    """The prompt pairs of a file, as a spec with `dataset_path` reads them.

    Raises:
        InputError: naming the line that cannot be used.
    """
    from mech_interp.experiments.data import _from_file

    return _from_file(path, None)


def judged(data: TaskSet, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Each row with the reason why this tokenizer cannot represent it, or None."""
    from mech_interp.experiments.data import usable

    for number, pair in enumerate(data):
        yield {"row": number, "prompt": pair.clean, "problem": usable(tokenizer, pair, _needs(pair))}


def _needs(pair: PromptPair) -> Need:
    """As much as the row holds: without a foil or a corrupt prompt, only the rest can be asked for."""
    if pair.corrupt:
        return "corrupt"
    return "wrong" if pair.wrong else "answer" if pair.answer else "prompt"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be read: {(error.strerror or str(error)).lower()}.", "Check the path."
        ) from None


def _record(line: str) -> tuple[dict[str, Any] | None, str]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error}"
    return (found, "") if isinstance(found, dict) else (None, "no object")


def _fields(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every field: in how many rows, of which types, with an example."""
    words = {"str": "text", "int": "number", "float": "number", "bool": "true or false", "NoneType": "null"}
    words |= {"list": "list", "dict": "mapping"}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        types = Counter(words[type(value).__name__] for value in values)
        yield {"name": name, "rows": len(values), "types": list(types), "example": values[0]}


def _draw(console: Console, output: Output, found: Mapping[str, Any]) -> None:
    from rich.text import Text

    pairs = None
    if found["pairs"] is not None:
        pairs = f"{drawing.count(found['pairs'], 'pair')} in {drawing.count(found['groups'], 'group')}"
    facts = [
        ("file", drawing.short_path(found["path"])),
        ("size", f"{drawing.size(found['bytes'])}, {drawing.count(found['rows'], 'row')}"),
        ("prompts", pairs),
        ("sha256", found["sha256"]),
        ("content", found["content_sha256"]),
    ]
    console.print(drawing.facts(facts))
    if found["fields"]:
        columns = [
            Column("field", keep=True),
            Column("rows", right=True),
            Column("type", keep=True),
            Column("example"),
        ]
        rows = [
            [one["name"], one["rows"], " or ".join(one["types"]), _example(one["example"])]
            for one in found["fields"]
        ]
        console.print()
        console.print(drawing.table(console, columns, rows))
    for one in found["invalid"][:SHOWN]:
        console.print(Text.assemble(("✗ ", "bold red"), f"line {one['line']}: {one['problem']}"))
    if len(found["invalid"]) > SHOWN:
        output.note(f"and {len(found['invalid']) - SHOWN} more lines")
    if found["problem"] and not found["invalid"]:
        console.print(Text.assemble(("✗ ", "bold red"), found["problem"]))


def _example(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _draw_tokens(console: Console, output: Output, told: Mapping[str, Any]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    for row in told["problems"][:SHOWN]:
        console.print(Text.assemble(("✗ ", "bold red"), f"row {row['row']}: {_example(row['prompt'])}"))
        console.print(Padding(Text(row["problem"]), (0, 0, 0, 2), expand=False))
    if len(told["problems"]) > SHOWN:
        output.note(f"and {len(told['problems']) - SHOWN} more; all with --format json")
    mark = ("✗ ", "bold red") if told["problems"] else ("✓ ", "green")
    rows = drawing.count(told["rows"], "row")
    console.print(Text.assemble(mark, f"{told['usable']} of {rows} can be used with {told['model']}."))
