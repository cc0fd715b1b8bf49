"""What a running family is handed: parameters, model, seeds, and a way to do its work in units."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from mech_interp.errors import MechError
from mech_interp.experiments.errors import BudgetError, FamilyError

if TYPE_CHECKING:
    import numpy as np
    from pydantic import BaseModel

    from mech_interp.backends.protocol import InstrumentedModel

    Arrays = Mapping[str, np.ndarray[Any, Any]]
    Stored = tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]

P = TypeVar("P", bound="BaseModel")
T = TypeVar("T")


class UnitStore(Protocol):
    """Where finished units are kept; a run folder is one. What is saved is returned as it will be loaded."""

    def save_unit(self, key: str, payload: Mapping[str, Any], arrays: Arrays | None = None) -> Stored:
        """Keep a unit."""
        ...

    def load_unit(self, key: str) -> Stored | None:
        """The unit, or None when it was never finished."""
        ...


class Observer(Protocol):
    """Who is told how a run goes."""

    def progress(self, done: int, total: int, what: str) -> None:
        """`done` of `total` pieces are finished."""
        ...

    def event(self, kind: str, **data: Any) -> None:
        """Something happened that belongs in the run's record."""
        ...


class Silent:
    """An observer that nobody listens to."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Nothing."""

    def event(self, kind: str, **data: Any) -> None:
        """Nothing."""


class MemoryStore:
    """Units kept in memory: for calls from Python and for tests. Values come back as from a file."""

    def __init__(self) -> None:
        self._units: dict[str, tuple[str, dict[str, np.ndarray[Any, Any]]]] = {}

    def save_unit(self, key: str, payload: Mapping[str, Any], arrays: Arrays | None = None) -> Stored:
        """Keep a unit."""
        import numpy as np

        from mech_interp.storage.plain import plain

        text = json.dumps(plain(payload), sort_keys=True)
        self._units[key] = (text, {name: np.array(array) for name, array in (arrays or {}).items()})
        return self._copy(key)

    def load_unit(self, key: str) -> Stored | None:
        """The unit, or None when it was never finished."""
        return self._copy(key) if key in self._units else None

    def _copy(self, key: str) -> Stored:
        text, arrays = self._units[key]
        return json.loads(text), {name: array.copy() for name, array in arrays.items()}


@dataclass(frozen=True)
class Budget:
    """Limits of a run; None is no limit.

    Attributes:
        seconds: of work in this session; reached, the run stops between units and can be continued.
        memory_bytes: for the rows of a sweep.
        artifact_bytes: for the run's files together.
    """

    seconds: float | None = None
    memory_bytes: int | None = None
    artifact_bytes: int | None = None


class Context(Generic[P]):
    """One run, seen from its family.

    Args:
        params: the family's parameters.
        seed: seed of everything random; take generators from `generator`.
        load_model: opens the model; called when `model` is first used.
        units: where finished units are kept; in memory by default.
        observer: who is told.
        budget: limits.
        datasets: hashes by name that the receipt already states.
        clock: seconds that only grow; for tests.
    """

    def __init__(
        self,
        params: P,
        *,
        seed: int = 0,
        load_model: Callable[[], InstrumentedModel] | None = None,
        units: UnitStore | None = None,
        observer: Observer | None = None,
        budget: Budget | None = None,
        datasets: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.params = params
        self.seed = seed
        self.budget = budget or Budget()
        self.notes: list[str] = []
        self.computed: list[str] = []
        self.reused: list[str] = []
        self._load_model = load_model
        self._model: InstrumentedModel | None = None
        self._units: UnitStore = MemoryStore() if units is None else units
        self._observer: Observer = observer or Silent()
        self._stated = dict(datasets or {})
        self._datasets: dict[str, str] = {}
        self._clock = clock
        self._start = clock()

    @property
    def model(self) -> InstrumentedModel:
        """The model, opened at first use: a run whose units are all stored never loads it."""
        if self._model is None:
            if self._load_model is None:
                raise FamilyError("This run has no model.", "Give the context load_model.")
            start = self._clock()
            self._model = self._load_model()
            self._observer.event("model", seconds=round(self._clock() - start, 3))
        return self._model

    @property
    def datasets(self) -> dict[str, str]:
        """Hashes by name of the data that the run has used."""
        return dict(self._datasets)

    def dataset(self, name: str, sha256: str, n: int) -> None:
        """Say that `n` items of data with this hash are used.

        Raises:
            MechError: when the receipt, or an earlier call, states another hash under that name.
        """
        stated = self._datasets.get(name, self._stated.get(name, sha256))
        if stated != sha256:
            raise MechError(
                f"The data {name!r} has changed since the run was started: {sha256[:12]}, not {stated[:12]}.",
                "Restore the data, or start a new run.",
            )
        if name not in self._datasets:
            self._datasets[name] = sha256
            self._observer.event("dataset", name=name, sha256=sha256, n=n)

    def unit(self, key: str, function: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """A resumable piece of work: what `function` returned, in this process or an earlier one.

        Computed or stored, the value is the same: JSON values (tuples have become lists) and arrays
        (tensors have become numpy arrays on the host). `function` must depend on nothing but the
        parameters, the model and the key; randomness comes from ``generator(key)``.

        Args:
            key: names the unit; each may be asked for once.
            function: returns a mapping from names to JSON values, arrays or tensors.

        Raises:
            BudgetError: when the time is up; stored units are kept.
        """
        if key in self.computed or key in self.reused:
            raise FamilyError(f"The unit {key!r:.80} was asked for twice.", "Give each unit its own key.")
        stored = self._units.load_unit(key)
        if stored is not None:
            self.reused.append(key)
            return {**stored[0], **stored[1]}
        self._check_time()
        start = self._clock()
        payload, arrays = _split(key, function())
        saved = self._units.save_unit(key, payload, arrays)
        self.computed.append(key)
        self._observer.event("unit", key=key, seconds=round(self._clock() - start, 3))
        return {**saved[0], **saved[1]}

    def each(
        self,
        items: Sequence[T],
        key: Callable[[T], str],
        function: Callable[[T], Mapping[str, Any]],
        what: str = "",
    ) -> Iterator[dict[str, Any]]:
        """A unit per item, in order, with progress."""
        total = len(items)
        self.progress(0, total, what)
        for done, item in enumerate(items, 1):
            found = self.unit(key(item), lambda item=item: function(item))  # type: ignore[misc]
            self.progress(done, total, what)
            yield found

    def subseed(self, *names: object) -> int:
        """A seed below 2**63 that depends on the run's seed and the names only, not on what ran before."""
        text = json.dumps([self.seed, *map(str, names)])
        return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1

    def generator(self, *names: object) -> np.random.Generator:
        """A random generator of its own for these names, e.g. a unit's key."""
        import numpy as np

        return np.random.default_rng(self.subseed(*names))

    def progress(self, done: int, total: int, what: str = "") -> None:
        """Tell how far the work has come."""
        self._observer.progress(done, total, what)

    def note(self, sentence: str) -> None:
        """Keep something that a reader of the result should know (a dropped item, a fallback)."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            self._observer.event("note", text=sentence)

    def _check_time(self) -> None:
        limit = self.budget.seconds
        if limit is not None and self._clock() - self._start >= limit:
            n = len(self.computed)
            raise BudgetError(
                f"The run reached its limit of {limit:g} seconds after {n} units.",
                "What is finished is kept: run the same command again to continue.",
            )


def _split(key: str, value: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(JSON values, arrays) of what a unit's function returned."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise FamilyError(
            f"The unit {key!r:.80} returned a {type(value).__name__}.",
            "Return a mapping from names to values.",
        )
    payload: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for name, item in value.items():
        if hasattr(item, "detach"):
            host = item.detach().cpu()
            # numpy has no bfloat16; float32 holds each of its values exactly.
            arrays[name] = (host.float() if str(host.dtype) == "torch.bfloat16" else host).numpy()
        elif hasattr(item, "dtype") and hasattr(item, "tobytes") and getattr(item, "ndim", 0) > 0:
            arrays[name] = item
        else:
            payload[name] = item
    return payload, arrays
