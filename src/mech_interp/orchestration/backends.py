"""The backends that can run a model, found by name; installed packages add theirs.

An entry point of the group `mech_interp.backends` names a `Backend`, or a function without arguments
that returns one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mech_interp.config.plugins import BACKENDS, Plugin, first_line, plugins
from mech_interp.errors import CapabilityError, InputError, MechError, nearest
from mech_interp.orchestration.models import FoundModel

if TYPE_CHECKING:
    from mech_interp.backends.protocol import InstrumentedModel

DEFAULT = "huggingface"


@dataclass(frozen=True)
class Place:
    """Where and how a model is to run: device, number format, attention implementation."""

    device: str
    dtype: str
    attention: str


def _anything(model: FoundModel) -> None:
    """No check: the backend says what is wrong when it loads."""


@dataclass(frozen=True)
class Backend:
    """What runs models.

    Attributes:
        name: what specs call it.
        capabilities: what it can do, as values of `backends.protocol.Capability`.
        load: opens a found model.
        check: refuses, before weights load, a model that it cannot open.
        summary: one line for lists.
    """

    name: str
    capabilities: frozenset[str]
    load: Callable[[FoundModel, Place], InstrumentedModel]
    check: Callable[[FoundModel], None] = _anything
    summary: str = ""


def backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        InputError: there is none.
        PluginError: the package that brings it is broken.
    """
    if name == DEFAULT:
        return _huggingface()
    offers = [plugin for plugin in plugins(BACKENDS) if plugin.name == name]
    if offers:
        return _added(offers[0])
    known = names()
    raise InputError(
        f"There is no backend {name!r:.80}.", nearest(name, known) or f"Installed: {', '.join(known)}."
    )


def names() -> list[str]:
    """The installed backends."""
    return [DEFAULT, *sorted({plugin.name for plugin in plugins(BACKENDS)} - {DEFAULT})]


def require(chosen: Backend, needs: Iterable[str], family: str) -> None:
    """Refuse a family that needs what the backend cannot do.

    Raises:
        CapabilityError: naming what is missing and the backends that have it.
    """
    wanted = {str(need) for need in needs}
    lacking = sorted(wanted - chosen.capabilities)
    if not lacking:
        return
    able = [name for name in names() if name != chosen.name and wanted <= _capabilities(name)]
    raise CapabilityError(
        f"The family {family} needs {', '.join(lacking)}, which the backend {chosen.name} cannot do.",
        f"Use backend: {' or '.join(able)}." if able else "No installed backend can.",
    )


def _huggingface() -> Backend:
    from mech_interp.backends.protocol import Capability

    return Backend(
        DEFAULT,
        frozenset(map(str, Capability)),
        _load_huggingface,
        _check_huggingface,
        "runs a checkpoint's own modules, piece by piece",
    )


def _load_huggingface(model: FoundModel, place: Place) -> InstrumentedModel:
    from mech_interp.backends.huggingface.checkpoint import open_folder

    return open_folder(
        model.folder,
        name=model.name,
        source=model.source,
        device=place.device,
        dtype=place.dtype,
        attention=place.attention,
    )


def _check_huggingface(model: FoundModel) -> None:
    from mech_interp.backends.huggingface.layouts import supported

    kind = model.config.get("model_type")
    if kind not in supported():
        raise CapabilityError(
            f"{model.name} has the architecture {kind!r}, which has no layout in this version.",
            f"Architectures that can be opened: {', '.join(supported())}.",
        )


def _capabilities(name: str) -> frozenset[str]:
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
