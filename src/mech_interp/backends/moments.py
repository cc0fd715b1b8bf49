"""The moments of a traced forward at which sites show: module inputs and outputs, in order of execution.

A trace must ask for values in the order in which the model reaches them, so that order is found once,
by plain hooks on a probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mech_interp.backends.edits import Place
from mech_interp.backends.huggingface.block import Taps
from mech_interp.backends.huggingface.layouts.base import Block, Layout, Port
from mech_interp.errors import IdentityError, InputError
from mech_interp.sites import Site

# The stream between the sublayers is no module's output: the norm that reads it gets the very tensor
# that goes on beside it, so this one is written in place.
IN_PLACE = frozenset({"resid_mid"})
LEAVES = frozenset({"embed", "pos_embed"})

Key = tuple[str, str]


@dataclass
class Passage:
    """One forward on its way: the tap, and what later moments need of earlier ones.

    Attributes:
        taps: sees every site.
        shape: rows and positions of the batch.
        grad: keep what is seen on the path of gradients, which start at the embeddings.
        z: by layer, where the heads' own outputs are wanted.
    """

    taps: Taps
    shape: tuple[int, int]
    grad: bool
    z: dict[int, Tensor] = field(default_factory=dict)

    def see(self, kind: str, layer: int | None, value: Tensor) -> tuple[Tensor, bool]:
        """Show a copy of a value; what to go on with, and whether the model must be given it.

        A copy, since some architectures write into tensors that their modules gave.
        """
        part = value.clone()
        if self.grad and kind in LEAVES:
            part = part.detach().requires_grad_()  # weights are frozen, so the graph starts here
        edited = self.taps(kind, layer, part)
        return edited, edited is not part or (self.grad and part.requires_grad)


class Aside:
    """A tap whose own computing is no part of the trace, though it may call modules of the model."""

    def __init__(self, tap: Taps, net: Any) -> None:
        self._tap, self._interleaver = tap, net.interleaver

    def wants(self, kind: str, layer: int | None) -> bool:
        return self._tap.wants(kind, layer)

    def narrow(self) -> None:
        self._tap.narrow()

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        self._interleaver.interleaving = False
        try:
            return self._tap(kind, layer, value)
        finally:
            self._interleaver.interleaving = True


class Moment(Protocol):
    """A point in the forward at which something is looked at."""

    def wanted(self, passage: Passage) -> bool:
        """Whether this forward has to stop here."""
        ...

    def visit(self, net: Any, passage: Passage) -> None:
        """Called inside a trace of `net` (the traced model's root), in order of the moments."""
        ...


@dataclass(frozen=True)
class PortMoment:
    """The output or input of one module, with the sites seen there, in order of computation.

    Attributes:
        path: the module's name in the library's model.
        side: ``output`` or ``input``.
        sites: kind, layer and view of each.
        results: the block, where this is the attention's own output and its z is seen earlier.
    """

    path: str
    side: str
    sites: tuple[tuple[str, int | None, Port], ...]
    results: Block | None = None

    def wanted(self, passage: Passage) -> bool:
        return any(self._wants(kind, layer, passage) for kind, layer, _ in self.sites)

    def visit(self, net: Any, passage: Passage) -> None:
        envoy = net.get(self.path)
        whole = envoy.input if self.side == "input" else envoy.output
        value = whole[0] if isinstance(whole, tuple) else whole
        new = value
        for kind, layer, port in self.sites:
            if self._wants(kind, layer, passage):
                if kind == "attn_out_own" and passage.taps.wants("result", layer):
                    new = self._through_results(layer, new, passage)
                new = _through(kind, layer, port, new, passage)
        if new is value:
            return
        if self.side == "input":
            envoy.input = new
        else:
            envoy.output = (new, *whole[1:]) if isinstance(whole, tuple) else new

    def _wants(self, kind: str, layer: int | None, passage: Passage) -> bool:
        starts = kind == "embed" and passage.grad
        inside = kind in ("z", "attn_out_own") and passage.taps.wants("result", layer)
        return starts or inside or passage.taps.wants(kind, layer)

    def _through_results(self, layer: int | None, out: Tensor, passage: Passage) -> Tensor:
        """Show each head's own output; what an edit changes there is added to the sublayer's output."""
        assert self.results is not None
        assert layer is not None
        weights = self.results.weights()
        results = torch.einsum("rphd,hdm->rphm", passage.z.pop(layer), weights["W_O"])
        edited = passage.taps("result", layer, results)
        if passage.grad and edited.requires_grad:
            total = edited.sum(2)  # gradients must pass through the heads' outputs
            return total + weights["b_O"] if "b_O" in weights else total
        return out if edited is results else out + (edited - results).sum(2)


def _through(kind: str, layer: int | None, port: Port, value: Tensor, passage: Passage) -> Tensor:
    """Show a site's part of a module's tensor to the tap; the tensor to go on with."""
    folded = _unfold(kind, value, passage.shape)
    edited, write = passage.see(kind, layer, port.view(folded))
    if kind == "z" and passage.taps.wants("result", layer):
        assert layer is not None
        passage.z[layer] = edited
    if not write:
        return value
    if kind in IN_PLACE:
        port.view(folded).copy_(edited)
        return value
    # A new whole: what was captured must not be what the model goes on with, and may write into.
    whole = folded.clone()
    port.view(whole).copy_(edited)
    return whole if folded.dim() == value.dim() else whole.flatten(0, 1)


def _unfold(kind: str, value: Tensor, shape: tuple[int, int]) -> Tensor:
    """A module's tensor as [row, position, ...]: some libraries fold rows or share one among them."""
    if kind == "pos_embed":
        return value.expand(*shape, value.shape[-1])
    if value.dim() == 2 and value.shape[0] == shape[0] * shape[1]:
        return value.view(*shape, -1)
    return value


ROUTER_KINDS = ("router_logits", "expert_indices", "expert_weights")


@dataclass(frozen=True)
class RouterMoment:
    """The output of a mixture's router: (scores, weights of the chosen, chosen), tokens folded."""

    path: str
    layer: int
    block: Block

    def wanted(self, passage: Passage) -> bool:
        return any(passage.taps.wants(kind, self.layer) for kind in ROUTER_KINDS)

    def visit(self, net: Any, passage: Passage) -> None:
        mixture = self.block.mixture
        assert mixture is not None
        envoy, see = net.get(self.path), passage.see
        logits, weights, chosen = (part.unflatten(0, passage.shape) for part in envoy.output)
        logits, changed = see("router_logits", self.layer, logits)
        if changed:
            chosen, weights = mixture.choose(logits)
        chosen, other = see("expert_indices", self.layer, chosen)
        if other and bool(((chosen < 0) | (chosen >= mixture.n_experts)).any()):
            raise InputError(
                f"{Site('expert_indices', self.layer)} was set to an expert that does not exist.",
                f"Use 0 to {mixture.n_experts - 1}.",
            )
        weights, further = see("expert_weights", self.layer, weights)
        if changed or other or further:
            envoy.output = tuple(part.flatten(0, 1).clone() for part in (logits, weights, chosen))


@dataclass(frozen=True)
class Ports:
    """Where the sites of a library model are, by the names of its modules."""

    sites: Mapping[Key, tuple[tuple[str, int | None, Port], ...]]
    order: tuple[Key, ...]

    @property
    def places(self) -> set[Place]:
        """The sites that are seen."""
        return {(kind, layer) for sites in self.sites.values() for kind, layer, _ in sites}


def find_ports(layout: Layout, probe: Callable[[], object], extra: Iterable[Key] = ()) -> Ports:
    """The ports of a layout, with the order in which `probe` reaches them (and the keys in `extra`).

    Raises:
        IdentityError: when the layout names a module that is not in the model, or does not run once.
    """
    paths = {id(module): path for path, module in layout.module.named_modules()}
    found: dict[Key, list[tuple[str, int | None, Port]]] = {}
    # The library's output itself is the logits' site: some architectures go on after the unembedding.
    entries = [(kind, None, port) for kind, port in layout.ports().items() if kind != "logits"]
    every = [
        *entries,
        *((k, n, p) for n, block in enumerate(layout.blocks) for k, p in block.ports().items()),
    ]
    for kind, layer, port in sorted(every, key=lambda entry: Site(entry[0], entry[1]).order):
        path = paths.get(id(port.module))
        if path is None:
            raise _misplaced(layout, Site(kind, layer), "is not part of the model")
        found.setdefault((path, port.side), []).append((kind, layer, port))
    order = _order_of(layout.module, {*found, *extra}, probe)
    for key, sites in found.items():
        times = order.count(key)
        if times != 1:
            site = Site(sites[0][0], sites[0][1])
            raise _misplaced(layout, site, f"runs {times} times in a forward" if times else "never runs")
    return Ports({key: tuple(sites) for key, sites in found.items()}, tuple(order))


def _order_of(module: nn.Module, keys: set[Key], probe: Callable[[], object]) -> list[Key]:
    """The keys in the order in which a forward reaches them."""
    seen: list[Key] = []
    handles = []
    for path, part in module.named_modules():
        for side, register in (
            ("input", part.register_forward_pre_hook),
            ("output", part.register_forward_hook),
        ):
            if (path, side) in keys:
                handles.append(register(lambda *_, key=(path, side): seen.append(key)))
    try:
        probe()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _misplaced(layout: Layout, site: Site, why: str) -> IdentityError:
    return IdentityError(
        f"The layout of {layout.title} looks for {site} at a module that {why}.",
        "The site would carry nothing or wrong values, so the model is not opened; the layout is at fault.",
    )
