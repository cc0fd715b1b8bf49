"""JSON Schema of the spec, with each family's own parameters: for editors, forms and checkers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from mech_interp.config.overrides import SHARED
from mech_interp.config.spec import AXES, Spec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def spec_schema(families: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The schema of one spec document.

    `parameters` is chosen by `family`. Structure, types and ranges are stated; that sites, layers and
    tokens exist in the model is not a schema's matter.

    Args:
        families: parameter model by family name.
    """
    schema = Spec.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    schema["properties"]["family"]["enum"] = sorted(families)
    schema["properties"]["model"]["minLength"] = 1
    # A matrix axis or `parameters` may give the model instead.
    schema["anyOf"] = [
        {"required": ["model"]},
        {"required": ["matrix"]},
        {"required": ["parameters"], "properties": {"parameters": {"required": ["model"]}}},
    ]
    _allow_bare_axes(definitions["Matrix"])
    schema["allOf"] = [
        {
            "if": {"properties": {"family": {"const": name}}, "required": ["family"]},
            "then": {"properties": {"parameters": _parameters(name, families[name], schema)}},
        }
        for name in sorted(families)
    ]
    return {"$schema": DIALECT, **schema, "title": "mech spec"}


def _allow_bare_axes(matrix: dict[str, Any]) -> None:
    """Axes straight under `matrix` are a grid."""
    axes = "|".join(axis for axis in AXES if axis != "parameters")
    matrix["patternProperties"] = {rf"^({axes}|parameters\..+)$": {"type": "array", "minItems": 1}}


def _parameters(name: str, params: type[BaseModel], schema: dict[str, Any]) -> dict[str, Any]:
    """The reference to a family's parameters, whose definitions join the spec's under the family's name."""
    own = params.model_json_schema(by_alias=True, ref_template=f"#/$defs/{name}.{{model}}")
    inner: dict[str, Any] = own.pop("$defs", {})
    for key, definition in inner.items():
        schema["$defs"][f"{name}.{key}"] = definition
    properties: dict[str, Any] = own.setdefault("properties", {})
    # These may be given above or here, so neither place can require them.
    own["required"] = [key for key in own.get("required", []) if key not in SHARED]
    for key in SHARED:
        if key in properties or key in ("model", "device"):
            properties[key] = copy.deepcopy(schema["properties"][key])
    schema["$defs"][name] = own
    return {"$ref": f"#/$defs/{name}"}
