"""Specs and settings: read, check, expand, hash. Nothing here knows a family or loads a model.

    from mech_interp.config import read_specs, expand
    for spec in read_specs("sweep.yaml"):
        for child in expand(spec):
            print(child.name, child.parameters)

Names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mech_interp.config.canonical import canonical_json, digest, plain, spec_content
    from mech_interp.config.files import read_specs, spec_files
    from mech_interp.config.matrix import Point, expand, points
    from mech_interp.config.overrides import apply, assignments
    from mech_interp.config.parameters import resolve_parameters
    from mech_interp.config.schema import spec_schema
    from mech_interp.config.settings import Settings, resolve_settings
    from mech_interp.config.spec import ArtifactPolicy, Hypothesis, Matrix, Spec

_HOMES = {
    "ArtifactPolicy": "spec",
    "Hypothesis": "spec",
    "Matrix": "spec",
    "Point": "matrix",
    "Settings": "settings",
    "Spec": "spec",
    "apply": "overrides",
    "assignments": "overrides",
    "canonical_json": "canonical",
    "digest": "canonical",
    "expand": "matrix",
    "plain": "canonical",
    "points": "matrix",
    "read_specs": "files",
    "resolve_parameters": "parameters",
    "resolve_settings": "settings",
    "spec_content": "canonical",
    "spec_files": "files",
    "spec_schema": "schema",
}

__all__ = [
    "ArtifactPolicy",
    "Hypothesis",
    "Matrix",
    "Point",
    "Settings",
    "Spec",
    "apply",
    "assignments",
    "canonical_json",
    "digest",
    "expand",
    "plain",
    "points",
    "read_specs",
    "resolve_parameters",
    "resolve_settings",
    "spec_content",
    "spec_files",
    "spec_schema",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
