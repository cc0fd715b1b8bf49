"""The version of the index, and the steps from each version to the next.

The steps are plain SQL that is never edited once released: a new version appends a step, and a test
holds their outcome equal to `tables.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mech_interp.storage.errors import StorageError
from mech_interp.storage.plain import now

if TYPE_CHECKING:
    from sqlalchemy import Connection

_OWNER = "run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE"

STEPS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE runs (id TEXT NOT NULL PRIMARY KEY, number INTEGER NOT NULL, suffix TEXT NOT NULL, "
        "folder TEXT NOT NULL, key TEXT, status TEXT NOT NULL, name TEXT, family TEXT, description TEXT, "
        "backend TEXT, model TEXT, device TEXT, dtype TEXT, seed INTEGER, matrix TEXT, parent TEXT, "
        "created TEXT, finished TEXT, seconds FLOAT, error TEXT, archived BOOLEAN NOT NULL, "
        "result_sha256 TEXT)",
        "CREATE INDEX runs_by_key ON runs (key)",
        "CREATE INDEX runs_by_number ON runs (number)",
        f"CREATE TABLE metrics ({_OWNER}, name TEXT NOT NULL, value FLOAT, low FLOAT, high FLOAT, "
        "n INTEGER, unit TEXT, better TEXT)",
        "CREATE INDEX ix_metrics_run ON metrics (run)",
        f"CREATE TABLE tags ({_OWNER}, tag TEXT NOT NULL)",
        "CREATE INDEX ix_tags_run ON tags (run)",
        f"CREATE TABLE files ({_OWNER}, path TEXT NOT NULL, sha256 TEXT, bytes INTEGER)",
        "CREATE INDEX ix_files_run ON files (run)",
        f"CREATE TABLE sites ({_OWNER}, site TEXT NOT NULL, layer INTEGER)",
        "CREATE INDEX ix_sites_run ON sites (run)",
        f"CREATE TABLE datasets ({_OWNER}, name TEXT NOT NULL, sha256 TEXT)",
        "CREATE INDEX ix_datasets_run ON datasets (run)",
        f"CREATE TABLE parameters ({_OWNER}, name TEXT NOT NULL, text TEXT, number FLOAT)",
        "CREATE INDEX ix_parameters_run ON parameters (run)",
    ),
)

_TABLE = "CREATE TABLE IF NOT EXISTS migrations (version INTEGER NOT NULL PRIMARY KEY, applied TEXT NOT NULL)"


def version(connection: Connection) -> int:
    """The version of an index; 0 for a new one."""
    found = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name = 'migrations'").first()
    if found is None:
        return 0
    return connection.exec_driver_sql("SELECT max(version) FROM migrations").scalar() or 0


def check(found: int, where: str, steps: Sequence[Sequence[str]] | None = None) -> bool:
    """Whether an index of version `found` needs no step.

    Raises:
        StorageError: it is newer than this version of mech.
    """
    newest = len(STEPS if steps is None else steps)
    if found > newest:
        raise StorageError(
            f"The index in {where!r} was written by a newer mech (index version {found}, this one reads "
            f"up to {newest}).",
            "Upgrade mech, or give another folder with --home or MECH_HOME.",
        )
    return found == newest


def migrate(connection: Connection, where: str, steps: Sequence[Sequence[str]] | None = None) -> int:
    """Take every missing step inside the caller's writing transaction; returns how many were taken."""
    steps = STEPS if steps is None else steps
    found = version(connection)
    if check(found, where, steps):
        return 0
    connection.exec_driver_sql(_TABLE)
    for number, statements in enumerate(steps[found:], found + 1):
        for statement in statements:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("INSERT INTO migrations VALUES (?, ?)", (number, now()))
    return len(steps) - found
