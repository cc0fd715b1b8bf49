"""A query's tree as a condition of the database. Imports the database library."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Table, and_, exists, false, func, not_, or_

from mech_interp.storage import tables
from mech_interp.storage.query import AllOf, Comparison, Field, Has, Node, Not

_RUN = tables.runs.c
Condition = ColumnElement[bool]


def condition(node: Node) -> Condition:
    """True or false, never null, for every row of `runs`."""
    if isinstance(node, Comparison):
        if node.operator == "!=":
            return not_(_holds(node.field, _equal(node)))
        return _holds(node.field, _equal(node) if node.operator == "=" else _other(node))
    if isinstance(node, Has):
        return _holds(node.field, [column.is_not(None) for column in _columns(node.field)])
    if isinstance(node, Not):
        return not_(condition(node.item))
    items = [condition(item) for item in node.items]
    return and_(*items) if isinstance(node, AllOf) else or_(*items)


def _holds(field: Field, tests: list[Condition]) -> Condition:
    """Whether a run, or one row that hangs on it, passes one of the tests."""
    test = func.coalesce(or_(*tests), false())
    if field.table == "run":
        return test == True  # noqa: E712
    table = _table(field)
    joined = [table.c.run == _RUN.id, test == True]  # noqa: E712
    if field.table in ("metric", "parameter"):
        joined.append(table.c.name == field.name)
    return exists().where(*joined).correlate(tables.runs)


def _equal(node: Comparison) -> list[Condition]:
    columns = _columns(node.field)
    kind = node.field.type
    if kind == "number":
        return [column == node.number for column in columns]
    if kind == "flag":
        return [columns[0].is_(node.text == "true")]
    if kind == "time" and node.span is not None:
        return [and_(columns[0] >= node.span.start, columns[0] < node.span.end)]
    tests: list[Condition] = [column == node.text for column in columns if column.name != "number"]
    if kind == "parameter" and node.number is not None:
        tests.append(tables.parameters.c.number == node.number)
    return tests


def _other(node: Comparison) -> list[Condition]:
    """Contains, and the four orders."""
    columns = _columns(node.field)
    if node.operator == "~":
        wanted = node.text.casefold()
        texts = [column for column in columns if column.name != "number"]
        return [func.instr(func.mech_fold(column), wanted) > 0 for column in texts]
    if node.field.type == "time" and node.span is not None:
        start, end = node.span.start, node.span.end
        return [
            {
                "<": columns[0] < start,
                "<=": columns[0] < end,
                ">": columns[0] >= end,
                ">=": columns[0] >= start,
            }[node.operator]
        ]
    column = next(column for column in columns if node.field.type != "parameter" or column.name == "number")
    value = node.number
    return [
        {"<": column < value, "<=": column <= value, ">": column > value, ">=": column >= value}[
            node.operator
        ]
    ]


def _columns(field: Field) -> list[ColumnElement[Any]]:
    table = _table(field).c
    names = {
        "metric": ("value",),
        "parameter": ("text", "number"),
        "tag": ("tag",),
        "site": ("site",),
        "layer": ("layer",),
        "dataset": ("name", "sha256"),
        "run": (field.name,),
    }[field.table]
    return [table[name] for name in names]


def _table(field: Field) -> Table:
    return {
        "metric": tables.metrics,
        "parameter": tables.parameters,
        "tag": tables.tags,
        "site": tables.sites,
        "layer": tables.sites,
        "dataset": tables.datasets,
        "run": tables.runs,
    }[field.table]
