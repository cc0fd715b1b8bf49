"""The index file: connections, transactions, and what the database library says, in sentences.

Imports the database library.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, StaticPool

from mech_interp.storage import locks, migrations, naming
from mech_interp.storage.errors import DamagedIndexError, ReadOnlyError, StorageError, files

INDEX = "index.sqlite"
BUSY_SECONDS = 60.0
_WRITES = "mech_writes"


class Database:
    """An index, in a file that several processes may use at once, or in memory."""

    def __init__(self, root: Path, *, in_memory: bool = False) -> None:
        self.root = root
        self.path = None if in_memory else root / INDEX
        self._engine = self._make()
        self._writes = self._engine.execution_options(**{_WRITES: True})
        self._prepare()

    def close(self) -> None:
        """Give back what the operating system lent."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A consistent view of the index.

        Raises:
            StorageError: the index cannot be read.
        """
        with told(self.root), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that takes the write lock at once, so that what it reads first stays true.

        Raises:
            StorageError: the index cannot be written; nothing has changed.
        """
        with told(self.root), self._writes.begin() as connection:
            yield connection

    def _make(self) -> Engine:
        def connect() -> sqlite3.Connection:
            # Autocommit, so that the library's own BEGIN (below) is the only one.
            return sqlite3.connect(
                self.path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )

        pool = NullPool if self.path else StaticPool
        engine = create_engine("sqlite://", creator=connect, poolclass=pool)
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", _begin)
        return engine

    def _prepare(self) -> None:
        """Bring a new or older index to this version; one process does it, the others wait."""
        with self.reading() as connection:
            if migrations.check(migrations.version(connection), str(self.root)):
                return
        if self.path is None:
            self._migrate()
            return
        with locks.locked(self.root / naming.ROOT_LOCK):
            self._use_wal()
            self._migrate()

    def _migrate(self) -> None:
        with self.writing() as connection:
            migrations.migrate(connection, str(self.root))

    def _use_wal(self) -> None:
        """Let readers and one writer work at once. Nothing is lost where that cannot be."""
        with told(self.root):
            connection = sqlite3.connect(str(self.path), timeout=BUSY_SECONDS, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            finally:
                connection.close()


def set_aside(root: Path) -> None:
    """Rename a damaged index, so that a new one takes its place.

    Raises:
        StorageError: it cannot be renamed.
    """
    with locks.locked(root / naming.ROOT_LOCK):
        for ending in ("", "-wal", "-shm"):
            path = root / f"{INDEX}{ending}"
            with files(path):
                if path.exists():
                    path.replace(root / f"{INDEX}.damaged{ending}")


def _set_up(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.create_function("mech_fold", 1, _fold, deterministic=True)


def _fold(text: str | None) -> str | None:
    """Text without its case, in every script (the database's own lower() knows ASCII only)."""
    return text.casefold() if isinstance(text, str) else None


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def told(root: Path) -> Iterator[None]:
    """Turn errors of the database inside the block into sentences."""
    try:
        yield
    except DBAPIError as error:
        raise sentence(str(error.orig), root) from error
    except sqlite3.Error as error:
        raise sentence(str(error), root) from error


def sentence(message: str, root: Path) -> StorageError:
    """What the database said, for people."""
    said, where = message.lower(), f"The index in {str(root)!r}"
    if "full" in said or "disk i/o" in said:
        return StorageError(
            f"{where} could not be written: the disk is full or failing.",
            "Free some space; finished runs are safe in their folders and are indexed at the next command.",
        )
    if "readonly" in said or "unable to open" in said:
        return ReadOnlyError(
            f"{where} could not be opened for writing.",
            "Give another place with --home or MECH_HOME, or change the folder's permissions.",
        )
    if "locked" in said or "busy" in said:
        return StorageError(
            f"{where} has been in use by another process for {BUSY_SECONDS:.0f} seconds.",
            "Wait for it to end, and run the same command again.",
        )
    if any(words in said for words in ("not a database", "malformed", "no such", "has no column")):
        return DamagedIndexError(
            f"{where} is damaged.", "The runs are safe in their folders: rebuild it with mech store rebuild."
        )
    return StorageError(f"{where} could not be used: {message}.", "Rebuild it with: mech store rebuild.")
