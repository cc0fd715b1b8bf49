"""Spec files: which there are, and the specs inside one."""

from __future__ import annotations

from pathlib import Path

from mech_interp.config.matrix import expand
from mech_interp.config.reading import read_documents, read_file
from mech_interp.config.spec import Spec
from mech_interp.errors import InputError

SUFFIXES = (".yaml", ".yml", ".json")


def read_specs(path: str | Path) -> list[Spec]:
    """The specs of a YAML file, which may hold several documents; every matrix is checked too.

    Raises:
        InputError: with file and line, whatever the file's bytes are.
    """
    path = Path(path)
    return parse_specs(read_file(path), str(path))


def parse_specs(text: str, source: str = "") -> list[Spec]:
    """The specs of a YAML text."""
    specs = [Spec.from_dict(one.data, origin=one.origin) for one in read_documents(text, source)]
    if not specs:
        raise InputError(f"{source or 'The text'} holds no spec.", "Start with: name: my-run")
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise InputError(
                f"{spec.origin.at(('name',))}the name {spec.name} is used twice.", "Give each spec its own."
            )
        seen.add(spec.name)
        expand(spec)
    return specs


def spec_files(path: str | Path) -> list[Path]:
    """The spec files in a folder and the folders below it, sorted; a file stands for itself.

    Raises:
        InputError: when there is nothing there.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"There is no file or folder {path}.", "Check the path.")
    found = sorted(one for suffix in SUFFIXES for one in path.rglob(f"*{suffix}") if one.is_file())
    if not found:
        raise InputError(f"The folder {path} holds no spec.", f"Specs end in {', '.join(SUFFIXES)}.")
    return found
