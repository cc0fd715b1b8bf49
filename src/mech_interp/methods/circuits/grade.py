"""Grades: heads of a circuit against a reference by functional group, edges against a true set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mech_interp.errors import InputError, nearest
from mech_interp.graph import Circuit, CircuitGraph, parse_head
from mech_interp.methods.common import Floats, brief
from mech_interp.statistics import Estimate, wilson
from mech_interp.views import Table, View

Head = tuple[int, int]


@dataclass(frozen=True)
class Reference:
    """A published circuit: heads (layer, head) by functional group, and where they come from."""

    name: str
    groups: Mapping[str, tuple[Head, ...]]
    source: str = ""
    model: str = ""
    n_layers: int | None = None
    n_heads: int | None = None

    @property
    def heads(self) -> set[Head]:
        """All heads."""
        return {head for members in self.groups.values() for head in members}


@dataclass(frozen=True)
class Grade:
    """Heads found against a reference.

    Attributes:
        found: the heads graded. total: heads of the model. outside: found and in no group.
        recall: by group. overall: share of the reference found. precision: share of found heads in it.
        chance: recall of as many heads drawn at random. p: that so many or more are hit by chance.
    """

    reference: Reference
    found: tuple[Head, ...]
    total: int
    recall: Mapping[str, Estimate]
    overall: Estimate
    precision: Estimate | None
    chance: float
    p: float
    outside: tuple[Head, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = set(self.found)
        return {
            "method": "grade",
            "reference": self.reference.name,
            "source": self.reference.source,
            "recall": self.overall.to_dict(),
            "precision": None if self.precision is None else self.precision.to_dict(),
            "chance_recall": self.chance,
            "p": self.p,
            "groups": {
                group: {
                    "recall": self.recall[group].to_dict(),
                    "found": [_name(head) for head in members if head in found],
                    "missed": [_name(head) for head in members if head not in found],
                }
                for group, members in self.reference.groups.items()
            },
            "outside": [_name(head) for head in self.outside],
        }

    def view(self) -> View:
        """Recall by group as a table."""
        found = set(self.found)
        rows: list[list[str | float]] = [
            [
                group,
                brief(self.recall[group]),
                ", ".join(_name(head) for head in members if head in found) or "–",
                ", ".join(_name(head) for head in members if head not in found) or "–",
            ]
            for group, members in self.reference.groups.items()
        ]
        precision = "–" if self.precision is None else brief(self.precision)
        return Table(
            title=f"Heads against {self.reference.name}",
            columns=["group", "recall", "found", "missed"],
            rows=rows,
            note=f"recall {brief(self.overall)} ({self.chance:.2f} by chance, p = {self.p:.2g}), precision "
            f"{precision} of {len(self.found)} heads; Wilson intervals; {self.reference.source}",
        )


def grade_heads(
    heads: Iterable[Head] | Circuit, reference: Reference, *, n_heads: int | None = None
) -> Grade:
    """Recall and precision of heads by functional group.

    A circuit counts for the heads that an edge of it leaves, after pruning to paths. Overlap is not
    faithfulness: quote both.

    Args:
        n_heads: heads of the model in all (layers x heads), for chance; a circuit's own, or the
            reference's, by default.

    Raises:
        InputError: when the number of heads is unknown, or heads lie outside the model.
    """
    graph = heads.graph if isinstance(heads, Circuit) else None
    total = n_heads or _total(graph, reference)
    if graph is not None:
        _check_fits(graph, reference)
    found = heads_of(heads) if isinstance(heads, Circuit) else sorted(set(heads))
    truth = reference.heads
    if len(truth | set(found)) > total:
        raise InputError(
            f"There are {len(truth | set(found))} heads in the circuit and the reference, of {total}.",
            "Give the model's number of heads, layers times heads.",
        )
    hits = [head for head in found if head in truth]
    chosen = set(found)
    recall = {
        group: wilson(sum(head in chosen for head in members), len(members))
        for group, members in reference.groups.items()
    }
    return Grade(
        reference,
        tuple(found),
        total,
        recall,
        wilson(len(hits), len(truth)),
        wilson(len(hits), len(found)) if found else None,
        len(found) / total,
        _chance_of(len(hits), len(found), len(truth), total),
        tuple(head for head in found if head not in truth),
    )


def heads_of(circuit: Circuit) -> list[Head]:
    """Heads of a circuit after pruning to paths."""
    return sorted((node.layer, node.head) for node in circuit.pruned().nodes() if node.kind == "head")


def edge_auc(scores: Floats, truth: Circuit) -> float:
    """Area under the ROC curve of |scores| against a true edge set, over all possible edges.

    Ties count against the scores: within a group of equal scores the false edges come first
    (pessimistic segments, as in Conmy et al. 2023), so that a constant score has area 0.

    Raises:
        InputError: for scores of another shape, or a truth that holds no edge or all of them.
    """
    possible = truth.graph.possible
    if scores.shape != possible.shape:
        raise InputError(
            f"Scores of shape {scores.shape} do not fit a graph of {possible.shape}.",
            "Give one for every writer and reader.",
        )
    return ranking_auc(np.abs(scores[possible]), truth.edges[possible])


def ranking_auc(scores: Floats, truth: np.ndarray) -> float:
    """The same for any scores [n] and truth values [n]: the share of (true, false) pairs in order."""
    positive, negative = scores[truth], np.sort(scores[~truth])
    if not len(positive) or not len(negative):
        raise InputError(
            "A ROC curve needs true and false edges.", "Give a truth that is neither empty nor all."
        )
    below = np.searchsorted(negative, positive, side="left")
    return float(below.sum() / (len(positive) * len(negative)))


def circuits_auc(circuits: Sequence[Circuit], truth: Circuit) -> float:
    """Area under the ROC of circuits found at several thresholds, with pessimistic segments.

    Each circuit is a point (false positive rate, true positive rate), as it is, unpruned; (0, 0) and
    (1, 1) are added; between two points the curve goes right first and then up. Dominated points are
    passed over.
    """
    possible = truth.graph.possible
    true = truth.edges[possible]
    if not true.any() or true.all():
        raise InputError(
            "A ROC curve needs true and false edges.", "Give a truth that is neither empty nor all."
        )
    points = [(0.0, 0.0), (1.0, 1.0)]
    for circuit in circuits:
        if circuit.graph != truth.graph:
            raise InputError("The circuits are of another graph than the truth.", "Compare within one graph.")
        found = circuit.edges[possible]
        points.append((float(found[~true].mean()), float(found[true].mean())))
    area, at, height = 0.0, 0.0, 0.0
    for x, y in sorted(points):
        area += (x - at) * height
        at, height = x, max(height, y)
    return area


def load_reference(name: str | Path) -> Reference:
    """A shipped reference by name (``ioi-gpt2-small``), or a YAML or JSON file.

    A file is a mapping {group: [heads]}, or one with `groups` beside name, source, model, n_layers and
    n_heads. Heads are written 9.7, a9.h7 or L9H7.

    Raises:
        InputError: for an unknown name, or a file that does not fit.
    """
    known = references()
    path = Path(name)
    if str(name) in known:
        folder = resources.files("mech_interp.methods.circuits") / "references"
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        return reference_from(_parsed(text, str(name)), str(name))
    if not path.is_file():
        raise InputError(
            f"There is no reference circuit {str(name)!r}.",
            nearest(str(name), known) or f"Shipped: {', '.join(known)}; or give a YAML or JSON file.",
        )
    return reference_from(_parsed(path.read_text(encoding="utf-8"), str(path)), path.stem)


def references() -> list[str]:
    """Names of the shipped references."""
    folder = resources.files("mech_interp.methods.circuits") / "references"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def reference_from(data: Any, name: str = "reference") -> Reference:
    """A reference from plain data."""
    if not isinstance(data, Mapping) or not data:
        raise InputError(f"The reference {name!r} is no mapping of groups.", "Write {group: [heads]}.")
    groups = data.get("groups", data)
    if not isinstance(groups, Mapping) or not groups:
        raise InputError(f"The reference {name!r} has no groups.", "Write {group: [heads]}.")
    parsed = {str(group): _heads(members, str(group)) for group, members in groups.items()}
    facts = data if "groups" in data else {}
    return Reference(
        str(facts.get("name", name)),
        parsed,
        " ".join(str(facts.get("source", "")).split()),
        str(facts.get("model", "")),
        facts.get("n_layers"),
        facts.get("n_heads"),
    )


def _parsed(text: str, name: str) -> Any:
    import yaml

    try:
        return json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"The reference {name!r} cannot be read: {error}.", "Write YAML or JSON.") from error


def _heads(members: Any, group: str) -> tuple[Head, ...]:
    if isinstance(members, str) or not isinstance(members, Sequence) or not members:
        raise InputError(f"Group {group!r} is no list of heads.", "Write for example [9.6, 9.9].")
    found: list[Head] = []
    for member in members:
        if isinstance(member, Sequence) and not isinstance(member, str) and len(member) == 2:
            found.append((int(member[0]), int(member[1])))
        elif isinstance(member, str):
            found.append(parse_head(member))
        else:
            # YAML reads 9.10 as the number 9.1: a number cannot be trusted to name a head.
            raise InputError(
                f"Group {group!r} names a head by the number {member}.", f'Put it in quotes: "{member}".'
            )
    if len(set(found)) < len(found):
        raise InputError(f"Group {group!r} names a head twice.", "Name each once.")
    return tuple(found)


def _total(graph: CircuitGraph | None, reference: Reference) -> int:
    if graph is not None:
        return graph.n_layers * graph.n_heads
    if reference.n_layers and reference.n_heads:
        return reference.n_layers * reference.n_heads
    raise InputError("The number of heads of the model is unknown.", "Give n_heads, layers times heads.")


def _check_fits(graph: CircuitGraph, reference: Reference) -> None:
    wrong = [h for h in reference.heads if h[0] >= graph.n_layers or h[1] >= graph.n_heads]
    sizes = ((reference.n_layers, graph.n_layers), (reference.n_heads, graph.n_heads))
    if wrong or any(one is not None and one != other for one, other in sizes):
        raise InputError(
            f"The reference {reference.name!r} is of another model than one with {graph.n_layers} layers of "
            f"{graph.n_heads} heads.",
            "Grade against a reference of the same model.",
        )


def _chance_of(hits: int, found: int, truth: int, total: int) -> float:
    """P(at least so many hits) when `found` heads are drawn at random."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(hits - 1, total, truth, found))


def _name(head: Head) -> str:
    return f"{head[0]}.{head[1]}"
