"""Small checkpoints that ship with the package: where they are, their cards and their recipes."""

from __future__ import annotations

from pathlib import Path

from mech_interp.errors import InputError, nearest

NAMES: tuple[str, ...] = ("tinyworld", "tinyworld-llama", "tinyworld-chat")

__all__ = ["NAMES", "card", "names", "path"]


def names() -> list[str]:
    """The names of the bundled checkpoints."""
    return list(NAMES)


def path(name: str) -> Path:
    """The folder of a bundled checkpoint, in Hugging Face format.

    Raises `InputError`, naming the nearest checkpoints, when there is none of that name.
    """
    from importlib.resources import files

    if name not in NAMES:
        hint = nearest(name, NAMES) or f"Bundled checkpoints: {', '.join(NAMES)}."
        raise InputError(f"There is no bundled checkpoint called {name!r}.", hint)
    folder = Path(str(files("mech_interp.bundled"))) / "checkpoints" / name
    if not (folder / "model.safetensors").exists():
        raise InputError(
            f"The bundled checkpoint {name!r} is missing from this installation.",
            f"Reinstall the package, or make it with: python -m mech_interp.bundled.train {name}",
        )
    return folder


def card(name: str) -> str:
    """The card of a bundled checkpoint: data, recipe, intended use, expected and measured behaviours."""
    return (path(name) / "README.md").read_text(encoding="utf-8")
