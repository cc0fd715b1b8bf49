"""`Store`: every run under one root, found by number, key or query, and begun without doing work twice.

The folders are the truth. The index beside them is brought up to date whenever a store is opened, and can
be rebuilt from the folders at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mech_interp.storage import labels, locks, naming
from mech_interp.storage.errors import DamagedIndexError, ReadOnlyError, StorageError, files
from mech_interp.storage.folder import RunFolder, settle
from mech_interp.storage.reading import DAMAGED, INTERRUPTED, RUNNING, RunReader
from mech_interp.storage.summary import summarise

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mech_interp.storage.records import RunRecord

REUSABLE = ("complete", "void")
_BATCH = 100
_CLAIM_SECONDS = 0.5  # enough for a process that only asks who holds the lock
_UNSETTLED = (RUNNING, INTERRUPTED, DAMAGED)


@dataclass(frozen=True)
class Begun:
    """A run to work on (`new`, `continued`), or one that has been done already (`stored`)."""

    folder: RunFolder
    how: Literal["new", "continued", "stored"]


@dataclass
class Rebuilt:
    """What rebuilding the index found.

    `changed`: runs whose `result.json` is not the one that was first indexed. `unreadable`: folder name
    -> why it could not be read.
    """

    recorded: int = 0
    changed: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


class Store:
    """The runs under `root`. Several processes may use one root at once.

    Where the root cannot be written, the index is kept in memory and `read_only` is true.

    Raises:
        StorageError: there is no such folder (unless `create`), the index is damaged or newer.
    """

    def __init__(self, root: Path | str, *, create: bool = True) -> None:
        from mech_interp.storage.database import Database

        self.root = Path(root).absolute()
        self.read_only = False
        self.unreadable: dict[str, str] = {}
        if not self.root.is_dir():
            self._make_root(create)
        try:
            self._database = Database(self.root)
            self.refresh()
        except ReadOnlyError:
            self.read_only = True
            self._database = Database(self.root, in_memory=True)
            self.refresh()

    def close(self) -> None:
        """Give back what the operating system lent."""
        self._database.close()

    def begin(
        self,
        key: str,
        spec_yaml: str,
        receipt: Mapping[str, Any],
        *,
        force: bool = False,
        accept: Callable[[RunFolder], bool] = lambda folder: True,
        **facts: Any,
    ) -> Begun:
        """The run to use for `key`: the stored one, else the interrupted one, else a new one.

        `accept` says whether a stored run holds what is asked; `force` passes stored runs over. `facts`
        (the environment now) go into the events of a run that is continued.

        Raises:
            StorageError: another process is executing this key, or the root cannot be written.
        """
        with locks.locked(self.root / naming.ROOT_LOCK):
            self.refresh()
            begun = self._taken_up(key, force, accept, facts) or Begun(
                RunFolder.create_locked(self.root, key, spec_yaml, receipt), "new"
            )
            try:
                self.record(begun.folder)
            except BaseException:
                begun.folder.release()
                raise
        return begun

    def record(self, folder: RunReader | Path | str) -> RunRecord:
        """Bring the index up to date with one run folder.

        Raises:
            StorageError: the folder cannot be read, lies elsewhere, or the index cannot be written.
        """
        path = (folder.path if isinstance(folder, RunReader) else Path(folder)).absolute()
        if path.parent != self.root:
            raise StorageError(f"{str(path)!r} is not in {str(self.root)!r}.", "Move the run folder there.")
        self._record_all([path], strict=True)
        return self._fetch(self._runs().c.folder == path.name)[0]

    def refresh(self) -> None:
        """See what changed in the folders: new ones, vanished ones, runs that ended or were killed."""
        from sqlalchemy import delete, select

        runs = self._runs()
        folders = {path.name: path for path in naming.run_folders(self.root)}
        with self._database.reading() as connection:
            known = {row.folder: row for row in connection.execute(select(runs.c.folder, runs.c.status))}
        stale = [
            path
            for name, path in folders.items()
            if name not in known
            or (known[name].status in _UNSETTLED and RunReader(path).status != known[name].status)
        ]
        gone = [name for name in known if name not in folders and not (self.root / name).is_dir()]
        self.unreadable = {}
        self._record_all(stale)
        if gone:
            with self._database.writing() as connection:
                connection.execute(delete(runs).where(runs.c.folder.in_(gone)))

    def runs(
        self, expression: str = "", *, limit: int | None = None, include_archived: bool = False
    ) -> list[RunRecord]:
        """Runs that match an expression (see `query`), newest first.

        Archived runs are left out unless they are asked for or the expression speaks of them.

        Raises:
            InputError: the expression has a mistake; the message says at which column.
        """
        from mech_interp.storage import query, query_sql

        node = query.parse(expression)
        wanted = [] if node is None else [query_sql.condition(node)]
        asked = node is not None and any(f.name == "archived" for f in query.fields(node))
        if not include_archived and not asked:
            wanted.append(self._runs().c.archived.is_(False))
        return self._fetch(*wanted, limit=limit)

    def advice(self, expression: str) -> str:
        """Why an expression may find nothing: metrics and parameters that no run has."""
        from mech_interp.storage import query, records

        node = query.parse(expression)
        asked = [] if node is None else [f for f in query.fields(node) if f.table in query.PREFIXES]
        with self._database.reading() as connection:
            return records.advice(connection, asked)

    def by_key(self, key: str) -> list[RunRecord]:
        """The runs with this key, newest first, archived ones too."""
        return self._fetch(self._runs().c.key == key)

    def find(self, text: str) -> RunRecord:
        """The one run that `text` names: a number, an id, a suffix (4 letters or more), or a folder.

        Raises:
            StorageError: no run fits, or several do; the message lists them.
        """
        from mech_interp.storage import records

        found = self._fetch(records.named(text, self.root))
        if len(found) == 1:
            return found[0]
        if found:
            raise StorageError(
                f"{text!r} fits {len(found)} runs: {', '.join(record.id for record in found[:5])}.",
                "Give the whole id.",
            )
        latest = ", ".join(record.id for record in self._fetch(limit=3)) or "none yet"
        raise StorageError(
            f"There is no run {text!r} in {str(self.root)!r}.",
            f"Give a number, a suffix or a folder; the latest runs are: {latest}.",
        )

    def archive(self, texts: Iterable[str], *, archived: bool = True) -> list[RunRecord]:
        """Hide runs from lists, or bring them back; nothing is moved or deleted."""
        return self._label(texts, lambda old: {**old, "archived": archived})

    def tag(self, text: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> RunRecord:
        """Add or remove tags after the run; tags of its spec stay."""

        def change(old: dict[str, Any]) -> dict[str, Any]:
            return {**old, "tags": sorted(({*old["tags"]} | {*add}) - {*remove})}

        return self._label([text], change)[0]

    def rebuild(self) -> Rebuilt:
        """Read every folder again. Known hashes of results are kept, so that tampering still shows."""
        self.refresh()
        folders = naming.run_folders(self.root)
        self.unreadable = {}
        changed = self._record_all(folders)
        unread = dict(self.unreadable)
        return Rebuilt(len(folders) - len(unread), changed, unread)

    def _taken_up(
        self, key: str, force: bool, accept: Callable[[RunFolder], bool], facts: Mapping[str, Any]
    ) -> Begun | None:
        """The stored run of this key, or the interrupted one, claimed; None where there is neither."""

        def is_stored(folder: RunFolder) -> bool:
            return not force and folder.status in REUSABLE and accept(folder)

        same = [record.open() for record in self.by_key(key)]
        for folder in same:
            if is_stored(folder):
                return Begun(folder, "stored")
        for folder in same:
            status = folder.status
            if status == INTERRUPTED or (status == RUNNING and not force):
                try:
                    return Begun(folder.claim(timeout=_CLAIM_SECONDS, **facts), "continued")
                except StorageError:
                    if not is_stored(folder):  # it is being executed; or else it has just ended
                        raise
                    return Begun(folder, "stored")
        return None

    def _label(
        self, texts: Iterable[str], change: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> list[RunRecord]:
        found = [self.find(text) for text in texts]
        with locks.locked(self.root / naming.ROOT_LOCK):
            for record in found:
                labels.write(record.path, change(labels.read(record.path)))
        return [self.record(record.path) for record in found]

    def _record_all(self, folders: Sequence[Path], *, strict: bool = False) -> list[str]:
        """Index folders; returns the ids of those whose result is not the one that was first indexed."""
        from mech_interp.storage import records

        changed = []
        for start in range(0, len(folders), _BATCH):
            # Read inside the transaction: of two processes that index one run, the later one read later.
            with self._database.writing() as connection:
                for path in folders[start : start + _BATCH]:
                    try:
                        summary = summarise(path)
                    except StorageError as error:
                        if strict:
                            raise
                        self._unreadable(connection, path, error)
                        continue
                    if not records.put(connection, summary):
                        changed.append(str(summary.run["id"]))
            for path in folders[start : start + _BATCH]:
                if not self.read_only:
                    settle(path)
        return changed

    def _unreadable(self, connection: Connection, path: Path, error: StorageError) -> None:
        from sqlalchemy import delete

        self.unreadable[path.name] = error.message
        connection.execute(delete(self._runs()).where(self._runs().c.folder == path.name))

    def _fetch(self, *wanted: Any, limit: int | None = None) -> list[RunRecord]:
        from sqlalchemy import select

        from mech_interp.storage import records

        runs = self._runs()
        order = (runs.c.created.desc(), runs.c.number.desc(), runs.c.id)
        with self._database.reading() as connection:
            return records.fetch(
                connection, self.root, select(runs).where(*wanted).order_by(*order).limit(limit)
            )

    def _runs(self) -> Any:
        from mech_interp.storage import tables

        return tables.runs

    def _make_root(self, create: bool) -> None:
        if not create:
            raise StorageError(
                f"There is no folder {str(self.root)!r}.",
                "Run something first, or give the place with --home.",
            )
        with files(self.root):
            self.root.mkdir(parents=True, exist_ok=True)


def rebuild(root: Path | str) -> Rebuilt:
    """Rebuild the index of `root`, even one that is damaged (it is kept beside the new one).

    Raises:
        StorageError: there is no such folder, the index is newer, or it cannot be written.
    """
    root = Path(root)
    try:
        store = Store(root, create=False)
    except DamagedIndexError:
        from mech_interp.storage.database import set_aside

        set_aside(root)
        store = Store(root, create=False)
    try:
        return store.rebuild()
    finally:
        store.close()
