"""Hypotheses for causal scrubbing: which parts of the model matter, and what each depends on."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from mech_interp.errors import InputError, nearest
from mech_interp.graph import CircuitGraph, Reader, Writer, owners
from mech_interp.sites import KINDS, Site

ROOT = "logits"
_Named = TypeVar("_Named", Writer, Reader)
_SITE_WRITERS = {"z": "head", "result": "head", "attn_out": "heads", "mlp_out": "mlp", "embed": "input"}


@dataclass(frozen=True)
class Node:
    """One claim: these parts of the model carry a function of the input that depends on these features.

    Attributes:
        sites: writers (``a1.h0``, ``m3``, ``input``), readers (``a1.h0<q>``), edges
            (``a0.h2->a1.h0<k>``: that writer as this reader hears it), patterns over these names
            (``a5.h*``), or sites (``blocks.1.attn.hook_z[0]``). All writers of a node are one piece: one
            input is drawn for them together. A reader stands alone in its node.
        depends_on: names of features; two inputs agree when all of them are equal. None: all agree.
        inputs: names of the nodes that feed it and matter; whatever else feeds it does not. Without
            inputs the node is a leaf: the model's own value on the input drawn for it.
    """

    sites: tuple[str, ...]
    depends_on: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """A named set of nodes and the ones that the logits depend on.

    The same node may feed several others; the tree is unrolled, so each use draws inputs of its own.
    """

    inputs: tuple[str, ...]
    nodes: Mapping[str, Node] = field(default_factory=dict)
    name: str = "hypothesis"

    def __post_init__(self) -> None:
        if ROOT in self.nodes:
            raise InputError(
                f"A node is named {ROOT!r}.", f"That is the root: list what feeds it under {ROOT}:."
            )
        for name, own in [(ROOT, self.inputs), *((name, node.inputs) for name, node in self.nodes.items())]:
            for one in own:
                if one not in self.nodes:
                    hint = nearest(one, self.nodes) or f"There are: {', '.join(self.nodes) or 'none'}."
                    raise InputError(f"{name} takes input from {one!r}, which is no node.", hint)
            if len(set(own)) < len(own):
                raise InputError(f"{name} names an input twice.", "Name each once.")
        order = self.order
        unused = sorted(set(self.nodes) - set(order))
        if unused:
            raise InputError(
                f"The node {unused[0]!r} feeds nothing.", "Name it among the inputs of another node."
            )

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Nodes that are reached from the logits, each after all nodes that feed it.

        Raises:
            InputError: when a node feeds itself.
        """
        found: list[str] = []

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise InputError(f"The node {name!r} feeds itself.", "Inputs must come earlier in the model.")
            if name not in found:
                for one in self.nodes[name].inputs:
                    visit(one, (*path, name))
                found.append(name)

        for name in self.inputs:
            visit(name, ())
        return tuple(found)

    @property
    def features(self) -> tuple[str, ...]:
        """All features that nodes depend on."""
        return tuple(dict.fromkeys(f for node in self.nodes.values() for f in node.depends_on))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Hypothesis:
        """From plain data: ``name``, ``logits`` (the root's inputs), ``nodes`` with their fields.

        Raises:
            InputError: for unknown or missing fields.
        """
        _known(data, {"name", ROOT, "nodes"}, "A hypothesis")
        nodes = {}
        for name, own in dict(data.get("nodes") or {}).items():
            if not isinstance(own, Mapping):
                raise InputError(f"The node {name!r} is {own!r}.", "Give its sites, depends_on and inputs.")
            _known(own, {"sites", "depends_on", "inputs"}, f"The node {name!r}")
            sites = _texts(own.get("sites"))
            if not sites:
                raise InputError(
                    f"The node {name!r} matches no site: it names none.", "Name one under sites:."
                )
            nodes[str(name)] = Node(sites, _texts(own.get("depends_on")), _texts(own.get("inputs")))
        return cls(_texts(data.get(ROOT)), nodes, str(data.get("name", "hypothesis")))

    @classmethod
    def from_yaml(cls, text: str) -> Hypothesis:
        """From a YAML document; see `from_dict`."""
        import yaml

        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"The hypothesis is no YAML: {error}.", "Correct it.") from error
        if not isinstance(data, Mapping):
            raise InputError("The hypothesis is no mapping.", "Give name:, logits: and nodes:.")
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads."""
        nodes = {
            name: {
                "sites": list(node.sites),
                "depends_on": list(node.depends_on),
                "inputs": list(node.inputs),
            }
            for name, node in self.nodes.items()
        }
        return {"name": self.name, ROOT: list(self.inputs), "nodes": nodes}


@dataclass(frozen=True)
class Part:
    """A node found in a graph: writers, with the readers that hear each (None: all), or one reader."""

    name: str
    writers: Mapping[Writer, frozenset[Reader] | None] = field(default_factory=dict)
    reader: Reader | None = None

    def feeds(self, graph: CircuitGraph, reader: Reader) -> list[Writer]:
        """Its writers that the reader takes in."""
        return [
            writer
            for writer, heard_by in self.writers.items()
            if (heard_by is None or reader in heard_by) and graph.writer_index[writer] < graph.before(reader)
        ]

    def readers(self, graph: CircuitGraph) -> list[Reader]:
        """The readers whose inputs decide its value, in order."""
        if self.reader is not None:
            return [self.reader]
        return [r for r in graph.readers if any(w in self.writers for w in owners(graph, r))]


def find_part(name: str, node: Node, graph: CircuitGraph) -> Part:
    """Match a node to the graph.

    Raises:
        InputError: naming the node, for a site that matches nothing, or readers mixed with writers.
    """
    writers: dict[Writer, frozenset[Reader] | None] = {}
    readers: list[Reader] = []
    for text in node.sites:
        found, heard_by, own = _match(name, text.replace(" ", ""), graph)
        readers += own
        for writer in found:
            before = writers.get(writer, frozenset())
            writers[writer] = None if heard_by is None or before is None else before | heard_by
    if len(readers) > 1 or (readers and writers):
        raise InputError(
            f"The node {name!r} joins a reader ({readers[0]}) with other parts.",
            "Give every reader a node of its own.",
        )
    ordered = {writer: writers[writer] for writer in graph.writers if writer in writers}
    return Part(name, ordered, readers[0] if readers else None)


def _match(
    name: str, text: str, graph: CircuitGraph
) -> tuple[list[Writer], frozenset[Reader] | None, list[Reader]]:
    """Writers, the readers that hear them, or readers, that a text stands for."""
    left, arrow, right = text.partition("->")
    if arrow:
        writers, readers = _glob(left, graph.writers), _glob(right, graph.readers)
        pairs = [(w, r) for w in writers for r in readers if graph.writer_index[w] < graph.before(r)]
        if not pairs:
            raise _no_match(name, text, graph)
        return list(dict.fromkeys(w for w, _ in pairs)), frozenset(r for _, r in pairs), []
    # A bare name that both could bear (an MLP) is the writer; a pattern may match several.
    found = _glob(text, graph.writers) or _site_writers(text, graph)
    if found:
        return found, None, []
    readers = [r for r in _glob(text, graph.readers) if r.kind != "logits"] or _site_readers(text, graph)
    if not readers:
        raise _no_match(name, text, graph)
    return [], None, readers


def _no_match(name: str, text: str, graph: CircuitGraph) -> InputError:
    known = [*map(str, graph.writers), *map(str, graph.readers)]
    hint = nearest(text, known) or "Write for example a1.h0, m3, a1.h0<q> or a0.h2->a1.h0<k>."
    return InputError(f"The node {name!r} matches no site of this model: {text!r}.", hint)


def _glob(pattern: str, known: Sequence[_Named]) -> list[_Named]:
    return [one for one in known if fnmatch.fnmatchcase(str(one), pattern)]


def _site(text: str) -> Site | None:
    if not re.match(r"blocks\.|hook_", text) and text.split(".")[0] not in KINDS:
        return None
    try:
        return Site.parse(text)
    except InputError:
        return None


def _site_writers(text: str, graph: CircuitGraph) -> list[Writer]:
    site = _site(text)
    if site is None:
        return []
    if site.kind == "embed" or (site.kind == "resid_pre" and site.layer == 0):
        return [Writer("input")]
    kind = _SITE_WRITERS.get(site.kind)
    wanted = "mlp" if kind == "mlp" else "head"
    if kind is None:
        return []
    return [
        w
        for w in graph.writers
        if w.kind == wanted and w.layer == site.layer and (site.head is None or w.head == site.head)
    ]


def _site_readers(text: str, graph: CircuitGraph) -> list[Reader]:
    site = _site(text)
    if site is None or site.kind not in ("q", "k", "v"):
        return []
    return [
        r
        for r in graph.readers
        if r.kind == site.kind and r.layer == site.layer and (site.head is None or r.head == site.head)
    ]


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(one) for one in value)


def _known(data: Mapping[str, Any], fields: set[str], what: str) -> None:
    unknown = sorted(set(map(str, data)) - fields)
    if unknown:
        hint = nearest(unknown[0], fields) or f"Its fields are: {', '.join(sorted(fields))}."
        raise InputError(f"{what} has an unknown field {unknown[0]!r}.", hint)
