"""The backends that can run a model, found by name: those of mech, and those that installed packages add.

An entry point of the group `mech_interp.backends` names a `Backend`, or a function without arguments
that returns one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mech_interp.backends import registry
from mech_interp.backends.registry import BuiltIn
from mech_interp.config.plugins import BACKENDS, Plugin, first_line, plugins
from mech_interp.errors import CapabilityError, MechError
from mech_interp.orchestration.models import FoundModel

if TYPE_CHECKING:
    from mech_interp.backends.architectures import Architecture
    from mech_interp.backends.protocol import InstrumentedModel


@dataclass(frozen=True)
class Place:
    """Where and how a model is to run: device, number format, attention implementation."""

    device: str
    dtype: str
    attention: str


def _anything(model: FoundModel) -> None:
    """No check: the backend says what is wrong when it loads."""


def _unknown(model: FoundModel) -> Architecture | None:
    """Nothing is known about the model's sites before it is loaded."""
    return None


@dataclass(frozen=True)
class Backend:
    """What runs models.

    Attributes:
        name: what specs call it.
        capabilities: what it can do, as values of `backends.protocol.Capability`.
        load: opens a found model.
        check: refuses, before weights load, a model that it cannot open, or a package that is missing.
        summary: one line for lists.
        attention: settings that it can run, its own first.
        devices: where it can run, the preferred first.
        dtypes: number formats that it can compute in.
        describe: the model's architecture with the sites that it will lack here, or None if unknown.
        bound: largest relative difference from the default backend in float32 that parity allows.
    """

    name: str
    capabilities: frozenset[str]
    load: Callable[[FoundModel, Place], InstrumentedModel]
    check: Callable[[FoundModel], None] = _anything
    summary: str = ""
    attention: tuple[str, ...] = ("sdpa", "eager")
    devices: tuple[str, ...] = ("cuda", "mps", "cpu")
    dtypes: tuple[str, ...] = ("float32", "float64", "bfloat16", "float16")
    describe: Callable[[FoundModel], Architecture | None] = _unknown
    bound: float = 1e-4

    def attention_for(self, wanted: str) -> str:
        """The attention implementation that it runs where `wanted` is asked for."""
        return wanted if wanted in self.attention else self.attention[0]


def backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        InputError: there is none.
        MissingExtraError: the package that it needs is not installed.
        PluginError: the package that brings it is broken.
    """
    offers = [] if name in registry.BACKENDS else [one for one in plugins(BACKENDS) if one.name == name]
    if offers:
        return _added(offers[0])
    chosen = registry.built_in(name, others=_plugin_names())
    chosen.require()
    return _of_mech(chosen)


def names() -> list[str]:
    """Every backend that there is, installed or not: those of mech, then those of other packages."""
    return [*registry.BACKENDS, *_plugin_names()]


def require(chosen: Backend, needs: Iterable[str], family: str) -> None:
    """Refuse a family that needs what the backend cannot do.

    Raises:
        CapabilityError: naming what is missing and the backends that have it.
    """
    wanted = {str(need) for need in needs}
    lacking = sorted(wanted - chosen.capabilities)
    if not lacking:
        return
    raise CapabilityError(
        f"The family {family} needs {', '.join(lacking)}, which the backend {chosen.name} cannot do.",
        able_hint(wanted, besides=chosen.name),
    )


def require_of_model(model: InstrumentedModel, needs: Iterable[str], family: str) -> None:
    """Refuse a family that needs what this opened model cannot do on its backend.

    Raises:
        CapabilityError: naming what is missing and why, as far as the model says it.
    """
    info = model.info
    lacking = sorted({str(need) for need in needs} - {str(one) for one in info.capabilities})
    if lacking:
        raise CapabilityError(
            f"The family {family} needs {', '.join(lacking)}, which the backend {info.backend} cannot do for "
            f"{info.name} ({info.architecture}).",
            info.notice or "Choose a model of another architecture.",
        )


def require_at_block_level(chosen: Backend, needs: Iterable[str], family: str, model: FoundModel) -> None:
    """Refuse a family that needs more than a model without a layout has on mech's own backends.

    Raises:
        CapabilityError: naming what is missing.
    """
    if chosen.name not in registry.BACKENDS:
        return
    from mech_interp.backends.block_level import CAPABILITIES

    lacking = sorted({str(need) for need in needs} - {str(one) for one in CAPABILITIES})
    if lacking:
        raise CapabilityError(
            f"The family {family} needs {', '.join(lacking)}, which {model.name} offers on no backend: the "
            f"architecture {model.config.get('model_type')!r} has no layout, so it runs at block level.",
            "Architectures with all their sites: mech list-hf-architectures",
        )


def able_hint(needs: Iterable[str], besides: str = "") -> str:
    """Which backends have these capabilities, as advice."""
    wanted = {str(need) for need in needs}
    found = [name for name in names() if name != besides and wanted <= _capabilities(name)]
    return f"Use backend: {' or '.join(found)}." if found else "No backend can."


def _of_mech(one: BuiltIn) -> Backend:
    def load(model: FoundModel, place: Place) -> InstrumentedModel:
        return one.open_folder(
            model.folder,
            name=model.name,
            source=model.source,
            device=place.device,
            dtype=place.dtype,
            attention=place.attention,
        )

    return Backend(
        name=one.name,
        capabilities=one.capabilities,
        load=load,
        check=lambda model: _check(one, model),
        summary=one.summary,
        attention=one.attention,
        devices=one.devices,
        dtypes=one.dtypes,
        describe=lambda model: _describe(one, model),
        bound=one.bound,
    )


def _check(one: BuiltIn, model: FoundModel) -> None:
    from mech_interp.backends import architectures

    one.require()
    architectures.check_runs(one.name, model.name, model.config)


def _describe(one: BuiltIn, model: FoundModel) -> Architecture | None:
    from mech_interp.backends import architectures

    return architectures.on_backend(one.name, model.name, model.config)


def _plugin_names() -> list[str]:
    return sorted({plugin.name for plugin in plugins(BACKENDS)} - set(registry.BACKENDS))


def _capabilities(name: str) -> frozenset[str]:
    if name in registry.BACKENDS:
        return registry.BACKENDS[name].capabilities
    try:
        return backend(name).capabilities
    except MechError:
        return frozenset()


def _added(plugin: Plugin) -> Backend:
    found = plugin.load()
    try:
        made = found if isinstance(found, Backend) else found()
    except Exception as error:
        raise plugin.problem(f"cannot be made: {first_line(error)}") from error
    if not isinstance(made, Backend):
        raise plugin.problem(f"is a {type(made).__name__}, not a Backend")
    return made
