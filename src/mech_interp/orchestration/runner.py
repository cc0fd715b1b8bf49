"""`run_spec`: one spec to one finished, sealed, indexed run, without doing work twice."""

from __future__ import annotations

import contextlib
import random
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mech_interp.errors import MechError
from mech_interp.experiments.context import Budget, Context
from mech_interp.experiments.errors import BudgetError
from mech_interp.orchestration import outputs
from mech_interp.orchestration.errors import BusyError, interrupted
from mech_interp.orchestration.prepare import Prepared, prepare
from mech_interp.orchestration.progress import Listener, Meter
from mech_interp.orchestration.receipts import environment_of, receipt_of
from mech_interp.orchestration.session import Session
from mech_interp.orchestration.signals import Stop, stoppable
from mech_interp.orchestration.threads import threads
from mech_interp.storage.errors import StorageError
from mech_interp.storage.receipt import grade

if TYPE_CHECKING:
    from mech_interp.config.settings import Settings
    from mech_interp.config.spec import Spec
    from mech_interp.experiments.result import Result
    from mech_interp.storage import RunFolder
    from mech_interp.storage.index import Begun

How = Literal["new", "continued", "stored", "planned"]


@dataclass(frozen=True)
class RunOutcome:
    """What became of a spec.

    Attributes:
        run_id, folder: the run; None for a dry run of something that has not been run.
        status: complete or void; for a dry run also running, interrupted or planned.
        reused: whether a stored run was returned instead of working.
        seconds: that this call took.
        how: the run was begun, continued, found finished, or only planned.
    """

    run_id: str | None
    folder: Path | None
    status: str
    reused: bool
    seconds: float
    key: str
    how: How

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "folder": None if self.folder is None else str(self.folder)}


def run_spec(
    spec: Spec,
    settings: Settings,
    *,
    force: bool = False,
    dry_run: bool = False,
    tags: Sequence[str] = (),
    progress: Listener | None = None,
    matrix: Mapping[str, Any] | None = None,
    session: Session | None = None,
    draw: bool = True,
) -> RunOutcome:
    """Run a spec, continue it where it was interrupted, or return the run that has its numbers already.

    Args:
        spec: one without a matrix.
        settings: home, device, aliases and the like.
        force: run again even if a stored run has the same key.
        dry_run: check everything that can be checked before weights load, and write nothing.
        tags: added to the spec's.
        progress: told how far the run is.
        matrix: the sweep that the run belongs to, for its receipt: id, name, values.
        session: shared with other runs of this process.
        draw: make a picture of every view.

    Raises:
        InterruptedRunError: it was stopped from outside; the same call continues it.
        BusyError: another process is executing it.
        StorageError: its files could not be written; the same call continues it.
        MechError: it cannot be run, or failed; a run that had begun is stored with status failed.
    """
    began = time.monotonic()
    with stoppable(), shared_session(settings, session) as shared:
        prepared = prepare(spec, shared, tags=tags)
        if dry_run:
            return _planned(prepared, shared, force, began)
        begun = None if force else _stored(prepared, shared)
        begun = begun or _begin(prepared, shared, force, matrix or {})
        # Whatever happens, a process that lives on must not keep the run locked.
        with begun.folder:
            if begun.how != "stored":
                _execute(prepared, begun, shared, progress, draw)
        if begun.how != "new":
            _add_what_is_asked(begun.folder, prepared, shared)
        return _outcome(begun.folder, begun.how, prepared.key, began)


def _outcome(folder: RunFolder, how: How, key: str, began: float) -> RunOutcome:
    seconds = round(time.monotonic() - began, 3)
    return RunOutcome(folder.id, folder.path, folder.status, how == "stored", seconds, key, how)


def _planned(prepared: Prepared, session: Session, force: bool, began: float) -> RunOutcome:
    """What a real run would do."""
    runs = session.store.by_key(prepared.key) if session.settings.home.is_dir() else []
    policy = prepared.spec.artifact_policy
    for record in runs:
        folder = record.open()
        done = folder.status in ("complete", "void") and not force and outputs.holds(folder, policy)
        if done or folder.status in ("running", "interrupted"):
            return _outcome(folder, "stored" if done else "planned", prepared.key, began)
    seconds = round(time.monotonic() - began, 3)
    return RunOutcome(None, None, "planned", False, seconds, prepared.key, "planned")


def _stored(prepared: Prepared, session: Session) -> Begun | None:
    """A finished run that has the numbers, looked up before the environment is asked for its receipt."""
    from mech_interp.storage.index import REUSABLE, Begun

    for record in session.store.by_key(prepared.key):
        if record.status in REUSABLE and record.path.is_dir():
            folder = record.open()
            if folder.status in REUSABLE and outputs.holds(folder, prepared.spec.artifact_policy):
                return Begun(folder, "stored")
    return None


def _begin(prepared: Prepared, session: Session, force: bool, matrix: Mapping[str, Any]) -> Begun:
    receipt = receipt_of(prepared, session, matrix)
    policy = prepared.spec.artifact_policy
    try:
        return session.store.begin(
            prepared.key,
            prepared.spec.to_yaml(),
            receipt,
            force=force,
            accept=lambda folder: outputs.holds(folder, policy),
        )
    except StorageError as error:
        if not force and any(one.open().status == "running" for one in session.store.by_key(prepared.key)):
            raise BusyError(error.message, error.hint) from error
        raise


def _add_what_is_asked(folder: RunFolder, prepared: Prepared, session: Session) -> None:
    """Tags and a report that a run begun earlier lacks; both are kept outside its seal."""
    from mech_interp.reports.run_report import run_report
    from mech_interp.storage import atomic

    record = session.store.find(folder.id)
    new = [tag for tag in prepared.spec.tags if tag not in record.tags]
    if new:
        session.store.tag(folder.id, add=new)
    derived = folder.path / "derived" / "report.md"
    if prepared.spec.artifact_policy.write_report and folder.report() is None and not derived.exists():
        atomic.write_text(derived, run_report(outputs.told_again(folder, up="../")))


def _execute(
    prepared: Prepared, begun: Begun, session: Session, progress: Listener | None, draw: bool
) -> None:
    """Do the work and finish the run, or leave it so that the same command continues it."""
    folder = begun.folder
    try:
        with stoppable() as stop:
            folder.event("started", how=begun.how, units=len(folder.units()))
            if begun.how == "continued":
                _say_what_changed(prepared, folder, session)
            result, datasets = _work(prepared, _Units(folder, stop), session, progress)
            _finish(prepared, folder, result, datasets, draw)
    except KeyboardInterrupt:
        units = _let_go(folder, session, "interrupted")
        raise interrupted(folder.id, None if folder.is_finished else units) from None
    except (StorageError, BudgetError) as error:
        _let_go(folder, session, "stopped", reason=error.message)
        raise
    except Exception as error:
        _fail(folder, session, error)
        raise
    session.store.record(folder)


def _say_what_changed(prepared: Prepared, folder: RunFolder, session: Session) -> None:
    """Note how this environment differs from the one in which the run was begun."""
    then = folder.receipt().get("environment", {})
    found = grade(then, environment_of(prepared, session))
    folder.event("environment", grade=found.level, reasons=list(found.reasons))


class _Units:
    """The units of a run, where a request to end is heard between two of them."""

    def __init__(self, folder: RunFolder, stop: Stop) -> None:
        self.folder, self._stop = folder, stop

    def save_unit(self, key: str, payload: Mapping[str, Any], arrays: Any = None) -> Any:
        """Keep a unit."""
        return self.folder.save_unit(key, payload, arrays)

    def load_unit(self, key: str) -> Any:
        """The unit, or None when it was never finished."""
        self._stop.check()
        return self.folder.load_unit(key)


def _work(
    prepared: Prepared, units: _Units, session: Session, progress: Listener | None
) -> tuple[Result, dict[str, str]]:
    settings, policy = session.settings, prepared.spec.artifact_policy
    if prepared.family.needs:
        import torch  # noqa: F401  so that the number of threads can be set before the model is opened

    context = Context(
        prepared.params,
        seed=prepared.spec.seed,
        load_model=lambda: session.load(prepared),
        units=units,
        observer=Meter(units.folder.id, progress, units.folder.event),
        budget=Budget(memory_bytes=settings.memory_budget, artifact_bytes=int(policy.max_artifact_bytes)),
        datasets=prepared.datasets,
    )
    _seed(prepared.spec.seed)
    with threads(prepared.threads):
        result = prepared.family.run(context)
    return result, context.datasets


def _finish(
    prepared: Prepared, folder: RunFolder, result: Result, datasets: Mapping[str, str], draw: bool
) -> None:
    policy = prepared.spec.artifact_policy
    pictures = outputs.figures(result.views, folder.event) if draw else {}
    kept = outputs.keep(result, folder, prepared.spec.to_dict(), policy, pictures)
    folder.finish(
        result.status, kept.contents, facts={"datasets": dict(datasets), "kept": kept.facts(policy)}
    )


def _let_go(folder: RunFolder, session: Session, event: str, **data: Any) -> int:
    """Leave the run to be continued; returns how many units it has. Nothing here may hide why it ended."""
    units = 0
    with contextlib.suppress(MechError):
        if not folder.is_finished:
            units = len(folder.units())
            if folder.is_mine:
                folder.event(event, units=units, **data)
    folder.release()
    with contextlib.suppress(MechError):
        session.store.record(folder)
    return units


def _fail(folder: RunFolder, session: Session, error: Exception) -> None:
    """Seal the run with what went wrong; where even that cannot be written it reads as interrupted."""
    from mech_interp.storage import redact

    sentence = error.message if isinstance(error, MechError) else f"{type(error).__name__}: {error}"
    try:
        if not isinstance(error, MechError):
            folder.event("traceback", text=redact.text("".join(traceback.format_exception(error))))
        folder.finish("failed", error=redact.text(sentence))
    except MechError:
        folder.release()
    with contextlib.suppress(MechError):
        session.store.record(folder)


def _seed(seed: int) -> None:
    """Start every global generator, for code that draws from one against the rules of `Context`."""
    random.seed(seed)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed(seed)
    if torch is not None:
        torch.manual_seed(seed)


@contextlib.contextmanager
def shared_session(settings: Settings, session: Session | None) -> Iterator[Session]:
    """The given session, or one that ends with the block."""
    if session is not None:
        yield session
        return
    own = Session(settings)
    try:
        yield own
    finally:
        own.close()
