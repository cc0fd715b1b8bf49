"""The language of `mech query-runs`, from text to a tree that says what is asked.

    family = logit_lens and metric.final_rank < 3 and (tag = paper or not status = failed)

Operators: = != < <= > >= and ~ (contains, in any case). `!=` is the opposite of `=`: a run that lacks the
field matches. `has FIELD` asks whether a run has it at all. A field with many values (tag, site, layer,
dataset, a list parameter) matches when one of them does. Dates may be cut short: `created = 2026-03` is that
month, in UTC. Text with spaces goes in quotes. `not` binds tightest, then `and`, then `or`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mech_interp.errors import InputError, nearest
from mech_interp.sites import Site
from mech_interp.storage.moments import Span, span

FieldType = Literal["text", "number", "time", "flag", "parameter"]
Operator = Literal["=", "!=", "<", "<=", ">", ">=", "~"]

_TYPED: dict[FieldType, str] = {
    "text": "id name family status backend model device dtype key suffix matrix parent error description "
    "tag site dataset",
    "number": "number seed seconds layer",
    "time": "created finished",
    "flag": "archived",
}
FIELDS: dict[str, FieldType] = {name: kind for kind, names in _TYPED.items() for name in names.split()}
PREFIXES: dict[str, FieldType] = {"metric": "number", "parameter": "parameter"}

MAX_LENGTH, MAX_TERMS, MAX_DEPTH = 4000, 100, 20
_ORDERED = ("<", "<=", ">", ">=")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?")
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<open>\()|(?P<close>\))|(?P<operator><=|>=|!=|==|=|<|>|~)"""
    r"""|(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<word>[^\s()=!<>~"']+)"""
)


@dataclass(frozen=True)
class Field:
    """What is asked about: `name` is the part after the dot of `metric.` and `parameter.`."""

    type: FieldType
    table: str
    name: str


@dataclass(frozen=True)
class Comparison:
    """One field against one value: `text` as written, `number` and `span` where it can be read so."""

    field: Field
    operator: Operator
    text: str
    number: int | float | None = None
    span: Span | None = None


@dataclass(frozen=True)
class Has:
    """Whether a run has the field."""

    field: Field


@dataclass(frozen=True)
class Not:
    """The opposite."""

    item: Node


@dataclass(frozen=True)
class AllOf:
    """Every item holds."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one item holds."""

    items: tuple[Node, ...]


Node = Comparison | Has | Not | AllOf | AnyOf


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    column: int

    def is_word(self, word: str) -> bool:
        return self.kind == "word" and self.text.lower() == word


def parse(text: str) -> Node | None:
    """The tree of an expression, or None for an empty one.

    Raises:
        InputError: naming the column of the mistake and, for a field, the nearest one there is.
    """
    if len(text) > MAX_LENGTH:
        raise InputError(f"The query is longer than {MAX_LENGTH} characters.", "Split it into several.")
    tokens = list(_tokens(text))
    return _Parser(tokens, len(text) + 1).whole() if tokens else None


def fields(node: Node) -> Iterator[Field]:
    """Every field that a tree asks about."""
    if isinstance(node, Comparison | Has):
        yield node.field
    elif isinstance(node, Not):
        yield from fields(node.item)
    else:
        for item in node.items:
            yield from fields(item)


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _unreadable(text[place], place + 1)
        kind, found = str(match.lastgroup), match[0]
        bad = next((i for i, char in enumerate(found) if not (char.isprintable() or char.isspace())), None)
        if bad is not None:
            raise _unreadable(found[bad], place + bad + 1)
        if kind == "quoted":
            found = re.sub(r"\\(.)", r"\1", found[1:-1], flags=re.DOTALL)
        if kind != "space":
            yield _Token(kind, found, place + 1)
        place = match.end()


def _unreadable(char: str, column: int) -> InputError:
    if char in "\"'":
        return _wrong(
            column, "a quote is opened and not closed", "Close it, or write \\ before it in quotes."
        )
    if char == "!":
        return _wrong(column, "'!' stands alone", "Write != or not.")
    return _wrong(column, f"{char!r} cannot stand in a query", "Leave it out.")


def _wrong(column: int, what: str, hint: str) -> InputError:
    return InputError(f"Column {column} of the query: {what}.", hint)


class _Parser:
    """Recursive descent over the tokens; `end` is the column after the last."""

    def __init__(self, tokens: list[_Token], end: int) -> None:
        self.tokens, self.place, self.end = tokens, 0, end
        self.depth = self.terms = 0

    def whole(self) -> Node:
        node = self.either()
        if self.place < len(self.tokens):
            token = self.tokens[self.place]
            hint = "Join conditions with and or or; put text with spaces in quotes."
            raise _wrong(token.column, f"{token.text!r} is not expected here", hint)
        return node

    def either(self) -> Node:
        items = [self.both()]
        while self.take_word("or"):
            items.append(self.both())
        return items[0] if len(items) == 1 else AnyOf(tuple(items))

    def both(self) -> Node:
        items = [self.one()]
        while self.take_word("and"):
            items.append(self.one())
        return items[0] if len(items) == 1 else AllOf(tuple(items))

    def one(self) -> Node:
        negated = False
        while self.take_word("not"):
            negated = not negated
        token = self.next("a field")
        node = self.group(token) if token.kind == "open" else self.condition(token)
        return Not(node) if negated else node

    def group(self, opened: _Token) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _wrong(opened.column, f"parentheses are nested deeper than {MAX_DEPTH}", "Simplify it.")
        node = self.either()
        self.depth -= 1
        if self.next("')'").kind != "close":
            raise _wrong(self.tokens[self.place - 1].column, "')' is expected here", "Close the parenthesis.")
        return node

    def condition(self, token: _Token) -> Node:
        self.terms += 1
        if self.terms > MAX_TERMS:
            raise _wrong(token.column, f"there are more than {MAX_TERMS} conditions", "Split the query.")
        if token.is_word("has"):
            return Has(_field(self.next("a field")))
        field = _field(token)
        operator = self.next(f"an operator after {token.text!r}")
        if operator.kind != "operator":
            hint = "Write for example: family = logit_lens."
            raise _wrong(operator.column, f"an operator is expected, not {operator.text!r}", hint)
        value = self.next(f"a value after {operator.text!r}")
        if value.kind not in ("word", "quoted"):
            raise _wrong(value.column, f"a value is expected, not {value.text!r}", "Put signs in quotes.")
        return _comparison(field, "=" if operator.text == "==" else operator.text, value, operator.column)

    def take_word(self, word: str) -> bool:
        found = self.place < len(self.tokens) and self.tokens[self.place].is_word(word)
        self.place += found
        return found

    def next(self, wanted: str) -> _Token:
        if self.place == len(self.tokens):
            raise _wrong(self.end, f"the query ends where {wanted} is expected", "Complete it.")
        self.place += 1
        return self.tokens[self.place - 1]


def _field(token: _Token) -> Field:
    head, dot, rest = token.text.partition(".")
    if token.kind not in ("word", "quoted") or token.is_word("and") or token.is_word("or"):
        raise _wrong(token.column, f"a field is expected, not {token.text!r}", _known(""))
    if dot and head.lower() in PREFIXES and rest:
        return Field(PREFIXES[head.lower()], head.lower(), rest)
    name = token.text.lower()
    if name not in FIELDS:
        raise _wrong(token.column, f"{token.text!r} is no field", _known(token.text))
    return Field(FIELDS[name], name if name in ("tag", "site", "layer", "dataset") else "run", name)


def _known(word: str) -> str:
    examples = [f"{prefix}.{word.partition('.')[2] or 'NAME'}" for prefix in PREFIXES]
    listed = f"Fields: {', '.join([*FIELDS, 'metric.NAME', 'parameter.NAME'])}."
    return (nearest(word.lower(), [*FIELDS, *examples]) if word else "") or listed


def _comparison(field: Field, operator: str, value: _Token, column: int) -> Comparison:
    allowed: dict[FieldType, tuple[str, ...]] = {
        "text": ("=", "!=", "~"),
        "flag": ("=", "!="),
        "number": ("=", "!=", *_ORDERED),
        "time": ("=", "!=", "~", *_ORDERED),
        "parameter": ("=", "!=", "~", *_ORDERED),
    }
    if operator not in allowed[field.type]:
        hint = f"It takes {' '.join(allowed[field.type])}."
        raise _wrong(column, f"{field.name!r} is a {field.type} and takes no {operator!r}", hint)
    text, number, moment = value.text, _number(value), None
    ordered = operator in _ORDERED
    if number is None and (field.type == "number" or (field.type == "parameter" and ordered)):
        hint = f"Give a number to compare {field.name} with."
        raise _wrong(value.column, f"{text!r} is no number", hint)
    if field.type == "flag" and text.lower() not in ("true", "false"):
        raise _wrong(value.column, f"{text!r} is neither true nor false", "Write true or false.")
    if field.type == "time" and operator != "~":
        moment = span(text)
        if moment is None:
            raise _wrong(
                value.column, f"{text!r} is no date", "Write for example 2026-03-01 or 2026-03-01T12:30."
            )
    if field.name == "site" and field.table == "site" and operator != "~":
        text = _site(text)
    text = text.lower() if field.type == "flag" else text
    return Comparison(field, operator, text, number, moment)  # type: ignore[arg-type]


def _number(token: _Token) -> int | float | None:
    """The number that a bare word spells, if it is one; quotes make it text."""
    if token.kind != "word" or not _NUMBER.fullmatch(token.text):
        return None
    if re.fullmatch(r"[+-]?[0-9]{1,18}", token.text):
        return int(token.text)
    number = float(token.text)
    return number if abs(number) != float("inf") else None


def _site(text: str) -> str:
    """The hook name of a site given in any of its forms; other text as it is."""
    try:
        return str(Site.parse(text))
    except (InputError, ValueError):
        return text
