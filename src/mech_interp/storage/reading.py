"""`RunReader`: what anyone may read of a run, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mech_interp.errors import InputError, nearest
from mech_interp.storage import contents, events, locks, naming, seal, units
from mech_interp.storage.errors import StorageError, files
from mech_interp.storage.plain import read_object
from mech_interp.storage.units import Unit

if TYPE_CHECKING:
    import numpy as np

RUNNING, INTERRUPTED, DAMAGED = "running", "interrupted", "damaged"


class RunReader:
    """A run folder, read only.

    Raises:
        StorageError: `path` holds no receipt, so it is no run.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def is_run(cls, path: Path | str) -> bool:
        """Whether `path` is a folder that holds a run."""
        return (Path(path) / "receipt.json").is_file()

    @property
    def id(self) -> str:
        """The run's id, which is its folder's name; a renamed folder keeps the id in its receipt."""
        if naming.split(self.path.name):
            return self.path.name
        return str(self.receipt().get("run", self.path.name))

    @property
    def is_finished(self) -> bool:
        """Whether the run has its `result.json`."""
        return (self.path / seal.RESULT).exists()

    @property
    def status(self) -> str:
        """`complete`, `void` or `failed` once finished; else `running` or `interrupted`; `damaged` where
        `result.json` cannot be read."""
        if not self.is_finished and not locks.is_held(self.path / naming.RUN_LOCK) and not self.is_finished:
            return INTERRUPTED  # asked twice: it may have been finished between the first two questions
        if not self.is_finished:
            return RUNNING
        try:
            return str(self.result()["status"])
        except (StorageError, KeyError):
            return DAMAGED

    def receipt(self) -> dict[str, Any]:
        """What was known before the run started."""
        receipt = read_object(self.path / "receipt.json")
        seal.check_format(receipt, self.path)
        return receipt

    def spec(self) -> dict[str, Any]:
        """The resolved spec."""
        path = self.path / "spec.yaml"
        with files(path, "read"):
            text = path.read_bytes()
        try:
            spec = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise StorageError(
                f"{path.name!r} in {str(self.path)!r} is not YAML, so it was changed.",
                "`mech verify` names every file of a run that has changed; restore them from a copy.",
            ) from error
        return spec if isinstance(spec, dict) else {}

    def state(self) -> dict[str, Any]:
        """Who executes the run, since when; empty where nobody does or it cannot be read."""
        try:
            return read_object(self.path / "state.json")
        except StorageError:
            return {}

    def result(self) -> dict[str, Any]:
        """What `result.json` holds.

        Raises:
            StorageError: the run is not finished, or the file is damaged or of a newer format.
        """
        if not self.is_finished:
            raise StorageError(
                f"{self.id} has not finished, so it has no results yet.",
                "Run the same command again to continue it.",
            )
        result = read_object(self.path / seal.RESULT)
        seal.check_format(result, self.path)
        return result

    def events(self) -> list[dict[str, Any]]:
        """What happened, oldest first."""
        return events.read(self.path / "events.jsonl")

    def units(self) -> list[str]:
        """The keys of the stored pieces of work."""
        return units.keys(self.path / naming.UNITS)

    def load_unit(self, key: str) -> Unit | None:
        """(payload, arrays) of a stored piece of work, or None where it is absent, torn or changed."""
        return units.load(self.path / naming.UNITS, key)

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Metrics by name: value, interval, n, unit, …"""
        self.result()
        return read_object(self.path / contents.METRICS)

    def findings(self) -> dict[str, Any]:
        """`findings`, `controls` and `notes`."""
        self.result()
        return read_object(self.path / contents.FINDINGS)

    def names(self, what: str) -> list[str]:
        """The names of the run's `tables`, `tensors`, `views`, `figures` or `graphs`."""
        return list(self._listing(what))

    def table(self, name: str) -> list[dict[str, Any]]:
        """A table's rows, with the types they had."""
        path, facts = self._find("tables", name)
        with files(path, "read"):
            text = path.read_bytes().decode("utf-8", "replace")
        return contents.decode_table(text, facts.get("columns", {}))

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor as a numpy array."""
        path, _ = self._find("tensors", name)
        with files(path, "read"):
            data = path.read_bytes()
        return units.unpack(data)["data"]

    def view(self, name: str) -> dict[str, Any]:
        """A view as plain values."""
        return read_object(self._find("views", name)[0])

    def figure(self, name: str) -> Path:
        """The path of a PNG."""
        return self._find("figures", name)[0]

    def graph(self, name: str) -> Path:
        """The path of a circuit graph, such as `circuit.json`."""
        return self._find("graphs", name)[0]

    def report(self) -> str | None:
        """The report for people, or None where none was written."""
        path = self.path / contents.REPORT
        if not path.exists():
            return None
        with files(path, "read"):
            return path.read_bytes().decode("utf-8", "replace")

    def _listing(self, what: str) -> dict[str, Any]:
        listing = self.result().get("contents", {})
        found = listing.get(what, {}) if isinstance(listing, dict) else {}
        return found if isinstance(found, dict) else {}

    def _find(self, what: str, name: str) -> tuple[Path, dict[str, Any]]:
        listing = self._listing(what)
        if name not in listing:
            known = ", ".join(listing) or "none"
            raise InputError(
                f"{self.id} has no {what.removesuffix('s')} {name!r}.",
                nearest(name, listing) or f"Its {what}: {known}.",
            )
        return self.path / listing[name]["path"], listing[name]
