"""What commands work on: the settings, the store, the runs that arguments name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mech_interp.cli.output import Output
    from mech_interp.config.settings import Settings
    from mech_interp.storage.index import Store
    from mech_interp.storage.records import RunRecord


def settings_of(**flags: Any) -> Settings:
    """The settings, with what the command line gave (None means not given)."""
    from mech_interp.config.settings import resolve_settings

    return resolve_settings(flags)[0]


@contextmanager
def opened(home: Path | None, output: Output | None = None) -> Iterator[Store | None]:
    """The store to read, or None where its folder does not exist yet; nothing is created.

    Runs that cannot be read are named on stderr.

    Raises:
        StorageError: it is no folder, or its index is damaged or newer.
    """
    from mech_interp.storage import StorageError, Store

    root = settings_of(home=home).home
    if root.exists() and not root.is_dir():
        raise StorageError(f"{str(root)!r} is no folder, so it holds no runs.", "Give a folder with --home.")
    if not root.is_dir():
        yield None
        return
    store = Store(root, create=False)
    try:
        if output is not None:
            for name, why in store.unreadable.items():
                output.note(f"{name} is left out: {why}")
        yield store
    finally:
        store.close()


@contextmanager
def existing(home: Path | None, output: Output | None = None) -> Iterator[Store]:
    """The store to look something up in.

    Raises:
        StorageError: there is none yet.
    """
    from mech_interp.storage import StorageError

    with opened(home, output) as store:
        if store is None:
            root = settings_of(home=home).home
            raise StorageError(
                f"There are no runs in {str(root)!r} yet: the folder does not exist.",
                "Start one with mech run NAME, or give the place with --home.",
            )
        yield store


def found(store: Store, texts: Iterable[str]) -> list[RunRecord]:
    """The runs that the texts name, each once, in the order given.

    Raises:
        StorageError: a text names none, or several.
    """
    records = {record.id: record for record in map(store.find, texts)}
    return list(records.values())
