"""What a validation library reports, as one sentence for the person who wrote the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mech_interp.config.canonical import show_path
from mech_interp.config.reading import Origin, Path_
from mech_interp.errors import InputError, nearest

_KINDS = {
    "int": "an integer",
    "float": "a number",
    "finite_number": "a finite number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping",
    "dataclass": "a mapping",
    "none_required": "nothing",
    "byte_size": "a size such as 500MB or 2GiB",
    "path": "a path",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


def problem(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    *,
    origin: Origin | None = None,
    at: Path_ = (),
) -> InputError:
    """The first thing wrong, said in full; how many others there are is said in the hint.

    Args:
        error: what validation raised.
        model: the type validated against; names the keys that exist.
        data: what was validated.
        origin: where it was read.
        at: where `data` stands in the document.
    """
    found = error.errors(include_url=False)
    paths = [_inside(one, data) for one in found]
    # An unknown key explains more than what it left missing, so it comes first.
    order = sorted(range(len(found)), key=lambda i: found[i]["type"] != "extra_forbidden")
    first = paths[order[0]]
    same = [found[i] for i in order if paths[i] == first]
    sentence, hint = _say(same, model, data, first, at)
    others = len(set(paths)) - 1
    if others:
        hint = f"{hint} ({others} more {'problem' if others == 1 else 'problems'} after this one.)".strip()
    place = origin.at((*at, *first)) if origin else ""
    return InputError(f"{place}{sentence}", hint)


def keys_at(model: type[BaseModel], path: Path_) -> list[str]:
    """The keys that a model allows at a place inside it."""
    models = [model]
    for part in path:
        if isinstance(part, str):
            models = [found for m in models for info in _field(m, part) for found in _models(info.annotation)]
    return sorted({info.alias or key for m in models for key, info in m.model_fields.items()})


def shown(value: Any) -> str:
    """A value as it was written, shortened."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else f"a list of {len(value)}"
    text = {True: "true", False: "false", None: "nothing"}.get(value) if _is_word(value) else None
    text = text or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _say(
    errors: list[ErrorDetails], model: type[BaseModel], data: Any, path: Path_, at: Path_
) -> tuple[str, str]:
    """(sentence, hint) for the errors of one place; several come from the branches of a union."""
    error = errors[0]
    name = show_path((*at, *path)) or "The document"
    if error["type"] == "extra_forbidden":
        return _unknown(str(path[-1]), path[:-1], model, show_path((*at, *path[:-1])))
    if error["type"] == "missing":
        return f"{name} is missing.", _description(model, path)
    if error["type"] in ("value_error", "assertion_error"):
        reason = str(error.get("ctx", {}).get("error", error["msg"])).strip()
        given = error["input"]
        subject = name if isinstance(given, dict | list) else f"{name} is {shown(given)}"
        return f"{subject}: {reason if reason.endswith(('.', '?')) else f'{reason}.'}", _description(
            model, path
        )
    wanted = " or ".join(dict.fromkeys(_wanted(one) for one in errors))
    given = _value(data, path, error["input"])
    close = nearest(given, _choices(errors), n=1) if isinstance(given, str) else ""
    return f"{name} is {shown(given)}, but must be {wanted}.", close or _description(model, path)


def _unknown(key: str, path: Path_, model: type[BaseModel], under: str) -> tuple[str, str]:
    known = keys_at(model, path)
    where = f" under {under}" if under else ""
    close = nearest(key, known)
    allowed = f"Keys{where}: {', '.join(known)}." if known else f"No keys are allowed{where}."
    return f"There is no key {key!r:.80}{where}.", close or allowed


def _wanted(error: ErrorDetails) -> str:
    """What would have been right, as a noun."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("literal_error", "enum"):
        expected = str(context.get("expected", ""))
        return expected if " or " not in expected else f"one of {expected}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"{words} {context.get(key)}"
    if kind in ("too_short", "too_long"):
        low = kind == "too_short"
        return f"{'at least' if low else 'at most'} {context['min_length' if low else 'max_length']} long"
    if kind in ("string_too_short", "string_too_long"):
        low = kind == "string_too_short"
        bound = context["min_length" if low else "max_length"]
        return f"text of {'at least' if low else 'at most'} {bound} characters"
    if kind == "string_pattern_mismatch":
        return f"text that matches {context.get('pattern')}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return (
            f"marked by {context.get('discriminator')} as {context.get('expected_tags', 'one of its kinds')}"
        )
    for prefix, words in _KINDS.items():
        if kind == prefix or kind.startswith(f"{prefix}_"):
            return words
    return f"valid ({error['msg'].rstrip('.')})"


def _choices(errors: Iterable[ErrorDetails]) -> list[str]:
    """The words that a literal allows, out of its message."""
    expected = (
        str(one.get("ctx", {}).get("expected", ""))
        for one in errors
        if one["type"] in ("literal_error", "enum")
    )
    return [word.strip("' ") for text in expected for part in text.split(" or ") for word in part.split(",")]


def _inside(error: ErrorDetails, data: Any) -> Path_:
    """The error's place in the data; the names of union branches that stand in it are dropped."""
    path: list[str | int] = []
    here = data
    last = len(error["loc"]) - 1
    for number, part in enumerate(error["loc"]):
        item = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if item or (isinstance(here, Mapping) and part in here):
            here = here[part]
        elif not (number == last and error["type"] == "missing"):
            continue
        path.append(part)
    return tuple(path)


def _value(data: Any, path: Path_, otherwise: Any) -> Any:
    here = data
    for part in path:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            return otherwise
    return here


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model type inside an annotation such as ``list[A] | B | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _description(model: type[BaseModel], path: Path_) -> str:
    """The description of the field at a place, or of the nearest described one that it is part of."""
    for end in range(len(path), 0, -1):
        models = [model]
        for part in path[: end - 1]:
            if isinstance(part, str):
                models = [f for m in models for info in _field(m, part) for f in _models(info.annotation)]
        for info in (info for m in models for info in _field(m, path[end - 1])):
            if info.description:
                return f"{path[end - 1]}: {info.description.rstrip('.')}."
    return "Correct it."


def _field(model: type[BaseModel], key: str | int) -> list[FieldInfo]:
    """The field that is written as `key`: one or none."""
    return [info for name, info in model.model_fields.items() if (info.alias or name) == key]
