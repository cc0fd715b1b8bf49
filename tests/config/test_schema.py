"""The exported JSON Schema accepts what is accepted and refuses what is refused."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from mech_interp.config import Spec, resolve_parameters, spec_schema
from mech_interp.config.matrix import expand
from mech_interp.errors import InputError

NOTES = {"$schema", "$defs", "title", "description", "default"}
TYPES: dict[str, Any] = {"string": str, "object": dict, "array": list, "boolean": bool, "null": type(None)}


class Case(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str = Field(description="What is asked.")


class Lens(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    top_k: int = Field(5, ge=1, description="How many tokens.")
    cases: list[Case] = Field(default_factory=list, description="Cases.")


class Patching(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["z", "resid_pre"] = Field(description="What is patched.")
    prompts: list[str] = Field(description="On what.")


FAMILIES: dict[str, type[BaseModel]] = {"lens": Lens, "patching": Patching}
SCHEMA = spec_schema(FAMILIES)


def fits(value: Any, schema: Any, root: dict[str, Any]) -> bool:
    """A small validator; a keyword that it does not know is an error, so nothing passes unseen."""
    return all(_holds(key, rule, value, schema, root) for key, rule in schema.items() if key not in NOTES)


def _holds(key: str, rule: Any, value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    is_map, is_list, is_text = isinstance(value, dict), isinstance(value, list), isinstance(value, str)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    listed, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    match key:
        case "$ref":
            return fits(value, root["$defs"][rule.removeprefix("#/$defs/")], root)
        case "type" if rule in ("integer", "number"):
            return is_number and (rule == "number" or isinstance(value, int))
        case "type":
            return isinstance(value, TYPES[rule])
        case "enum":
            return value in rule
        case "const":
            return value == rule
        case "anyOf":
            return any(fits(value, one, root) for one in rule)
        case "allOf":
            return all(fits(value, one, root) for one in rule)
        case "if":
            return not fits(value, rule, root) or fits(value, schema["then"], root)
        case "then":
            return True
        case "required":
            return not is_map or set(rule) <= set(value)
        case "properties":
            return not is_map or all(fits(value[k], one, root) for k, one in rule.items() if k in value)
        case "patternProperties":
            pairs = [
                (k, one) for k in (value if is_map else ()) for p, one in rule.items() if re.search(p, k)
            ]
            return all(fits(value[k], one, root) for k, one in pairs)
        case "additionalProperties":
            rest = (
                [k for k in value if k not in listed and not any(re.search(p, k) for p in patterns)]
                if is_map
                else []
            )
            return all(rule is not False and (rule is True or fits(value[k], rule, root)) for k in rest)
        case "items":
            return not is_list or all(fits(one, rule, root) for one in value)
        case "pattern":
            return not is_text or re.search(rule, value) is not None
        case "minItems" | "minLength" | "maxLength":
            applies = is_list if key == "minItems" else is_text
            return not applies or (len(value) <= rule if key == "maxLength" else len(value) >= rule)
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            if not is_number:
                return True
            return {
                "minimum": value >= rule,
                "exclusiveMinimum": value > rule,
                "maximum": value <= rule,
                "exclusiveMaximum": value < rule,
            }[key]
    raise AssertionError(f"the validator does not know {key}")


def accepted(data: dict[str, Any]) -> bool:
    try:
        for spec in expand(Spec.from_dict(data)):
            resolve_parameters(spec, FAMILIES[spec.family])
    except (InputError, KeyError):
        return False
    return True


LENS = {"name": "a", "family": "lens", "model": "gpt2"}
PATCHING = {"name": "a", "family": "patching", "model": "gpt2", "prompts": ["x"], "parameters": {"kind": "z"}}


@pytest.mark.parametrize(
    "data",
    [
        LENS,
        LENS | {"parameters": {"top_k": 3, "cases": [{"prompt": "x"}]}},
        LENS | {"artifact_policy": {"max_artifact_bytes": "2GiB"}, "tags": ["a"], "seed": 0},
        LENS | {"matrix": {"parameters.top_k": [1, 2], "seeds": 3}},
        LENS | {"matrix": {"grid": {"model": ["a"]}, "zip": {"seed": [1]}, "list": [{"dtype": "float64"}]}},
        LENS | {"hypothesis": {"claim": "c", "metric": "m", "direction": "below", "threshold": 2}},
        {"name": "a", "family": "lens", "parameters": {"model": "gpt2", "device": "cpu"}},
        {"name": "a", "family": "lens", "matrix": {"model": ["gpt2"]}},
        PATCHING,
        {"name": "a", "family": "patching", "model": "b", "parameters": {"kind": "z", "prompts": ["x"]}},
    ],
)
def test_both_accept(data):
    assert accepted(data)
    assert fits(data, SCHEMA, SCHEMA)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"name": "a", "family": "lens"},
        LENS | {"family": "other"},
        LENS | {"model": ""},
        LENS | {"kind": "z"},
        LENS | {"seed": -1},
        LENS | {"seed": "1"},
        LENS | {"device": "gpu"},
        LENS | {"prompts": []},
        LENS | {"parameters": {"kind": "z"}},
        LENS | {"parameters": {"top_k": 0}},
        LENS | {"parameters": {"cases": [{"prompt": 1}]}},
        LENS | {"parameters": {"cases": [{"prompt": "x", "more": 1}]}},
        LENS | {"matrix": {"kind": [1]}},
        LENS | {"matrix": {"seed": []}},
        LENS | {"matrix": {"seeds": 0}},
        LENS | {"artifact_policy": {"write": True}},
        LENS | {"hypothesis": {"claim": "c"}},
        PATCHING | {"parameters": {"kind": "q"}},
        {"name": "a", "family": "patching", "model": "b", "prompts": ["x"], "parameters": {}},
    ],
)
def test_both_refuse(data):
    assert not accepted(data)
    assert not fits(data, SCHEMA, SCHEMA)


def test_it_is_plain_json_and_every_reference_leads_somewhere():
    text = json.dumps(SCHEMA)
    references = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', text))
    assert references == set(SCHEMA["$defs"])
    assert {"lens", "patching", "lens.Case"} <= references


def test_every_field_of_the_spec_is_described():
    assert set(SCHEMA["properties"]) == set(Spec.model_fields)
    assert all(one.get("description") for one in SCHEMA["properties"].values())
