"""The specs that can be run by name: those of the folder that the settings name, then those shipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mech_interp.errors import InputError, MechError, nearest

if TYPE_CHECKING:
    from mech_interp.config.settings import Settings
    from mech_interp.config.spec import Spec

OWN, SHIPPED = "yours", "shipped"


@dataclass(frozen=True)
class Entry:
    """A spec that can be run by name; `origin` says whose it is."""

    spec: Spec
    path: Path
    origin: str


@dataclass
class Library:
    """Specs by name, in order; `problems` are the files that cannot be read."""

    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[MechError] = field(default_factory=list)


def shipped_folder() -> Path | None:
    """The specs that come with mech: beside the package in a checkout, inside it when installed."""
    import mech_interp

    package = Path(mech_interp.__file__).parent
    for folder in (package / "specs", package.parents[1] / "experiments"):
        if folder.is_dir():
            return folder
    return None


def folders(settings: Settings, directory: Path | None = None) -> list[tuple[str, Path]]:
    """Where specs are looked up, the first first; a directory that is given is the only place.

    Raises:
        InputError: the given directory does not exist.
    """
    if directory is not None:
        if not directory.is_dir():
            raise InputError(f"There is no folder {str(directory)!r}.", "Check the path.")
        return [(OWN, directory)]
    shipped = shipped_folder()
    found = [] if shipped is None else [(SHIPPED, shipped)]
    is_own = shipped is None or settings.specs.resolve() != shipped.resolve()
    return [(OWN, settings.specs), *found] if is_own and settings.specs.is_dir() else found


def read(settings: Settings, directory: Path | None = None) -> Library:
    """Every spec there is; one of yours hides a shipped one of the same name."""
    from mech_interp.config import read_specs

    library = Library()
    for origin, path in _files(folders(settings, directory)):
        try:
            specs = read_specs(path)
        except MechError as error:
            library.problems.append(error)
            continue
        for spec in specs:
            library.entries.setdefault(spec.name, Entry(spec, path, origin))
    return library


def names(settings: Settings) -> list[str]:
    """Names alone, for completion: nothing is checked."""
    from mech_interp.config.reading import read_documents, read_file

    found: dict[str, None] = {}
    for _, path in _files(folders(settings)):
        try:
            documents = read_documents(read_file(path), str(path))
        except MechError:
            continue
        found |= {
            str(one.data["name"]): None
            for one in documents
            if isinstance(one.data, dict) and "name" in one.data
        }
    return list(found)


def find(name: str, settings: Settings, directory: Path | None = None) -> Spec:
    """The spec called `name`.

    Raises:
        InputError: there is none, with the nearest names; or its file cannot be read.
    """
    library = read(settings, directory)
    if name in library.entries:
        return library.entries[name].spec
    if library.problems and not library.entries:
        raise library.problems[0]
    unreadable = f" {len(library.problems)} files cannot be read: mech validate." if library.problems else ""
    if Path(name).suffix in (".yaml", ".yml", ".json") and Path(name).is_file():
        raise InputError(f"{name!r} is a file, not the name of a spec.", f"Run it with: --spec {name}")
    close = nearest(name, library.entries) or "See what can be run with: mech experiments"
    raise InputError(f"There is no spec {name!r}.", close + unreadable)


def _files(places: list[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    from mech_interp.config import spec_files

    for origin, folder in places:
        try:
            paths = spec_files(folder)
        except InputError:  # an empty folder
            continue
        yield from ((origin, path) for path in paths)
