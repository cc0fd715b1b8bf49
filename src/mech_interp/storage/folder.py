"""`RunFolder`: one run on disk, from its first second to its seal.

    run-000042-3f9c1a7e/
      spec.yaml  receipt.json        written before the folder gets its name
      events.jsonl                   what happened, as it happens
      state.json  run.lock  units/   while it is being executed; gone when it is finished
      metrics.json  findings.json  tables/  tensors/  views/  figures/  report.md
      seal.json  result.json         last; without result.json the run has not finished
      derived/                       whatever is made later; outside the seal

A run without `result.json` is running while a process holds `run.lock`, and interrupted otherwise.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mech_interp.storage import atomic, contents, events, locks, naming, seal, units
from mech_interp.storage.errors import StorageError, files
from mech_interp.storage.plain import now, plain, read_json
from mech_interp.storage.reading import RunReader

if TYPE_CHECKING:
    import numpy as np

SEALED_STATUSES = ("complete", "void", "failed")
CLAIM_SECONDS = 5.0


class RunFolder(RunReader):
    """A run; whoever created or claimed it holds its lock and may write to it.

    Use it as a context manager, or call `release`, to let go of a run that is not finished.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self._lock: int | None = None

    @classmethod
    def create(cls, root: Path | str, key: str, spec_yaml: str, receipt: Mapping[str, Any]) -> Self:
        """A new run with the next free number, its receipt on disk, its lock held.

        `receipt` gains `run` and `key`. The folder appears under its name only when it is complete.

        Raises:
            StorageError: the root cannot be written.
        """
        root = Path(root)
        with locks.locked(root / naming.ROOT_LOCK):
            return cls.create_locked(root, key, spec_yaml, receipt)

    @classmethod
    def create_locked(cls, root: Path, key: str, spec_yaml: str, receipt: Mapping[str, Any]) -> Self:
        """`create` for a caller that holds the lock of the root."""
        naming.sweep(root)
        name = naming.next_name(root)
        draft = root / f"{naming.DRAFT}{uuid.uuid4().hex}"
        with files(root / name):
            draft.mkdir()
        made = cls(root / name)
        try:
            made._lock = locks.try_lock(draft / naming.RUN_LOCK)
            atomic.write_text(draft / "spec.yaml", spec_yaml, durable=False)
            ours = {"format": seal.FORMAT, "run": name, "key": key}
            content = {**ours, "created": now(), **receipt, **ours}
            atomic.write_json(draft / "receipt.json", plain(content, []), durable=False)
            events.append(draft / "events.jsonl", "created", {"run": name, "pid": os.getpid()})
            made._write_state(draft)
            with files(root / name):
                draft.rename(root / name)
                atomic.flush_folder(root)
        except BaseException:
            made.release()
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return made

    @property
    def is_mine(self) -> bool:
        """Whether this object holds the run's lock."""
        return self._lock is not None

    def claim(self, timeout: float = CLAIM_SECONDS, **facts: Any) -> Self:
        """Take up an interrupted run; `facts` (the environment now) go into its events.

        Raises:
            StorageError: it is finished, or another process is executing it.
        """
        if self.is_mine:
            return self
        self._refuse_finished()
        descriptor = locks.lock(self.path / naming.RUN_LOCK, timeout)
        if descriptor is None:
            pid = self.state().get("pid", "unknown")
            raise StorageError(
                f"{self.id} is being executed by another process (pid {pid}).",
                "Wait for it to end, or end it and run the same command again.",
            )
        self._lock = descriptor
        try:
            self._refuse_finished()  # it may have been finished while we waited
            atomic.sweep(self.path)
            events.mend(self.path / "events.jsonl")
            self.event(events.RESUMED, pid=os.getpid(), units=len(self.units()), **facts)
            self._write_state(self.path)
        except BaseException:
            self.release()
            raise
        return self

    def release(self) -> None:
        """Let go of the run; if it is not finished it now reads as interrupted."""
        if self._lock is not None:
            locks.unlock(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def event(self, kind: str, **data: Any) -> None:
        """Append one event (a name and plain values)."""
        self._refuse_strangers()
        events.append(self.path / "events.jsonl", kind, data)

    def save_unit(
        self,
        key: str,
        payload: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> units.Unit:
        """Store a finished piece of work; returns it exactly as `load_unit` will.

        Raises:
            TypeError: the payload holds something that JSON cannot.
            StorageError: it could not be written.
        """
        self._refuse_strangers()
        return units.save(self.path / naming.UNITS, key, payload, arrays)

    def finish(
        self,
        status: str,
        results: contents.Contents | None = None,
        *,
        error: str | None = None,
        keep_units: bool = False,
        max_bytes: int | None = None,
        facts: Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> dict[str, Any]:
        """Write the results, seal the run and let go of it; returns what `result.json` holds.

        `results` may be given as its parts (`metrics=`, `tables=`, …). `facts` are added to
        `result.json`. Numbers that are not finite are stored as null, with a warning in the events.

        Raises:
            StorageError: the results are larger than `max_bytes`, or could not be written; the run then
                is as it was and can be finished again.
        """
        if status not in SEALED_STATUSES:
            raise ValueError(f"status {status!r} is none of {', '.join(SEALED_STATUSES)}")
        self._refuse_strangers()
        encoded = contents.encode(results or contents.Contents(**parts))
        if max_bytes is not None and encoded.size > max_bytes:
            largest = max(encoded.files, key=lambda path: len(encoded.files[path]))
            raise StorageError(
                f"The results take {encoded.size:,} bytes and {max_bytes:,} are allowed; "
                f"the largest is {largest} with {len(encoded.files[largest]):,}.",
                "Raise artifact_policy.max_artifact_bytes, or keep fewer tensors.",
            )
        self._clear(keep_units)
        if encoded.gaps:
            self.event("warning", message="not-finite numbers are stored as null", places=encoded.gaps)
        for path, data in encoded.files.items():
            atomic.write_bytes(self.path / path, data, durable=False)
        self.event("finished", status=status)
        content = self._result(status, encoded, error, keep_units, facts or {})
        self._seal(content)
        self._settle(keep_units)
        return content

    def _result(
        self,
        status: str,
        encoded: contents.Encoded,
        error: str | None,
        keep_units: bool,
        facts: Mapping[str, Any],
    ) -> dict[str, Any]:
        receipt = self.receipt()
        kept = self._relative(self.path / naming.UNITS) if keep_units else []
        names = ["spec.yaml", "receipt.json", "events.jsonl", *sorted(encoded.files), *kept]
        return {
            "run": self.id,
            "key": receipt["key"],
            "status": status,
            "error": error,
            "started": receipt["created"],
            "finished": now(),
            "seconds": events.working_seconds(self.events()),
            **plain(facts),
            "contents": encoded.listing,
            "files": {name: seal.fingerprint(self.path / name) for name in names},
        }

    def _seal(self, content: Mapping[str, Any]) -> None:
        """Everything to the disk, then the seal, then `result.json`: that rename finishes the run."""
        data = seal.result_bytes(content)
        with files(self.path):
            (self.path / "state.json").unlink(missing_ok=True)
            with (self.path / "events.jsonl").open("rb") as file:
                os.fsync(file.fileno())
        for folder in (self.path, *(self.path / name for name in contents.FOLDERS)):
            if folder.is_dir():
                atomic.flush_folder(folder)
        atomic.write_bytes(self.path / seal.SEAL, seal.seal_bytes(data, self.id))
        atomic.write_bytes(self.path / seal.RESULT, data)

    def _settle(self, keep_units: bool) -> None:
        """Drop what only an unfinished run needs. It is finished, so nothing here may fail it."""
        if not keep_units:
            shutil.rmtree(self.path / naming.UNITS, ignore_errors=True)
        naming.remove(self.path / naming.RUN_LOCK)
        self.release()

    def _clear(self, keep_units: bool) -> None:
        """Remove the leavings of killed writers and of a finish that was cut short."""
        atomic.sweep(self.path)
        with files(self.path):
            for name in contents.FOLDERS:
                if (self.path / name).is_dir():
                    shutil.rmtree(self.path / name)
            for name in (contents.METRICS, contents.FINDINGS, contents.REPORT, seal.SEAL):
                (self.path / name).unlink(missing_ok=True)

    def _relative(self, folder: Path) -> list[str]:
        return sorted(p.relative_to(self.path).as_posix() for p in folder.rglob("*") if p.is_file())

    def _write_state(self, folder: Path) -> None:
        atomic.write_json(folder / "state.json", {"pid": os.getpid(), "since": now()}, durable=False)

    def _refuse_finished(self) -> None:
        if self.is_finished:
            raise StorageError(
                f"{self.id} is finished and sealed, so nothing can be added to it.",
                "Use --force to run the same spec again as a new run.",
            )

    def _refuse_strangers(self) -> None:
        if not self.is_mine:
            self._refuse_finished()
            raise StorageError(f"{self.id} is not held by this process.", "Claim it before writing to it.")


def settle(path: Path) -> None:
    """Finish the tidying of a run whose process was killed just after sealing it."""
    leftovers = [path / naming.UNITS, path / naming.RUN_LOCK]
    if not (path / seal.RESULT).exists() or not any(left.exists() for left in leftovers):
        return
    listed = read_json(path / seal.RESULT).get("files", {})
    if not any(name.startswith(f"{naming.UNITS}/") for name in listed):
        shutil.rmtree(path / naming.UNITS, ignore_errors=True)
    naming.remove(path / naming.RUN_LOCK)
    naming.remove(path / "state.json")
