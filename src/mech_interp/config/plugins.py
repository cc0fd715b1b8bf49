"""What installed packages add: families and backends, found through entry points.

A package adds one by naming it in its metadata, for a family

    [project.entry-points."mech_interp.families"]
    my_family = "my_package.module:MyFamily"

Nothing is imported until it is asked for, and one package's fault never hides another's offer.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mech_interp.errors import MechError

FAMILIES = "mech_interp.families"
BACKENDS = "mech_interp.backends"


class PluginError(MechError):
    """Something that an installed package offers cannot be used."""

    exit_code = 5


@dataclass(frozen=True)
class Plugin:
    """One offer of an installed package; `package` and `version` say whose it is."""

    group: str
    name: str
    target: str
    package: str
    version: str
    entry: EntryPoint

    def load(self) -> Any:
        """Import what is offered.

        Raises:
            PluginError: naming the package, whatever its code raised.
        """
        try:
            return self.entry.load()
        except (Exception, SystemExit) as error:
            raise self.problem(f"cannot be imported: {first_line(error)}") from error

    def problem(self, what: str) -> PluginError:
        """An error that says whose fault it is."""
        return PluginError(
            f"{self.name!r} of the package {self.package} {self.version} ({self.target}) {what.rstrip('.')}.",
            f"Update it, or remove it with: pip uninstall {self.package}",
        )


def plugins(group: str) -> list[Plugin]:
    """What installed packages offer in a group, by name and package; nothing is imported."""
    found = {
        (entry.name, package, entry.value): Plugin(group, entry.name, entry.value, package, version, entry)
        for entry in entry_points(group=group)
        for package, version in [_owner(entry)]
    }
    return [found[key] for key in sorted(found)]


def first_line(error: BaseException) -> str:
    """An exception as one line: its type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _owner(entry: EntryPoint) -> tuple[str, str]:
    """(package, version), as far as its metadata can be read."""
    distribution = entry.dist
    if distribution is None:
        return "unknown", "?"
    return str(distribution.metadata["Name"] or "unknown"), str(distribution.metadata["Version"] or "?")
