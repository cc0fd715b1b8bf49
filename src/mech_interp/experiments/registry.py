"""Which families there are: those of this package, and those that installed packages add."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import BaseModel

from mech_interp.config.plugins import FAMILIES, Plugin, first_line, plugins
from mech_interp.errors import InputError, MechError, nearest
from mech_interp.experiments import families
from mech_interp.experiments.errors import FamilyError
from mech_interp.experiments.family import Family, check_family

OURS = "mech_interp"


@dataclass(frozen=True)
class Listed:
    """A family and whose it is; `problem` says why it cannot be used, and is empty where it can."""

    name: str
    package: str
    family: Family[Any] | None
    problem: str = ""


def names() -> list[str]:
    """Every family's name, sorted; none is imported."""
    return sorted({*built_in(), *(plugin.name for plugin in plugins(FAMILIES))})


def built_in() -> list[str]:
    """The families of this package: the modules of `mech_interp.experiments.families`."""
    return sorted(one.name for one in pkgutil.iter_modules(families.__path__) if not one.name.startswith("_"))


def get(name: str) -> Family[Any]:
    """The family of that name; those of this package cannot be replaced.

    Raises:
        InputError: when there is none, with the nearest; or when several packages offer it.
        PluginError, FamilyError: when it is there but broken, naming whose it is.
    """
    if name in built_in():
        return _own(name)
    offers = [plugin for plugin in plugins(FAMILIES) if plugin.name == name]
    if not offers:
        known = names()
        hint = nearest(name, known) or (f"Families: {', '.join(known)}." if known else "None is installed.")
        raise InputError(f"There is no family {name!r:.80}.", hint)
    if len(offers) > 1:
        packages = " and ".join(plugin.package for plugin in offers)
        raise InputError(
            f"The family {name!r} is offered by {packages}.", "Uninstall all but one of these packages."
        )
    return _added(offers[0])


def listing() -> list[Listed]:
    """Every family that is offered, loaded; a broken one stands there with its problem."""
    found = [_listed(name, OURS) for name in built_in()]
    for plugin in plugins(FAMILIES):
        if plugin.name in built_in():
            problem = f"The package {plugin.package} offers {plugin.name!r}, a name that mech itself uses."
            found.append(Listed(plugin.name, plugin.package, None, problem))
        else:
            found.append(_listed(plugin.name, f"{plugin.package} {plugin.version}"))
    return sorted(found, key=lambda one: (one.name, one.package))


def parameter_models() -> dict[str, type[BaseModel]]:
    """The parameters of every family that works, by name: what `spec_schema` takes."""
    return {one.name: one.family.Params for one in listing() if one.family is not None}


def _listed(name: str, package: str) -> Listed:
    try:
        return Listed(name, package, get(name))
    except MechError as error:
        return Listed(name, package, None, error.message)


def _own(name: str) -> Family[Any]:
    module = import_module(f"{families.__name__}.{name}")
    family = check_family(getattr(module, "FAMILY", None))
    if family.name != name:
        raise FamilyError(
            f"The module {module.__name__} holds the family {family.name}.", "Rename one of them."
        )
    return family


def _added(plugin: Plugin) -> Family[Any]:
    """A package's family, held to the contract."""
    offered = plugin.load()
    try:
        family = check_family(offered)
    except FamilyError as error:
        raise plugin.problem(f"cannot be used: {error.message}") from error
    except Exception as error:  # properties of foreign classes may raise anything
        raise plugin.problem(f"cannot be used: {first_line(error)}") from error
    if family.name != plugin.name:
        raise plugin.problem(f"calls itself {family.name!r}")
    return family
