"""Runs side by side: only what differs in what went in, and every number that came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mech_interp.errors import InputError

if TYPE_CHECKING:
    from mech_interp.storage.reading import RunReader

MAX_SHOWN = 200
"""Characters of one value that a comparison keeps."""
_ABSENT = "(absent)"
# Differ between any two runs and say nothing: names of the run itself, and hashes of what is shown anyway.
_NOISE = (
    "receipt.run",
    "receipt.created",
    "receipt.key",
    "receipt.format",
    "receipt.spec_sha256",
    "receipt.seeds",
    "receipt.matrix.values",
    "receipt.environment.command",
    "receipt.environment.packages_sha256",
)
# Said by the spec as well, in the person's own words.
_SAID_TWICE = ("receipt.name", "receipt.family", "receipt.backend", "receipt.seed", "receipt.parameters")


@dataclass(frozen=True)
class Difference:
    """One thing that went in and is not the same in all runs; `values` in the order of the runs."""

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class MetricRow:
    """One metric in every run: `cells` hold {value, interval, n}, or None where a run lacks it."""

    name: str
    unit: str | None
    better: str | None
    cells: tuple[Mapping[str, Any] | None, ...]


@dataclass(frozen=True)
class Paired:
    """Right run minus left run of one metric, over the groups that both measured.

    `p` is of a sign-flip test on group differences, two-sided; `adjusted_p` after Benjamini and Hochberg
    over all rows of the comparison; `smallest_p` the smallest that so many groups can give.
    """

    metric: str
    left: str
    right: str
    difference: float
    interval: tuple[float, float] | None
    reason: str
    n_groups: int
    p: float
    smallest_p: float
    adjusted_p: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `runs` hold id, name, family, model and status of each run, in order."""

    runs: tuple[Mapping[str, Any], ...]
    differences: tuple[Difference, ...]
    metrics: tuple[MetricRow, ...]
    paired: tuple[Paired, ...]
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compare(runs: Sequence[RunReader]) -> Comparison:
    """Compare finished runs; the first is what the others are paired with.

    Raises:
        InputError: fewer than two runs, or the same run twice.
        StorageError: a run is unfinished or damaged.
    """
    ids = [run.id for run in runs]
    if len(set(ids)) < 2 or len(set(ids)) != len(ids):
        raise InputError("A comparison needs two or more different runs.", "Name each run once.")
    metrics = [run.metrics() for run in runs]
    about = [_about(run) for run in runs]
    return Comparison(
        runs=tuple(about),
        differences=tuple(_differences([dict(_inputs(run)) for run in runs])),
        metrics=tuple(_rows(metrics)),
        paired=tuple(_paired(ids, metrics)),
        notes=tuple(_notes(about)),
    )


def _about(run: RunReader) -> dict[str, Any]:
    spec, receipt = run.spec(), run.receipt()
    model = receipt.get("model")
    return {
        "id": run.id,
        "name": spec.get("name"),
        "family": spec.get("family"),
        "model": model.get("id") if isinstance(model, Mapping) else spec.get("model"),
        "status": run.status,
    }


def _inputs(run: RunReader) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that went in."""
    for where, data in (("spec", run.spec()), ("receipt", run.receipt())):
        for path, value in _leaves(data, where):
            if not path.startswith((*_NOISE, *_SAID_TWICE)):
                yield path.removeprefix("spec."), value


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    else:
        yield path, value


def _differences(inputs: Sequence[Mapping[str, Any]]) -> Iterator[Difference]:
    for path in dict.fromkeys(path for one in inputs for path in one):
        values = [one.get(path, _ABSENT) for one in inputs]
        if any(value != values[0] for value in values):
            yield Difference(path, tuple(_shown(value) for value in values))


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _rows(metrics: Sequence[Mapping[str, Mapping[str, Any]]]) -> Iterator[MetricRow]:
    for name in dict.fromkeys(name for one in metrics for name in one):
        having = next(one[name] for one in metrics if name in one)
        cells = tuple(_cell(one.get(name)) for one in metrics)
        yield MetricRow(name, having.get("unit"), having.get("better"), cells)


def _cell(metric: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if metric is None else {key: metric.get(key) for key in ("value", "interval", "n")}


def _notes(about: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    families = {str(one["family"]) for one in about}
    if len(families) > 1:
        named = ", ".join(sorted(families))
        yield f"The runs are of different families ({named}): equal names may differ in meaning."
    for one in about:
        if one["status"] != "complete":
            yield f"{one['id']} is {one['status']}: its numbers must not be quoted."


def _paired(ids: Sequence[str], metrics: Sequence[Mapping[str, Mapping[str, Any]]]) -> Iterator[Paired]:
    """Each later run against the first, where both stored what each group gave."""
    found = []
    for right, other in enumerate(metrics[1:], start=1):
        for name, metric in metrics[0].items():
            one, two = _groups(metric), _groups(other.get(name))
            shared = [group for group in one if group in two]
            if len(shared) >= 2:
                found.append((name, ids[right], [two[group] - one[group] for group in shared]))
    if not found:
        return
    yield from _tested(ids[0], found)


def _groups(metric: Mapping[str, Any] | None) -> dict[str, float]:
    """What each independent group gave, where the run stored it."""
    stored = (metric or {}).get("per_group")
    groups = stored.items() if isinstance(stored, Mapping) else ()
    return {str(name): float(value) for name, value in groups if isinstance(value, int | float)}


def _tested(left: str, found: Sequence[tuple[str, str, list[float]]]) -> Iterator[Paired]:
    from mech_interp.statistics import benjamini_hochberg, bootstrap_mean, sign_flip_test

    tests = [sign_flip_test(values) for _, _, values in found]
    adjusted = benjamini_hochberg([test.p for test in tests])
    for (name, right, values), test, corrected in zip(found, tests, adjusted, strict=True):
        mean = bootstrap_mean(values)
        yield Paired(
            metric=name,
            left=left,
            right=right,
            difference=mean.value,
            interval=mean.interval,
            reason=mean.reason,
            n_groups=len(values),
            p=test.p,
            smallest_p=test.smallest_p,
            adjusted_p=float(corrected),
        )
