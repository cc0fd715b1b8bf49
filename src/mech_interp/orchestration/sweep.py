"""A spec with a matrix, or a base with axes, as several runs: resumable, by one process or many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mech_interp.config.canonical import digest
from mech_interp.config.matrix import points
from mech_interp.config.overrides import path_of
from mech_interp.config.reading import read_value
from mech_interp.errors import InputError, MechError
from mech_interp.orchestration.errors import BusyError, InterruptedRunError
from mech_interp.orchestration.prepare import prepare
from mech_interp.orchestration.progress import Listener
from mech_interp.orchestration.records import (
    FAILED,
    FOLDER,
    INVALID,
    RECORD,
    Child,
    ChildState,
    Sweep,
    folder_name,
    state,
    states,
)
from mech_interp.orchestration.runner import run_spec, shared_session
from mech_interp.orchestration.session import Session
from mech_interp.orchestration.signals import stoppable
from mech_interp.storage import atomic
from mech_interp.storage.errors import StorageError

if TYPE_CHECKING:
    from mech_interp.config.settings import Settings
    from mech_interp.config.spec import Spec

OnFailure = Literal["stop", "continue"]
ChildListener = Callable[[ChildState, int, int], None]
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep stands after it was executed.

    Attributes:
        reused, ran, failed: children found finished, executed by this call, and failed or invalid.
        stopped: whether it ended early because of the failure policy.
    """

    sweep: Sweep
    children: tuple[ChildState, ...]
    reused: int
    ran: int
    failed: int
    stopped: bool
    seconds: float

    @property
    def is_complete(self) -> bool:
        """Whether every child is done."""
        return all(child.is_done for child in self.children)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "sweep": self.sweep.id,
            "record": str(self.sweep.path),
            "children": [child.to_dict() for child in self.children],
            "reused": self.reused,
            "ran": self.ran,
            "failed": self.failed,
            "stopped": self.stopped,
            "complete": self.is_complete,
            "seconds": self.seconds,
        }


def with_axes(spec: Spec, axes: Sequence[str]) -> Spec:
    """A spec whose matrix is the grid of `axes`, each written `parameters.kind=z,resid_pre` or `seed=[0, 1]`.

    Raises:
        InputError: an axis that does not read, or a spec that has a matrix already.
    """
    if spec.matrix is not None:
        raise InputError(f"{spec.name} has a matrix of its own.", "Leave out the axes, or the matrix.")
    if not axes:
        raise InputError("A sweep needs at least one axis.", "Give for example: --axis seed=0,1,2")
    grid: dict[str, list[Any]] = {}
    for axis in axes:
        path, equals, text = axis.partition("=")
        if not equals or not path.strip() or not text.strip():
            raise InputError(
                f"{axis!r:.80} is no axis.", "Write path=value,value, e.g. parameters.kind=z,resid_pre."
            )
        name = path_of(path)
        if name in grid:
            raise InputError(f"The axis {name} is given twice.", "Give all its values at once.")
        listed = text.strip().startswith("[")
        values = read_value(text if listed else f"[{text}]", f"--axis {name}")
        grid[name] = values if isinstance(values, list) else [values]
    return spec.changed({"matrix": {"grid": grid}})


def write_specs(spec: Spec, folder: Path) -> list[Path]:
    """The sweep as one spec file per child in `folder`; returns their paths.

    Raises:
        StorageError: they could not be written.
    """
    paths = []
    for point in points(spec):
        path = folder / f"{point.spec.name}.yaml"
        atomic.write_text(path, point.spec.to_yaml())
        paths.append(path)
    return paths


def plan_sweep(
    spec: Spec, settings: Settings, *, tags: Sequence[str] = (), session: Session | None = None
) -> Sweep:
    """Check every child before any runs; a child that cannot run is kept with the reason. Writes nothing.

    Raises:
        InputError: the spec has no matrix.
        InterruptedRunError: stopped from outside.
    """
    if spec.matrix is None:
        raise InputError(
            f"{spec.name} has no matrix, so there is nothing to sweep over.",
            "Add a matrix, or give axes: --axis seed=0,1,2",
        )
    content = spec.to_dict()
    name = folder_name(spec.name, digest({key: content[key] for key in content if key != "tags"}))
    with shared_session(settings, session) as shared:
        children = tuple(_children(spec, shared, tags))
    path = settings.home.absolute() / FOLDER / name / RECORD
    return Sweep(name, spec.name, path, content, children)


def run_sweep(
    spec: Spec,
    settings: Settings,
    *,
    on_failure: OnFailure = "continue",
    force: bool = False,
    tags: Sequence[str] = (),
    progress: Listener | None = None,
    on_child: ChildListener | None = None,
    session: Session | None = None,
) -> SweepOutcome:
    """Execute what of a sweep is not done yet.

    The same call continues a sweep that was interrupted, and tries its failed children again. Several
    processes may execute one sweep at once: each takes children that no other is executing, and waits
    at the end for those that are.

    Args:
        spec: with a matrix; see `with_axes`.
        on_failure: go on with the other children, or stop at the first that fails or is void.
        force: run every child again.
        on_child: told how a child stands once it is settled, its index from 0, and how many there are.

    Raises:
        InterruptedRunError: it was stopped from outside.
        StorageError: files could not be written.
        InputError: the spec has no matrix, or (with `stop`) a child cannot run.
    """
    began = time.monotonic()
    with stoppable(), shared_session(settings, session) as shared:
        sweep = plan_sweep(spec, settings, tags=tags, session=shared)
        invalid = [child for child in sweep.children if child.error is not None]
        if invalid and on_failure == "stop":
            raise InputError(
                f"{len(invalid)} of {len(sweep.children)} runs of {spec.name} cannot run; "
                f"{invalid[0].name}: {invalid[0].error}",
                "Correct the spec, or go on without them: on_failure continue.",
            )
        shared.store  # noqa: B018  makes the root, or says why it cannot
        sweep.save()
        worker = _Worker(sweep, spec, shared, on_failure, force, tags, progress, on_child)
        worker.work()
        found = tuple(states(sweep, shared.store))
    failed = sum(child.status in (FAILED, INVALID) for child in found)
    seconds = round(time.monotonic() - began, 3)
    return SweepOutcome(sweep, found, worker.reused, worker.ran, failed, worker.stopped, seconds)


def _children(spec: Spec, session: Session, tags: Sequence[str]) -> Iterator[Child]:
    for point in points(spec):
        try:
            key = prepare(point.spec, session, tags=tags).key
        except InterruptedRunError:
            raise
        except MechError as error:
            yield Child(point.spec.name, point.values, None, str(error))
        else:
            yield Child(point.spec.name, point.values, key)


class _Worker:
    """One process's share of a sweep."""

    def __init__(
        self,
        sweep: Sweep,
        spec: Spec,
        session: Session,
        on_failure: OnFailure,
        force: bool,
        tags: Sequence[str],
        progress: Listener | None,
        on_child: ChildListener | None,
    ) -> None:
        self.reused = self.ran = 0
        self.stopped = False
        self._sweep, self._session = sweep, session
        self._specs = [point.spec for point in points(spec)]
        self._stops, self._force, self._tags = on_failure == "stop", force, tags
        self._progress, self._on_child = progress, on_child

    def work(self) -> None:
        """Settle every child, those that other processes are executing last."""
        waiting = list(range(len(self._sweep.children)))
        while waiting and not self.stopped:
            busy = []
            for index in waiting:
                if self.stopped:
                    break
                if not self._settle(index):
                    busy.append(index)
            if len(busy) == len(waiting):
                time.sleep(_POLL_SECONDS)
                self._session.store.refresh()
            waiting = busy

    def _settle(self, index: int) -> bool:
        """Bring one child to its end; False where another process is executing it."""
        child = self._sweep.children[index]
        if child.key is None:
            self._tell(state(child, self._session.store), index)
            return True
        try:
            outcome = run_spec(
                self._specs[index],
                self._session.settings,
                force=self._force,
                tags=self._tags,
                progress=self._progress,
                matrix={"id": self._sweep.id, "name": self._sweep.name, "values": dict(child.values)},
                session=self._session,
            )
        except BusyError:
            return False
        except (InterruptedRunError, StorageError):
            raise
        except Exception as error:  # the run is stored as failed, or could not begin
            self._tell(self._failed(child, error), index)
            return True
        self.reused, self.ran = self.reused + outcome.reused, self.ran + (not outcome.reused)
        self._tell(state(child, self._session.store), index)
        return True

    def _failed(self, child: Child, error: Exception) -> ChildState:
        found = state(child, self._session.store)
        sentence = str(error) if isinstance(error, MechError) else f"{type(error).__name__}: {error}"
        return replace(found, status=FAILED, error=found.error or sentence)

    def _tell(self, found: ChildState, index: int) -> None:
        if self._stops and found.status != "complete":
            self.stopped = True
        if self._on_child is not None:
            self._on_child(found, index, len(self._sweep.children))
