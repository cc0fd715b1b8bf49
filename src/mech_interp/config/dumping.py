"""Plain data to YAML that reads back to the same data, here and with YAML 1.1 readers."""

from __future__ import annotations

from typing import Any, ClassVar

import yaml

from mech_interp.config.reading import scalar
from mech_interp.errors import InputError


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quoted wherever an unquoted word could be read as something else, or would lose a character."""
    try:
        is_word = isinstance(scalar(text), str)
    except InputError:  # a number too large to be read
        is_word = False
    breaks = any(char in text for char in "\r\x85\u2028\u2029\ufeff")
    unseen = breaks or not text.replace("\n", "").isprintable()
    style = '"' if unseen else (None if is_word else "'")
    if "\n" in text and not breaks and _is_block(text):
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _is_block(text: str) -> bool:
    """Whether a block literal keeps the text: no lines that begin or end in white space."""
    lines = text.removesuffix("\n").split("\n")
    return all(line and line.isprintable() and line == line.strip() for line in lines)


def _number(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", _float_text(number))


def _float_text(number: float) -> str:
    """The shortest text, always with a point, since YAML 1.1 takes 1e-05 for a word."""
    text = repr(number)
    mantissa, e, exponent = text.partition("e")
    if "." not in mantissa:
        mantissa += ".0"
    return mantissa + (f"e{exponent if exponent[0] in '+-' else f'+{exponent}'}" if e else "")


class _Dumper(yaml.SafeDumper):
    """Writes block style, and never an alias."""

    yaml_representers: ClassVar[dict[Any, Any]] = {
        **yaml.SafeDumper.yaml_representers,
        str: _text,
        float: _number,
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def dump(data: Any) -> str:
    """Block-style YAML, keys in their order."""
    return str(
        yaml.dump(
            data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=False
        )
    )
