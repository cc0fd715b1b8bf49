"""A spec's parameters checked against what a family takes."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mech_interp.config.overrides import SHARED
from mech_interp.config.problems import problem
from mech_interp.config.spec import Spec
from mech_interp.errors import InputError

Params = TypeVar("Params", bound=BaseModel)
# Where the spec alone would decide, a family need not take them.
_OPTIONAL = ("model", "device")


def resolve_parameters(spec: Spec, params: type[Params]) -> Params:
    """The family's parameters with defaults filled in.

    `model`, `hook_site`, `device` and `prompts` of the spec reach a family that declares a parameter of
    that name.

    Raises:
        InputError: naming the parameter, what was given, what is allowed and the nearest valid key; also
            when the spec has a hook_site or prompts and the family takes none.
    """
    data: dict[str, Any] = dict(spec.parameters)
    for key in SHARED:
        value = getattr(spec, key)
        declared = key in params.model_fields
        if value is not None and declared:
            data[key] = value
        elif value is not None and key not in _OPTIONAL:
            raise InputError(
                f"{spec.origin.at((key,))}the family {spec.family} takes no {key}.", "Leave it out."
            )
    try:
        return params.model_validate(data)
    except ValidationError as error:
        raise problem(error, params, data, origin=spec.origin, at=("parameters",)) from None
