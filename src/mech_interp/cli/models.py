"""`mech models`: the bundled models as their files describe them; nothing is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

ELSEWHERE = (
    "Any decoder-only checkpoint works the same: --model with a folder that holds config.json and "
    "safetensors, or with a hub id such as gpt2 (downloaded once, then cached)."
)

# config.json keys for the same fact, by architecture family.
LAYERS = ("num_hidden_layers", "n_layer")
WIDTH = ("hidden_size", "n_embd")
HEADS = ("num_attention_heads", "n_head")


def models(context: typer.Context) -> None:
    """The models that work offline, and how to name others."""
    from mech_interp import bundled
    from mech_interp.cli.access import settings_of

    rows = [describe(name, bundled.path(name), bundled.card(name)) for name in bundled.names()]
    aliases = settings_of().aliases
    output: Output = context.obj
    output.emit(
        {"bundled": rows, "aliases": aliases, "others": ELSEWHERE},
        lambda console: _draw(console, rows, aliases),
        quiet=[*(row["name"] for row in rows), *aliases],
    )


def describe(name: str, folder: Path, card: str) -> dict[str, Any]:
    """One bundled model: architecture, size, path and the first sentence of its card."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "name": name,
        "architecture": config["architectures"][0],
        "parameters": sum(count_parameters(path) for path in sorted(folder.glob("*.safetensors"))),
        "layers": _first(config, LAYERS),
        "width": _first(config, WIDTH),
        "heads": _first(config, HEADS),
        "summary": summary(card),
        "path": str(folder),
    }


def count_parameters(path: Path) -> int:
    """Numbers stored in a safetensors file, read from its header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def summary(card: str) -> str:
    """The first paragraph of a card after its front matter and headings, on one line."""
    body = card.split("---", 2)[2] if card.startswith("---") and card.count("---") >= 2 else card
    paragraphs = (paragraph.strip() for paragraph in body.split("\n\n"))
    text = next((paragraph for paragraph in paragraphs if paragraph and not paragraph.startswith("#")), "")
    sentence, stop, _ = " ".join(text.split()).partition(". ")
    return sentence + stop.rstrip()


def _first(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((config[key] for key in keys if key in config), None)


def _draw(console: Console, rows: list[dict[str, Any]], aliases: Mapping[str, str]) -> None:
    """Name, facts and sentence of each model on lines of their own, so that it reads at any width."""
    from rich.padding import Padding
    from rich.text import Text

    console.print("Bundled models, ready offline:\n")
    for row in rows:
        shape = f"{row['layers']} layers, {row['heads']} heads, width {row['width']}"
        facts = f"{row['architecture']}, {row['parameters'] / 1e6:.2f} M parameters, {shape}"
        console.print(Text(row["name"], style="bold"))
        console.print(Padding(Text(facts), (0, 0, 0, 2), expand=False))
        console.print(Padding(Text(row["summary"], style="dim"), (0, 0, 1, 2), expand=False))
    if aliases:
        console.print("Your aliases:\n")
        for name, model in aliases.items():
            console.print(Text.assemble((name, "bold"), f" = {model}"))
        console.print()
    console.print(Text(ELSEWHERE))
