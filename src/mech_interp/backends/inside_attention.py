"""Queries, keys, scores and patterns inside a library's attention, read from the operations of its source.

Most architectures call a function that they look up by name (`attention_interface`), older ones a method
`_attn` or the softmax itself. Which of them a forward runs is found out by trying, never by version.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mech_interp.backends.checks import TOLERANCE
from mech_interp.backends.edits import Place
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.moments import Passage
from mech_interp.backends.protocol import ModelInfo
from mech_interp.sites import Site, sites

TURNED_KINDS = ("rot_q", "rot_k")
SOFTMAX_KINDS = ("attn_scores", "pattern")
# Below this a score stands for a key that is not seen (in float16 the lowest number is -65504).
HIDDEN = -3e4


@dataclass(frozen=True)
class AttentionMoment:
    """The inside of one layer's attention.

    Attributes:
        path: the attention module's name in the library's model.
        layer: its layer.
        call: the operation of its forward that is given queries, keys and values; empty for none.
        first: which argument of the call the queries are; keys and values follow.
        turn: without a call, the operation that gives the turned queries and keys; empty for none.
        softmax: the operation that makes patterns of scores, part of its name suffices; without a call it
            is one of the forward, otherwise of the function that is called. Empty where there is none.
        with_values: whether the values are taken here.
        shifted: the library adds a constant of each query to its scores, so they are not the site's.
    """

    path: str
    layer: int
    call: str = ""
    first: int = 0
    turn: str = ""
    softmax: str = ""
    with_values: bool = False
    shifted: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of sites that are seen."""
        turned = TURNED_KINDS if self.call or self.turn else ()
        values = ("v",) if self.with_values and self.call else ()
        inner = SOFTMAX_KINDS[1:] if self.shifted else SOFTMAX_KINDS
        return turned + values + (inner if self.softmax else ())

    def wanted(self, passage: Passage) -> bool:
        return any(passage.taps.wants(kind, self.layer) for kind in self.kinds)

    def visit(self, net: Any, passage: Passage) -> None:
        source = net.get(self.path).source
        dtype = next(net.get(self.path)._module.parameters()).dtype
        if self.call:
            call = getattr(source, self.call)
            self._arguments(call, passage)
            source = call
        elif self.turn and any(passage.taps.wants(kind, self.layer) for kind in TURNED_KINDS):
            self._turned(getattr(source, self.turn), passage)
        if any(passage.taps.wants(kind, self.layer) for kind in SOFTMAX_KINDS):
            inner = source.source if self.call else source
            name = next((name for name in inner.names if self.softmax in name), self.softmax)
            self._through_softmax(getattr(inner, name), passage, dtype)

    def _arguments(self, call: Any, passage: Passage) -> None:
        kinds = [kind for kind in ("rot_q", "rot_k", "v") if kind in self.kinds]
        if not any(passage.taps.wants(kind, self.layer) for kind in kinds):
            return
        args, kwargs = call.inputs
        new = list(args)
        for at, kind in enumerate(kinds, self.first):
            new[at] = self._through(kind, args[at], passage)
        if any(one is not other for one, other in zip(new, args, strict=True)):
            call.inputs = (tuple(new), kwargs)

    def _turned(self, turn: Any, passage: Passage) -> None:
        made = turn.output
        new = tuple(self._through(kind, x, passage) for kind, x in zip(TURNED_KINDS, made, strict=True))
        if any(one is not other for one, other in zip(new, made, strict=True)):
            turn.output = new

    def _through(self, kind: str, value: Tensor, passage: Passage) -> Tensor:
        """Show [row, head, position, d_head] to the tap, heads after positions; what to go on with."""
        if not passage.taps.wants(kind, self.layer):
            return value
        edited, write = passage.see(kind, self.layer, value.transpose(1, 2))
        return edited.transpose(1, 2).clone() if write else value

    def _through_softmax(self, softmax: Any, passage: Passage, dtype: torch.dtype) -> None:
        if passage.taps.wants("attn_scores", self.layer):
            edited, write = passage.see("attn_scores", self.layer, softmax.input)
            if write:
                softmax.input = edited.clone()
        if passage.taps.wants("pattern", self.layer):
            made = softmax.output  # some compute it in float32 and narrow it afterwards
            edited, write = passage.see("pattern", self.layer, made.to(dtype))
            if write:
                softmax.output = edited.to(made.dtype, copy=True)


@contextmanager
def eager(module: nn.Module) -> Iterator[None]:
    """Run the library's eager attention, which has scores and patterns, while the context lasts."""
    configs: dict[int, Any] = {id(m.config): m.config for m in module.modules() if hasattr(m, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, setting in before:
            config._attn_implementation = setting


@dataclass(frozen=True)
class Inside:
    """What can be seen inside attention: the moment of each layer, and why some kinds are left out."""

    moments: Mapping[int, AttentionMoment]
    reasons: Mapping[str, str]


def look_inside(
    library: Any, net: Any, pieces: HuggingFaceModel, places: Collection[Place], ids: Tensor
) -> Inside:
    """Find out what can be seen inside the attention of each layer.

    `pieces` is the model on the default engine, `places` the sites that modules show, and `ids`
    [1, position] a prompt to try it on. Scores and patterns are left out, with the reason, where the
    library's eager attention is not the model's.
    """
    module, layout = pieces.module, pieces.layout
    bound = TOLERANCE.get(pieces.info.dtype, 6e-2)
    paths = {id(part): path for path, part in module.named_modules()}
    every = sites("attn_scores", range(len(layout.blocks)))
    scores = pieces.forward(ids.tolist(), capture=every, logits="none").activations
    found: dict[int, AttentionMoment] = {}
    shifted, other = False, not _eager_is_faithful(module, ids, bound)
    with eager(module), torch.no_grad():
        for layer, block in enumerate(layout.blocks):
            path = paths.get(id(block.attention_module))
            for one in _candidates(net, path, layer, ("v", layer) not in places) if path else ():
                seen = _tried(library, net, module, one, ids)
                if seen is not None and _fitting(seen, one, pieces.info, ids.shape[1]):
                    found[layer] = one
                    if one.softmax:
                        apart, uneven = _apart(seen["attn_scores"], scores[Site("attn_scores", layer)])
                        shifted |= uneven <= bound < apart
                        other |= uneven > bound
                    break
    reasons: dict[str, str] = {}
    if other:
        why = f"the library computes {layout.title} otherwise with eager attention, which alone has it"
        reasons |= dict.fromkeys(SOFTMAX_KINDS, f"{why}; the backend huggingface shows it")
    elif shifted:
        why = f"the library's {layout.title} adds a constant of each query to its scores"
        reasons["attn_scores"] = f"{why}; use pattern, or the backend huggingface"
    moments = {
        layer: replace(one, softmax="" if other else one.softmax, shifted=shifted)
        for layer, one in found.items()
    }
    return Inside(moments, reasons)


def _eager_is_faithful(module: Any, ids: Tensor, bound: float) -> bool:
    """Whether the library computes the same logits with its eager attention as with the one it has."""
    with torch.no_grad():
        own = module(ids, use_cache=False).logits.double()
        with eager(module):
            other = module(ids, use_cache=False).logits.double()
    return float((own - other).abs().max()) <= bound * max(1.0, float(own.abs().max()))


def _apart(left: Tensor, right: Tensor) -> tuple[float, float]:
    """How far scores [row, head, query, key] are apart, and how far up to a constant of each query.

    Relative to the largest magnitude (at least 1), over the keys that both let a query see.
    """
    left, right = left.double(), right.double()
    # The softmax does not see such a constant; hidden keys hold the lowest numbers of some type.
    hidden = (left < HIDDEN) | (right < HIDDEN)
    gaps = (left - right).masked_fill(hidden, 0)
    scale = max(1.0, float(right.masked_fill(hidden, 0).abs().max()))
    middle = gaps.sum(-1, keepdim=True) / (~hidden).sum(-1, keepdim=True)
    uneven = (gaps - middle).masked_fill(hidden, 0)
    return float(gaps.abs().max()) / scale, float(uneven.abs().max()) / scale


def _candidates(net: Any, path: str, layer: int, with_values: bool) -> Iterator[AttentionMoment]:
    names = net.get(path).source.names
    # The function that is looked up is bound to its name first and called last.
    calls = [(name, 1) for name in names if name.startswith(("attention_interface_", "attend_"))][-1:]
    for call, first in (*calls, ("self__attn_0", 0)):
        if call in names:
            yield AttentionMoment(path, layer, call, first, "", "softmax", with_values)
            yield AttentionMoment(path, layer, call, first, "", "", with_values)
    turn = "apply_rotary_pos_emb_0" if "apply_rotary_pos_emb_0" in names else ""
    for softmax in (name for name in names if "softmax" in name):
        yield AttentionMoment(path, layer, turn=turn, softmax=softmax)
        yield AttentionMoment(path, layer, softmax=softmax)


class _Everything:
    """Taps that want all of one moment's sites and keep what they saw."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.kinds, self.seen = kinds, dict[str, Tensor]()

    def wants(self, kind: str, layer: int | None) -> bool:
        return kind in self.kinds

    def narrow(self) -> None:
        """Nothing is narrowed."""

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        self.seen[kind] = value
        return value


def _tried(
    library: Any, net: Any, module: Any, moment: AttentionMoment, ids: Tensor
) -> dict[str, Tensor] | None:
    """What a forward shows at the moment, by kind; None where it does not get there."""
    taps = _Everything(moment.kinds)
    passage = Passage(taps, (1, ids.shape[1]), False)
    unreached = importlib.import_module(f"{library.__name__}.intervention.interleaver").OutOfOrderError
    hidden = importlib.import_module(f"{library.__name__}.intervention.source").SourceNotAvailable

    def forward(*_: Any, **__: Any) -> None:
        module(ids, use_cache=False)

    try:
        with net.trace(input_ids=ids, fn=forward):
            moment.visit(net, passage)
    except (unreached, hidden, AttributeError, IndexError, TypeError, ValueError):
        return None
    return taps.seen


def _fitting(seen: Mapping[str, Tensor], moment: AttentionMoment, info: ModelInfo, n: int) -> bool:
    """Whether tensors of one prompt of n tokens have the shapes of their sites."""
    query, kv = (1, n, info.n_heads, info.d_head), (1, n, info.n_kv_heads, info.d_head)
    scores = (1, info.n_heads, n, n)
    shapes = {"rot_q": query, "rot_k": kv, "v": kv, "attn_scores": scores, "pattern": scores}
    return all(seen[kind].shape == shapes[kind] for kind in moment.kinds)
