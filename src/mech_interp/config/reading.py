"""YAML text to plain data, with the line of every key, and only what a spec may hold.

The rules are YAML 1.2's core schema, so that ``no``, ``on``, ``1:30`` and ``2024-01-01`` are text, as they
are in a prompt, and ``1e-3`` is a number. Tags, keys given twice, keys that are not text and documents
that unfold to more than a hundred thousand values are refused. Nothing here recurses, so no text is
too deep for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mech_interp.errors import InputError, nearest

Path_ = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the top."""

MAX_BYTES = 4 * 2**20
MAX_VALUES = 100_000
MAX_DEPTH = 40

NULLS = {"", "~", "null", "Null", "NULL"}
TRUES = {"true", "True", "TRUE"}
FALSES = {"false", "False", "FALSE"}
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
# 64 bits: what JSON readers, databases and tensors agree on.
BIGGEST = 2**63 - 1

_STRING_TAG = "tag:yaml.org,2002:str"
# The C parser where PyYAML was built with it: the same events, ten times faster.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Origin:
    """Where a document was read: a file's name and the line of each key. Never compared."""

    source: str = field(default="", compare=False)
    lines: Mapping[Path_, int] = field(default_factory=dict, compare=False)

    def at(self, path: Path_ = ()) -> str:
        """``file.yaml:12: `` for the nearest key with a known line, or an empty string."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return f"{self.source or 'line'}:{self.lines[path[:end]]}: "
        return f"{self.source}: " if self.source else ""


@dataclass(frozen=True)
class Document:
    """One YAML document: its data and where each part of it stands."""

    data: Any
    origin: Origin


def read_file(path: Path) -> str:
    """A text file's content; bytes that are not UTF-8, and files too large for a spec, are refused."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path} is a folder.", "Name a file in it.")
        if size > MAX_BYTES:
            raise InputError(
                f"{path} has {size} bytes; a spec has at most {MAX_BYTES}.", "Keep prompts in JSONL."
            )
        return decoded(path.read_bytes(), str(path))
    except FileNotFoundError:
        beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(
            f"There is no file {path}.", nearest(path.name, beside) or "Check the path."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Check the path and its permissions.") from None


def decoded(raw: bytes, source: str) -> str:
    """UTF-8 text, with or without a byte order mark."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            f"{source}:{line}: byte {error.start} is not UTF-8.", "Save the file as UTF-8."
        ) from None


def read_documents(text: str, source: str = "") -> list[Document]:
    """All documents of a YAML text, empty ones left out.

    Raises:
        InputError: with the line, for anything that is not plain YAML within the limits.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"{source}: the text has {len(text)} characters.", f"At most {MAX_BYTES} are read.")
    try:
        return list(_documents(yaml.parse(text, Loader=_LOADER), source))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source or 'line'}:{mark.line + 1}: " if mark else (f"{source}: " if source else "")
        what = (error.problem or error.context or "cannot be parsed").strip()
        raise InputError(
            f"{where}this is not YAML: {what}.", "Check indentation, quotes and colons."
        ) from None
    except (yaml.YAMLError, UnicodeError) as error:
        reason = getattr(error, "reason", "it cannot be parsed")
        raise InputError(f"{source}: this is not YAML: {reason}.", "Remove control characters.") from None


def read_value(text: str, what: str) -> Any:
    """One value written on a command line, read as YAML."""
    documents = read_documents(text, what)
    if len(documents) > 1:
        raise InputError(f"{what}: {text!r} holds several documents.", "Give one value.")
    return documents[0].data if documents else None


def scalar(text: str, where: str = "") -> str | int | float | bool | None:
    """The value of an unquoted word."""
    if text in NULLS:
        return None
    if text in TRUES or text in FALSES:
        return text in TRUES
    if INTEGER.fullmatch(text):
        return _integer(text, where)
    if FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise InputError(f"{where}{_short(text)} is too large for a number.", "Write a smaller one.")
        return number
    if NOT_FINITE.fullmatch(text):
        raise InputError(
            f"{where}{text} is not a finite number.", "Write a finite one, or leave the key out."
        )
    return text


def _integer(text: str, where: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    if len(text) < 70:
        number = int(text[2:] if base != 10 else text, base)
        if -BIGGEST - 1 <= number <= BIGGEST:
            return number
    raise InputError(
        f"{where}{_short(text)} does not fit into 64 bits.", "Write a smaller number, or put it in quotes."
    )


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _documents(events: Iterator[yaml.Event], source: str) -> Iterator[Document]:
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            document = _Builder(source).build(events)
            if document.data is not None:
                yield document


@dataclass
class _Open:
    """A list or mapping being filled; `key` is the mapping key whose value comes next."""

    value: list[Any] | dict[str, Any]
    path: Path_
    anchor: str | None
    line: int
    before: int
    height: int = 1
    key: str | None = None


class _Builder:
    """Builds one document from parser events, with an explicit stack."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lines: dict[Path_, int] = {}
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int, int]] = {}  # value, values inside, height
        self._count = 0
        self._root: Any = None

    def build(self, events: Iterator[yaml.Event]) -> Document:
        for event in events:
            if isinstance(event, yaml.DocumentEndEvent):
                break
            self._take(event)
        return Document(self._root, Origin(self._source, self._lines))

    def _take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            self._close()
        elif self._wants_key():
            self._key(event, line)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event, line)
        elif isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, line)
            self._remember(event.anchor, value, 1, 0)
            self._add(value, 1, 0, line)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            self._check_tag(event.tag, line)
            empty: list[Any] | dict[str, Any] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            # Counted while open, so that the limit holds before the whole is read.
            self._count_up(1, len(self._stack) + 1, line)
            self._stack.append(_Open(empty, self._path(), event.anchor, line, self._count - 1))

    def _wants_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None

    def _key(self, event: yaml.Event, line: int) -> None:
        top = self._stack[-1]
        key = self._scalar(event, line) if isinstance(event, yaml.ScalarEvent) else event
        if not isinstance(key, str):
            shown = _short(str(getattr(event, "value", "a list or mapping")))
            raise self._error(line, f"the key {shown} is not text", "Put it in quotes.")
        assert isinstance(top.value, dict)
        if key in top.value:
            first = self._lines.get((*top.path, key))
            raise self._error(
                line, f"the key {_short(key)!r} was given before, in line {first}", "Keep one of them."
            )
        top.key = key
        self._lines[(*top.path, key)] = line

    def _alias(self, event: yaml.AliasEvent, line: int) -> None:
        if event.anchor not in self._anchors:
            raise self._error(
                line, f"*{event.anchor} refers to no finished value", f"Write &{event.anchor} before it."
            )
        value, count, height = self._anchors[event.anchor]
        self._add(value, count, height, line)

    def _add(self, value: Any, count: int, height: int, line: int) -> None:
        self._count_up(count, len(self._stack) + height, line)
        self._place(value, height, line)

    def _place(self, value: Any, height: int, line: int) -> None:
        self._lines.setdefault(self._path(), line)
        if not self._stack:
            self._root = value
            return
        top = self._stack[-1]
        top.height = max(top.height, height + 1)
        if isinstance(top.value, list):
            top.value.append(value)
        else:
            assert top.key is not None
            top.value[top.key] = value
            top.key = None

    def _close(self) -> None:
        done = self._stack.pop()
        self._remember(done.anchor, done.value, self._count - done.before, done.height)
        self._place(done.value, done.height, done.line)

    def _path(self) -> Path_:
        if not self._stack:
            return ()
        top = self._stack[-1]
        return (*top.path, len(top.value) if isinstance(top.value, list) else top.key or "")

    def _remember(self, anchor: str | None, value: Any, count: int, height: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = (value, count, height)

    def _count_up(self, count: int, depth: int, line: int) -> None:
        self._count += count
        if self._count > MAX_VALUES:
            raise self._error(
                line, f"this unfolds to more than {MAX_VALUES} values", "Keep large data in a file."
            )
        if depth > MAX_DEPTH:
            raise self._error(line, f"this is nested more than {MAX_DEPTH} deep", "Flatten it.")

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Any:
        self._check_tag(event.tag, line)
        where = f"{self._source or 'line'}:{line}: "
        return scalar(event.value, where) if event.implicit[0] and event.tag is None else event.value

    def _check_tag(self, tag: str | None, line: int) -> None:
        if tag not in (None, "!", _STRING_TAG):
            raise self._error(line, f"the tag {_short(str(tag))} is not read", "Leave it out.")

    def _error(self, line: int, what: str, hint: str) -> InputError:
        return InputError(f"{self._source or 'line'}:{line}: {what}.", hint)
