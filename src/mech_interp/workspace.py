"""Stored runs from Python: what the commands show, as objects.

import mech_interp
with mech_interp.open() as workspace:          # or open("path/of/runs")
    for run in workspace.runs("family = logit_lens and metric.accuracy > 0.5"):
        print(run, run.metrics["accuracy"].value)
    run = workspace.run("42")
    run.table("layers")                        # a pandas DataFrame where pandas is installed
    run.array("probability"), run.view("lens"), run.figure("lens"), run.report
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np

    from mech_interp.config.settings import Settings
    from mech_interp.config.spec import Spec
    from mech_interp.experiments.result import Metric
    from mech_interp.orchestration.comparison import Comparison
    from mech_interp.orchestration.replaying import Replay
    from mech_interp.orchestration.runner import RunOutcome
    from mech_interp.orchestration.session import Session
    from mech_interp.storage import Problem, RunFolder, RunRecord, Store
    from mech_interp.views import View


def open(home: str | Path | None = None, **settings: Any) -> Workspace:
    """The runs in `home`, or in the folder that the settings name; `settings` count as flags.

    Raises:
        InputError: a setting cannot be used.
    """
    from mech_interp.config.settings import resolve_settings

    found, _ = resolve_settings({"home": None if home is None else str(home), **settings})
    return Workspace(found)


class Workspace:
    """A folder of runs; use it as a context manager, or call `close`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def session(self) -> Session:
        """What the runs of this process share."""
        from mech_interp.orchestration.session import Session

        return Session(self.settings)

    @property
    def store(self) -> Store:
        """The index and the folders."""
        return self.session.store

    def runs(self, query: str = "", *, limit: int | None = None, archived: bool = False) -> list[Run]:
        """The runs that an expression selects (see `mech query-runs`), newest first.

        Raises:
            InputError: the expression has a mistake.
        """
        self.store.refresh()
        return [Run(one, self) for one in self.store.runs(query, limit=limit, include_archived=archived)]

    def run(self, name: str | int) -> Run:
        """One run, by number, id, suffix or folder.

        Raises:
            StorageError: no run fits, or several do.
        """
        self.store.refresh()
        return Run(self.store.find(str(name)), self)

    def execute(self, spec: Spec | Mapping[str, Any] | str | Path, **options: Any) -> Run:
        """Run a spec (a `Spec`, its data, or a file with one spec) or return the run that has its numbers.

        `options` are those of `run_spec`: force, tags, progress.

        Raises:
            MechError: see `run_spec`.
        """
        from mech_interp.orchestration.runner import run_spec

        done: RunOutcome = run_spec(_spec(spec), self.settings, session=self.session, **options)
        return self.run(done.run_id or "")

    def compare(self, *names: str | int) -> Comparison:
        """Several runs side by side: what differs in what went in, and every number."""
        from mech_interp.orchestration.comparison import compare

        return compare([self.run(name).folder for name in names])

    def close(self) -> None:
        """Give back what the operating system lent."""
        if "session" in vars(self):
            self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Workspace({str(self.settings.home)!r})"


class Run:
    """One stored run, read only."""

    def __init__(self, record: RunRecord, workspace: Workspace) -> None:
        self.record = record
        self._workspace = workspace

    @property
    def id(self) -> str:
        """`run-000042-3f9c1a7e`."""
        return self.record.id

    @property
    def status(self) -> str:
        """complete, void, failed, interrupted, running or damaged, as of now."""
        return self.folder.status

    @cached_property
    def folder(self) -> RunFolder:
        """Its files."""
        return self.record.open()

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Its numbers by name: value, interval, n, unit, control.

        Raises:
            StorageError: it has not finished.
        """
        from mech_interp.experiments.result import Metric

        return {name: Metric.from_dict(metric) for name, metric in self.folder.metrics().items()}

    @property
    def tables(self) -> list[str]:
        """The names of its tables; `arrays`, `views` and `figures` likewise."""
        return self.folder.names("tables")

    @property
    def arrays(self) -> list[str]:
        """The names of its tensors."""
        return self.folder.names("tensors")

    @property
    def views(self) -> list[str]:
        """The names of its views."""
        return self.folder.names("views")

    @property
    def figures(self) -> list[str]:
        """The names of its figures."""
        return self.folder.names("figures")

    def table(self, name: str) -> Any:
        """A table as a pandas DataFrame where pandas is installed, else as a list of rows.

        Raises:
            InputError: there is none of that name.
        """
        rows = self.folder.table(name)
        if importlib.util.find_spec("pandas") is None:
            return rows
        return importlib.import_module("pandas").DataFrame(rows)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor."""
        return self.folder.array(name)

    def view(self, name: str) -> View:
        """A figure as data, which every renderer takes."""
        from mech_interp.views import view_from_dict

        return view_from_dict(self.folder.view(name))

    def figure(self, name: str) -> Path:
        """The PNG of a figure."""
        return self.folder.figure(name)

    @property
    def report(self) -> str:
        """What was found, for people (Markdown).

        Raises:
            StorageError: it has not finished.
        """
        from mech_interp.orchestration.outputs import told_again
        from mech_interp.reports.run_report import run_report

        return self.folder.report() or run_report(told_again(self.folder))

    @property
    def spec(self) -> dict[str, Any]:
        """What was run."""
        return self.folder.spec()

    @property
    def receipt(self) -> dict[str, Any]:
        """What was known before it started."""
        return self.folder.receipt()

    def verify(self) -> list[Problem]:
        """Every file that is no longer what the run wrote; empty where all is well."""
        from mech_interp.storage.verify import verify

        return verify(self.record.path, self.record.result_sha256)

    def replay(self, **options: Any) -> Replay:
        """Run it again elsewhere and compare every number."""
        from mech_interp.orchestration.replaying import replay

        return replay(self.folder, self._workspace.settings, **options)

    def __repr__(self) -> str:
        return f"Run({self.id!r}, {self.record.family}, {self.record.model}, {self.record.status})"


def _spec(given: Spec | Mapping[str, Any] | str | Path) -> Spec:
    from mech_interp.config.files import read_specs
    from mech_interp.config.spec import Spec
    from mech_interp.errors import InputError

    if isinstance(given, Spec):
        return given
    if isinstance(given, Mapping):
        return Spec.from_dict(given)
    specs = read_specs(given)
    if len(specs) != 1:
        raise InputError(f"{str(given)!r} holds {len(specs)} specs.", "Read them with read_specs; give one.")
    return specs[0]
