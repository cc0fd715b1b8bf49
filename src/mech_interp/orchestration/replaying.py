"""Run a stored run again, elsewhere, and see whether the same numbers come out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp.config.spec import Spec
from mech_interp.errors import InputError, MechError, ModelError
from mech_interp.experiments.result import Metric
from mech_interp.orchestration.prepare import ENGINE_VERSION, Prepared, prepare
from mech_interp.orchestration.progress import Listener
from mech_interp.orchestration.receipts import environment_of
from mech_interp.orchestration.runner import run_spec
from mech_interp.orchestration.session import Session
from mech_interp.storage import atomic
from mech_interp.storage.errors import StorageError
from mech_interp.storage.plain import now
from mech_interp.storage.receipt import grade
from mech_interp.storage.verify import verify

if TYPE_CHECKING:
    from mech_interp.config.settings import Settings
    from mech_interp.storage.reading import RunReader


@dataclass(frozen=True)
class MetricCheck:
    """One number, then and now; `allowed` is how far they may be apart."""

    name: str
    unit: str
    recorded: float | None
    replayed: float | None
    allowed: float | None
    agrees: bool


@dataclass(frozen=True)
class Replay:
    """What a replay found.

    Attributes:
        grade: same, compatible or different: how far this environment is from the recorded one.
        reasons: every difference of the environments that counts.
        notes: other things that may move the numbers, such as a newer version of the family.
        agrees: whether every metric came out within its tolerance.
    """

    run: str
    grade: str
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    metrics: tuple[MetricCheck, ...]
    agrees: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def replay(
    run: RunReader, settings: Settings, *, progress: Listener | None = None, save: bool = True
) -> Replay:
    """Run again in a scratch folder with the recorded device, number format and threads; compare metrics.

    With `save` the finding is added to the run's `derived/replays/`, outside its seal.

    Raises:
        StorageError: the run has no numbers, or its files are no longer what was sealed.
        ModelError, InputError: the model or the data are no longer those of the run.
        MechError: it cannot be run here.
    """
    began = time.monotonic()
    _check_sealed(run)
    receipt = run.receipt()
    with tempfile.TemporaryDirectory(prefix="mech-replay-", ignore_cleanup_errors=True) as scratch:
        session = Session(_as_recorded(settings, receipt, Path(scratch)), cache_home=settings.home)
        try:
            spec, prepared = _prepared(run, receipt, session)
            outcome = run_spec(spec, session.settings, progress=progress, session=session, draw=False)
            assert outcome.run_id is not None
            fresh = session.store.find(outcome.run_id).open().metrics()
            found = grade(receipt.get("environment", {}), environment_of(prepared, session))
        finally:
            session.close()
    checks = tuple(_compared(run.metrics(), fresh))
    notes = tuple(_notes(receipt, prepared, run.status, outcome.status))
    agrees = all(check.agrees for check in checks) and outcome.status == run.status
    seconds = round(time.monotonic() - began, 3)
    result = Replay(run.id, found.level, found.reasons, notes, checks, agrees, seconds)
    if save:
        _save(run, result)
    return result


def _check_sealed(run: RunReader) -> None:
    if run.status not in ("complete", "void"):
        raise StorageError(
            f"{run.id} is {run.status}, so it has no numbers to compare with.",
            "Replay a run that is complete.",
        )
    problems = verify(run.path)
    if problems:
        raise StorageError(
            f"{run.id} is no longer what was sealed: {problems[0]}.",
            "See all differences with mech verify; replay a copy that is intact.",
        )


def _as_recorded(settings: Settings, receipt: Mapping[str, Any], home: Path) -> Settings:
    """Settings under which as much as possible is as it was."""
    environment = receipt.get("environment")
    threads = environment.get("threads") if isinstance(environment, Mapping) else None
    return settings.model_copy(update={"home": home, "threads": threads or settings.threads})


def _prepared(run: RunReader, receipt: Mapping[str, Any], session: Session) -> tuple[Spec, Prepared]:
    """The run's spec on the model and data that it had, found by their hashes."""
    recorded = Spec.from_dict(run.spec(), source=f"{run.id}/spec.yaml")
    where = {"device": str(receipt.get("device", "auto")), "dtype": str(receipt.get("dtype", "auto"))}
    recorded = recorded.changed(where)
    model = receipt.get("model")
    about: Mapping[str, Any] = model if isinstance(model, Mapping) else {}
    problem: MechError | None = None
    for name in dict.fromkeys([recorded.model, str(Path(str(about.get("folder", ""))).expanduser())]):
        try:
            found = session.find(name, recorded.revision)
        except ModelError as error:
            problem = problem or error
            continue
        if found.weights_hash == about.get("weights_sha256"):
            spec = recorded.changed({"model": name})
            prepared = prepare(spec, session)
            _check_data(prepared, receipt)
            return spec, prepared
        problem = ModelError(
            f"The model now called {name!r} is not the one that {run.id} used: its weights have the hash "
            f"{found.weights_hash[:12]}, not {str(about.get('weights_sha256'))[:12]}.",
            "Put back the checkpoint that the receipt names.",
        )
    raise problem or ModelError(f"The model of {run.id} is unknown.", "Its receipt names none.")


def _check_data(prepared: Prepared, receipt: Mapping[str, Any]) -> None:
    then, now_ = receipt.get("datasets") or {}, dict(prepared.datasets)
    for name in {*then, *now_}:
        if then.get(name) != now_.get(name):
            raise InputError(
                f"The data {name!r} are not those of the run: {str(now_.get(name))[:12]} now, "
                f"{str(then.get(name))[:12]} then.",
                "Put back the data that the receipt names.",
            )


def _compared(
    recorded: Mapping[str, Mapping[str, Any]], fresh: Mapping[str, Mapping[str, Any]]
) -> Iterator[MetricCheck]:
    for name in dict.fromkeys([*recorded, *fresh]):
        one, two = recorded.get(name), fresh.get(name)
        if one is None or two is None:
            known = one or two or {}
            values = [None if side is None else side.get("value") for side in (one, two)]
            yield MetricCheck(name, str(known.get("unit", "")), values[0], values[1], None, False)
            continue
        then, now_ = Metric.from_dict(one), Metric.from_dict(two)
        allowed = None
        if then.value is not None and now_.value is not None:
            allowed = then.absolute + then.tolerance * max(abs(then.value), abs(now_.value))
        yield MetricCheck(name, then.unit, then.value, now_.value, allowed, then.agrees(now_))


def _notes(receipt: Mapping[str, Any], prepared: Prepared, then: str, now_: str) -> Iterator[str]:
    versions = (
        (f"family {prepared.family.name}", receipt.get("family_version"), prepared.family.version),
        ("engine", receipt.get("engine_version"), ENGINE_VERSION),
    )
    for what, old, new in versions:
        if old != new:
            yield f"The {what} is version {new} now and was {old}: its numbers may differ on purpose."
    if then != now_:
        yield f"The run was {then} and its replay is {now_}."


def _save(run: RunReader, result: Replay) -> None:
    moment = now()
    name = moment.replace(":", "").replace(".", "")
    content = {"time": moment, **result.to_dict()}
    atomic.write_json(run.path / "derived" / "replays" / f"{name}.json", content)
