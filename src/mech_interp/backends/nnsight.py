"""The `nnsight` backend: the library's own forward inside one nnsight trace.

Sites are read and written as inputs and outputs of traced modules, and, inside attention, of the
operations of its source. Tap code runs within the trace, on real tensors.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.agreement import require_agreement
from mech_interp.backends.around_library import AroundLibrary
from mech_interp.backends.checks import probe_tokens, verify
from mech_interp.backends.huggingface.checkpoint import Loaded, load_folder
from mech_interp.backends.huggingface.layouts import layout_for
from mech_interp.backends.huggingface.layouts.base import Layout
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.opening import library_logits, open_module
from mech_interp.backends.inside_attention import (
    SOFTMAX_KINDS,
    AttentionMoment,
    Inside,
    eager,
    look_inside,
)
from mech_interp.backends.moments import (
    ROUTER_KINDS,
    Aside,
    Moment,
    Passage,
    PortMoment,
    Ports,
    RouterMoment,
    find_ports,
)
from mech_interp.backends.protocol import Capability, ModelInfo
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError, MissingExtraError
from mech_interp.sites import KINDS


class NNsightModel(AroundLibrary):
    """A library model traced by nnsight; implements `InstrumentedModel`. Made by `open_loaded`.

    Scores and patterns are seen in the library's eager attention, which is switched on for the forwards
    that ask for them. One forward at a time: a trace is not for several threads.
    """

    def __init__(
        self, net: Any, pieces: HuggingFaceModel, info: ModelInfo, moments: Sequence[Moment]
    ) -> None:
        super().__init__(pieces, info)
        self._net, self._moments = net, moments
        self._running = False

    @property
    def net(self) -> Any:
        """nnsight's own model, for traces written by hand."""
        return self._net

    def run(self, tokens: Tokens, tap: ed.Tap, *, grad: bool = False) -> Tensor:
        """One traced forward; see `Adapter.run`."""
        if self._running:
            raise InputError(
                "An operation ran the model inside a forward of that model, which nnsight cannot do.",
                "Capture what the operation needs first, or use backend: huggingface.",
            )
        passage = Passage(Aside(tap, self._net), (tokens.ids.shape[0], tokens.ids.shape[1]), grad)
        moments = [moment for moment in self._moments if moment.wanted(passage)]
        layers = range(self.info.n_layers)
        explicit = any(tap.wants(kind, layer) for kind in SOFTMAX_KINDS for layer in layers)
        self._running = True
        try:
            with eager(self.module) if explicit else nullcontext():
                logits = self._trace(tokens, moments, passage)
        finally:
            self._running = False
        return tap("logits", None, logits)

    def _trace(self, tokens: Tokens, moments: Sequence[Moment], passage: Passage) -> Tensor:
        """The library's logits, with the moments visited on the way."""
        # In causal models padding behind a prompt is hidden already, and without a mask the library warns.
        mask = torch.ones_like(tokens.ids) if self.info.causal else tokens.mask.long()
        net, made = self._net, []

        def forward(*_: Any, **__: Any) -> None:
            # The batch goes in as it is, not as the tracer would pad or annotate it.
            made.append(self.module(tokens.ids, attention_mask=mask, use_cache=False).logits)

        # The block under `with` is what nnsight takes from this file's source and runs inside the model.
        with net.trace(input_ids=tokens.ids, fn=forward):
            for moment in moments:
                moment.visit(net, passage)
        logits: Tensor = made[0]
        return logits

    def close(self) -> None:
        """Take nnsight off the library's modules again; the model is not used afterwards."""
        _unwrap(self.module)


def open_folder(
    folder: Path,
    *,
    name: str,
    source: str,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "sdpa",
    allow_pickle: bool = False,
) -> NNsightModel:
    """Load a folder and open it in nnsight; see `load_folder` for the arguments.

    Raises:
        MissingExtraError: nnsight is not installed; nothing has been read.
        ModelError, CapabilityError, IdentityError: see `load_folder` and `open_loaded`.
    """
    _library()
    loaded = load_folder(
        folder,
        name=name,
        source=source,
        device=device,
        dtype=dtype,
        attention=attention,
        allow_pickle=allow_pickle,
    )
    return open_loaded(loaded)


def open_loaded(loaded: Loaded) -> NNsightModel:
    """Open a library model in memory: it is put in evaluation mode, frozen, and wrapped until `close`.

    Raises:
        MissingExtraError: nnsight is not installed.
        CapabilityError: when the architecture has no layout.
        IdentityError: when an identity of `backends.checks` fails, or a site differs from the default
            engine's.
    """
    library = _library()
    layout_for(loaded.module)  # refuses an architecture without one
    pieces = open_module(
        loaded.module,
        loaded.tokenizer,
        name=loaded.name,
        source=loaded.source,
        weights_hash=loaded.weights_hash,
        tokenizer_hash=loaded.tokenizer_hash,
        check=False,
    )
    assert isinstance(pieces, HuggingFaceModel)
    layout, probe = pieces.layout, probe_tokens(pieces.info)
    expected = library_logits(layout.module, probe)  # of the model as it came, before it is wrapped
    routers = _routers(layout)
    ports = find_ports(
        layout,
        lambda: library_logits(layout.module, probe.select([0])),
        [(path, "output") for path in routers.values()],
    )
    net = _wrap(library, loaded)
    try:
        inside = look_inside(library, net, pieces, ports.places, probe.select([0]).ids)
        moments = _in_order(layout, ports, inside.moments, routers)
        info = _describe(pieces.info, layout, ports, inside, routers)
        model = NNsightModel(net, pieces, info, moments)
        verify(model, lambda _: expected)
        require_agreement(model, pieces)
    except BaseException:
        _unwrap(layout.module)
        raise
    return model


def _library() -> Any:
    try:
        # By name, since this module is called the same.
        return importlib.import_module("nnsight")
    except ImportError:
        raise MissingExtraError("nnsight", "nnsight") from None


def _wrap(library: Any, loaded: Loaded) -> Any:
    """nnsight's model around a library model in memory; nothing is looked up by name."""
    if loaded.tokenizer is None:
        return library.NNsight(loaded.module)  # the other class would look for a tokenizer
    # A copy, whose padding side and token it changes; and the device, or it would choose one itself.
    tokenizer = copy.deepcopy(loaded.tokenizer)
    return library.TransformersModel(loaded.module, tokenizer=tokenizer, device=loaded.module.device)


def _unwrap(module: Any) -> None:
    for part in module.modules():
        if vars(part).pop("__nnsight__", None) is not None:
            vars(part).pop("forward", None)


def _routers(layout: Layout) -> dict[int, str]:
    """The name of the router of each layer that is a mixture with one."""
    paths = {id(module): path for path, module in layout.module.named_modules()}
    found = {}
    for layer, block in enumerate(layout.blocks):
        gate = getattr(getattr(block.mixture, "module", None), "gate", None)
        if id(gate) in paths:
            found[layer] = paths[id(gate)]
    return found


def _in_order(
    layout: Layout, ports: Ports, attention: Mapping[int, AttentionMoment], routers: Mapping[int, str]
) -> list[Moment]:
    """All moments, in the order in which a forward reaches them."""
    by_path = {path: layer for layer, path in routers.items()}
    moments: list[Moment] = []
    waiting = dict(attention)
    for path, side in ports.order:
        sites = ports.sites.get((path, side), ())
        for kind, layer, _ in sites:
            if kind in ("z", "attn_out_own") and layer in waiting:
                moments.append(waiting.pop(layer))  # between the projections and what leaves attention
        if sites:
            own = next((layer for kind, layer, _ in sites if kind == "attn_out_own"), None)
            moments.append(PortMoment(path, side, sites, None if own is None else layout.blocks[own]))
        if side == "output" and path in by_path:
            layer = by_path[path]
            moments.append(RouterMoment(path, layer, layout.blocks[layer]))
    return moments


def _describe(
    base: ModelInfo,
    layout: Layout,
    ports: Ports,
    inside: Inside,
    routers: Mapping[int, str],
) -> ModelInfo:
    """The default engine's facts, with the sites that are seen here."""
    places = set(ports.places) | {("logits", None)}
    for layer, moment in inside.moments.items():
        places |= {(kind, layer) for kind in moment.kinds}
    places |= {(kind, layer) for layer in routers for kind in ROUTER_KINDS}
    for layer in range(base.n_layers):
        if {("z", layer), ("attn_out_own", layer)} <= places:
            places.add(("result", layer))
    kinds = {kind for kind, _ in places} & base.site_kinds
    why = f"no module of the library's {layout.title} shows it to nnsight; the backend huggingface does"
    hidden = dict.fromkeys(base.site_kinds - kinds, why)
    hidden |= {kind: reason for kind, reason in inside.reasons.items() if kind in hidden}
    some = {
        (kind, layer): why.replace("no module", f"no module of layer {layer}", 1)
        for kind in kinds
        for layer in range(base.n_layers)
        if KINDS[kind].in_block and not {(kind, layer)} & (places | base.missing_sites.keys())
    }
    starts = ("embed", None) in places
    return replace(
        base,
        backend="nnsight",
        capabilities=base.capabilities - {Capability.EDGES} - (set() if starts else {Capability.GRADIENTS}),
        site_kinds=frozenset(kinds),
        missing_kinds={**base.missing_kinds, **hidden},
        missing_sites={**base.missing_sites, **some},
    )
