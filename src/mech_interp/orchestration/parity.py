"""Parity: does every backend give the same sites, distributions, continuations and metrics?

One model is run on each backend, one after the other, and compared with the default backend.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mech_interp.backends import registry
from mech_interp.backends.registry import DEFAULT
from mech_interp.errors import CapabilityError, InputError, MechError, nearest
from mech_interp.methods.parity import bound_for, compare, kl_bound_for, read
from mech_interp.orchestration import backends
from mech_interp.orchestration.parity_result import BackendParity, MetricGap, ParityReport
from mech_interp.orchestration.parity_specs import family_specs, probe_prompts
from mech_interp.orchestration.prepare import Prepared, place_of, prepare
from mech_interp.sites import Site

if TYPE_CHECKING:
    from mech_interp.backends.protocol import InstrumentedModel
    from mech_interp.config.spec import Spec
    from mech_interp.experiments.result import Metric
    from mech_interp.methods.parity import Reading
    from mech_interp.orchestration.models import FoundModel
    from mech_interp.orchestration.session import Session

Tell = Callable[[str], None]
_LOGITS = ("logit", "logits", "nats")
_FLOOR = 1e-2
"""Share of the largest value in the same unit below which differences are relative to that value."""


@dataclass(frozen=True)
class Measured:
    """What one model gave on one backend, kept while others are measured.

    `metrics` by family; `refused` says of each family that could not run why, `failed` how one that ran
    broke off.
    """

    reading: Reading
    metrics: Mapping[str, Mapping[str, Metric]]
    refused: Mapping[str, str]
    failed: Mapping[str, str]
    seconds: float


def choose_backends(named: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """(backends to compare with the default one, {absent: install command}).

    All that are installed where none is named; a named one must be installed.

    Raises:
        InputError: no such backend, or nothing to compare with.
        MissingExtraError: a named backend is not installed.
    """
    known = backends.names()
    if named is None:
        absent = {one.name: one.install for one in registry.BACKENDS.values() if not one.installed}
        return [name for name in known if name not in (DEFAULT, *absent)], absent
    for name in named:
        if name not in known:
            raise InputError(
                f"There is no backend {name!r:.80}.",
                nearest(name, known) or f"There are: {', '.join(known)}.",
            )
        if name in registry.BACKENDS:
            registry.BACKENDS[name].require()
    chosen = [name for name in dict.fromkeys(named) if name != DEFAULT]
    if not chosen:
        raise InputError(
            f"Every backend is compared with {DEFAULT}, so another one is needed.",
            f"Name one of: {', '.join(name for name in known if name != DEFAULT)}.",
        )
    return chosen, {}


def parity(
    name: str,
    session: Session,
    *,
    named: Sequence[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    families: Sequence[str] | None = None,
    tell: Tell = lambda text: None,
) -> ParityReport:
    """Run one model on the default backend and on others, and compare all that they show.

    Args:
        name: a bundled model, folder, alias or hub id.
        named: backends to compare; all that are installed by default.
        families: the families whose metrics are compared; all that apply by default.
        tell: told what is being done.

    Raises:
        MechError: the model cannot be found, or not be opened by the default backend; see `choose_backends`.
    """
    began = time.perf_counter()
    others, absent = choose_backends(named)
    found = session.find(name, None)
    prompts = probe_prompts(found.tokenizer, found.config)
    specs = family_specs(name, found.tokenizer, families, device=device, dtype=dtype)
    job = _Job(found, prompts, specs, device, dtype, session)
    tell(DEFAULT)
    reference = job.measure(DEFAULT)
    compared = []
    for other in others:
        tell(other)
        compared.append(_compared(other, job, reference))
    info = reference.reading.info
    return ParityReport(
        model={
            "name": info.name,
            "architecture": info.architecture,
            "layers": info.n_layers,
            "parameters": info.n_parameters,
            "weights_sha256": info.weights_hash,
            "tokenizer_sha256": info.tokenizer_hash,
        },
        reference=DEFAULT,
        dtype=info.dtype,
        device=info.device,
        prompts=tuple(len(ids) for ids in reference.reading.ids),
        families=tuple(reference.metrics),
        refused={**reference.refused, **reference.failed},
        backends=tuple(compared),
        absent=absent,
        seconds=time.perf_counter() - began,
    )


def metric_gaps(
    family: str, wanted: Mapping[str, Metric], found: Mapping[str, Metric], logit: float = 0.0
) -> tuple[MetricGap, ...]:
    """Each metric beside the reference's.

    The difference is relative to the reference's value, or, where that is small, to a hundredth of the
    largest value that the family reports in the same unit: an effect of nothing has no relative error.
    Metrics in logits are differences of numbers as large as `logit`, the largest one, whose rounding they
    carry; so that counts among the values in this unit.
    """
    largest = dict.fromkeys(_LOGITS, logit)
    for metric in wanted.values():
        sizes = [abs(one) for one in (metric.value, *(metric.interval or ())) if one is not None]
        largest[metric.unit] = max([largest.get(metric.unit, 0.0), *sizes])
    gaps = []
    for name in dict.fromkeys([*wanted, *found]):
        left, right = wanted.get(name), found.get(name)
        ours, theirs = (None if one is None else one.value for one in (left, right))
        gap = math.inf
        if left is not None and ours is None and right is not None and theirs is None:
            gap = 0.0
        elif left is not None and ours is not None and theirs is not None:
            scale = max(abs(ours), _FLOOR * largest[left.unit]) or 1.0
            gap = abs(ours - theirs) / scale
        gaps.append(MetricGap(family, name, ours, theirs, gap))
    return tuple(gaps)


def _compared(name: str, job: _Job, reference: Measured) -> BackendParity:
    """One backend beside the reference; what it cannot do is said, not raised."""
    dtype = reference.reading.info.dtype
    chosen = backends.backend(name)
    bound, kl_bound = bound_for(dtype, chosen.bound), kl_bound_for(dtype)
    package = _version(registry.BACKENDS[name].package) if name in registry.BACKENDS else ""
    try:
        measured = job.measure(name)
    except MechError as error:
        return BackendParity(name, bound, kl_bound, package, problem=str(error))
    gaps: list[MetricGap] = []
    logit = float(reference.reading.sites[Site("logits")].abs().max())
    for family, wanted in reference.metrics.items():
        if family in measured.metrics:
            gaps += metric_gaps(family, wanted, measured.metrics[family], logit)
    return BackendParity(
        backend=name,
        bound=bound,
        kl_bound=kl_bound,
        package=package,
        sites=compare(reference.reading, measured.reading),
        metrics=tuple(gaps),
        refused={one: why for one, why in measured.refused.items() if one in reference.metrics},
        failed={one: why for one, why in measured.failed.items() if one in reference.metrics},
        attention=measured.reading.info.attention,
        seconds=measured.seconds,
    )


@dataclass(frozen=True)
class _Job:
    """What every backend is asked."""

    found: FoundModel
    prompts: Sequence[Any]
    specs: Sequence[Spec]
    device: str
    dtype: str
    session: Session

    def measure(self, name: str) -> Measured:
        """Open the model on one backend, read it, run the families, close it."""
        began = time.perf_counter()
        prepared: dict[str, Prepared] = {}
        refused: dict[str, str] = {}
        failed: dict[str, str] = {}
        for spec in self.specs:
            try:
                prepared[spec.family] = prepare(spec.changed({"backend": name}), self.session)
            except MechError as error:
                refused[spec.family] = str(error)
        model = self._open(name)
        try:
            reading = read(model, self.prompts)
            metrics: dict[str, Mapping[str, Metric]] = {}
            for family, ready in prepared.items():
                try:
                    metrics[family] = _metrics(ready, model)
                except CapabilityError as error:
                    refused[family] = str(error)
                except MechError as error:
                    failed[family] = str(error)
        finally:
            close = getattr(model, "close", None)
            if callable(close):
                close()
        return Measured(reading, metrics, refused, failed, time.perf_counter() - began)

    def _open(self, name: str) -> InstrumentedModel:
        chosen, settings = backends.backend(name), self.session.settings
        chosen.check(self.found)
        device = settings.device if self.device == "auto" else self.device
        dtype = settings.dtype if self.dtype == "auto" else self.dtype
        return chosen.load(self.found, place_of(device, dtype, "sdpa", self.found, chosen))


def _metrics(ready: Prepared, model: InstrumentedModel) -> Mapping[str, Metric]:
    """The metrics of one family, run in memory."""
    from mech_interp.experiments.context import Context

    backends.require_of_model(model, ready.family.needs, ready.family.name)
    context: Context[Any] = Context(ready.params, seed=ready.spec.seed, load_model=lambda: model)
    metrics: Mapping[str, Metric] = ready.family.run(context).metrics
    return metrics


def _version(package: str) -> str:
    """`transformer_lens 4.3.0`; empty for backends that need no package."""
    import importlib.metadata

    name = package.partition(".")[0]
    if not name:
        return ""
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name
