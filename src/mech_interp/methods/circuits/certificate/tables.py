"""The certificate as tables, from its plain form: the terminal and the documentation draw the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mech_interp.methods.circuits.certificate.result import Bar, number

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """What stands in a place; `holds` is None where there is no bar."""

    text: str
    holds: bool | None = None


@dataclass(frozen=True)
class Grid:
    """One table.

    Attributes:
        title: what the numbers are. about: in whole sentences, with the bar.
    """

    section: str
    title: str
    about: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def grids(measures: Sequence[Plain]) -> list[Grid]:
    """All tables of a certificate, section by section; those with nothing in them are left out."""
    found = []
    for section, title, about, chosen, row, column in _LAYOUT:
        mine = [one for one in measures if one["section"] == section and chosen(one)]
        if mine:
            found.append(_grid(section, title, about, mine, row, column))
    return found


def cell(one: Plain) -> Cell:
    """The value of a measure, with its interval where it has one; four decimals, but all of an error."""
    shown = number if one["section"] == "identities" or "difference" in one["quantity"] else _rounded
    text = shown(one["value"])
    if one["interval"] is not None:
        text += f" [{', '.join(shown(end) for end in one['interval'])}]"
    return Cell(text, None if one["bar"] is None else bool(one["holds"]))


def _rounded(value: float | None) -> str:
    if value is None:
        return number(None)
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def bars(measures: Sequence[Plain]) -> list[str]:
    """The bars of some measures in words."""
    return list(dict.fromkeys(str(Bar(**one["bar"])) for one in measures if one["bar"] is not None))


def _grid(
    section: str,
    title: str,
    about: str,
    measures: Sequence[Plain],
    row: Callable[[Plain], str],
    column: Callable[[Plain], str],
) -> Grid:
    heads = list(dict.fromkeys(map(column, measures)))
    lines: dict[str, dict[str, Cell]] = {}
    for one in measures:
        lines.setdefault(row(one), {})[column(one)] = cell(one)
    said = [*bars(measures)]
    n = {_counted(one["n"], one["of"]) for one in measures}
    about += f" n: {' or '.join(sorted(n))}."
    about += f" Bar: {' or '.join(said)}." if said else " No bar."
    rows = tuple((Cell(name), *(own.get(head, Cell("–")) for head in heads)) for name, own in lines.items())
    return Grid(section, title, about, ("", *heads), rows)


def _counted(n: int, of: str) -> str:
    first, _, rest = of.partition(" ")
    return " ".join([str(n), first.removesuffix("s") if n == 1 else first, *([rest] if rest else [])])


def _place(one: Plain) -> str:
    """Gap and condition."""
    gap = "" if one["gap"] is None else f"{one['gap']:g} nats"
    return ", ".join(part for part in (gap, one["condition"]) if part)


def _model(one: Plain) -> str:
    return str(one["model"])


def _model_and_gap(one: Plain) -> str:
    return f"{one['model']}, {one['gap']:g} nats"


def _method_and_gap(one: Plain) -> str:
    return f"{one['method']}, {one['gap']:g} nats"


def _method(one: Plain) -> str:
    return str(one["method"])


def _condition(one: Plain) -> str:
    return str(one["condition"])


def _is(quantity: str) -> Callable[[Plain], bool]:
    return lambda one: one["quantity"] == quantity


def _variants(title: str, quantity: str, about: str) -> tuple[Any, ...]:
    return ("gradients", title, about, _is(quantity), _model_and_gap, _method)


_LAYOUT: tuple[tuple[Any, ...], ...] = (
    (
        "exact",
        "Exact edge patching: edge AUC",
        "Every edge cut by itself, ranked by the size of its mean effect, 0 within rounding. The worst "
        "draw of each model.",
        lambda one: True,
        _model,
        _place,
    ),
    (
        "acdc",
        "ACDC: edge AUC",
        "A sweep of thresholds, joined by pessimistic segments. The worst draw of each model.",
        lambda one: True,
        lambda one: f"{one['model']}, {one['method'].partition(', ')[2]}",
        _place,
    ),
    (
        "gates",
        "OR and AND: branches found, of two",
        "At every threshold ACDC must keep the same whole branches, and nothing that is no part of the gate. "
        "Single cuts see both branches or neither.",
        lambda one: True,
        lambda one: f"{one['model']}, {one['condition']}",
        _method_and_gap,
    ),
    _variants(
        "Attribution: mean edge AUC",
        "mean edge AUC",
        "Noising, 5 steps; all circuits and gates, corrupt ablation, the mean over draws.",
    ),
    _variants(
        "Attribution: mean edge AUC where scores within rounding count as zero",
        "mean edge AUC above rounding",
        "Rounding: 1e-5 of the metric's size, below which no exact measurement could confirm a score.",
    ),
    _variants("Attribution by model: edge AUC", "edge AUC", "The worst draw of each model."),
    _variants(
        "Attribution by model: edge AUC where scores within rounding count as zero",
        "edge AUC above rounding",
        "The worst draw of each model.",
    ),
    _variants(
        "Attribution by model: correlation with exact effects",
        "correlation with exact effects",
        "Over all edges of the graph. The worst draw of each model.",
    ),
    (
        "paths",
        "Path patching along direct edges: edge AUC",
        "Every path from a writer straight to a reader, one at a time. The worst draw of each model.",
        _is("edge AUC"),
        _model,
        _place,
    ),
    (
        "paths",
        "Path patching along direct edges: largest difference from cutting the edge",
        "Relative to the largest value of the metric, in double precision; two implementations of one thing.",
        _is("difference from edge cuts"),
        _model,
        _place,
    ),
    (
        "nodes",
        "Nodes: AUC over heads and MLPs",
        "Corrupt ablation; scores within rounding count as zero. The worst draw of each model.",
        lambda one: True,
        _model_and_gap,
        _method,
    ),
    (
        "scrubbing",
        "Causal scrubbing: share of the answer's lead recovered",
        "As planted: the whole mechanism, down to the embedding. Wrong feature: its last part depends on "
        "something irrelevant. Wrong part: a bystander carries the answer.",
        lambda one: True,
        _model_and_gap,
        _condition,
    ),
    (
        "discovery",
        "Nulls: family-wise error rate of discovery",
        "Replicates in which some edge's exact effect has a sign-flip max-T adjusted p of at most 0.05. "
        "Wilson intervals.",
        _is("family-wise error rate"),
        _model,
        _place,
    ),
    (
        "discovery",
        "Circuits: what the same test finds",
        "The share of true edges found, and the number of false ones. The worst draw of each model.",
        lambda one: one["quantity"] != "family-wise error rate",
        _model,
        lambda one: f"{one['quantity'].removesuffix(' found')}, {one['gap']:g} nats",
    ),
    (
        "identities",
        "Identities: largest error, relative to the largest edge score",
        "The edges that leave a writer sum to the attribution of that writer; those into the logits to the "
        "first-order change at the final stream; both against gradients at sites of a plain forward. All "
        "edges sum to the slope of the metric along one mask common to all, and each is minus the slope "
        "along its own; both against the exact edge engine, differentiated.",
        lambda one: True,
        lambda one: f"{one['model']}, {one['condition']}",
        _method,
    ),
)
