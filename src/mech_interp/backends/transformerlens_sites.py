"""Which of the bridge's hook points carries which site, found on a probe and proved by it.

A hook point's name promises less than it seems: the residual is already added in some, some see values
that nothing reads any more, some never fire. So every candidate is compared with the default engine,
both in what it shows and in what follows from changing it; a site that no candidate carries is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mech_interp.backends.adapter import Adapter
from mech_interp.backends.checks import TOLERANCE, probe_tokens
from mech_interp.backends.entries import INTEGERS
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.metrics import Logits
from mech_interp.backends.protocol import ModelInfo, Row
from mech_interp.backends.tokens import Tokens
from mech_interp.interventions import Add, Intervention, Operation, Replace
from mech_interp.sites import KINDS, Site

Place = tuple[str, int | None]
# Runs ids with hooks; the flag says whether the outputs of single heads are wanted.
Forward = Callable[[Tensor, list[tuple[str, Any]], bool], Tensor]

# Where a site may be found, likeliest first, from the block where it lies in one. Which it is differs
# between architectures: post-norms, residuals added inside a sublayer, embeddings scaled on their way.
HOOKS: dict[str, tuple[str, ...]] = {
    "embed": ("embed.hook_out", "blocks.0.hook_in"),
    "pos_embed": ("pos_embed.hook_out",),
    "resid_pre": ("hook_in",),
    "ln1": ("ln1.hook_out", "attn.hook_in"),
    "q": ("attn.q.hook_out",),
    "k": ("attn.k.hook_out",),
    "v": ("attn.v.hook_out",),
    "rot_q": ("attn.hook_rot_q",),
    "rot_k": ("attn.hook_rot_k",),
    "attn_scores": ("attn.hook_attn_scores",),
    "pattern": ("attn.hook_pattern",),
    "z": ("attn.o.hook_in",),
    "result": ("attn.hook_result",),
    "attn_out_own": ("attn.hook_out", "attn.o.hook_out"),
    "attn_out": ("hook_attn_out", "attn.hook_out", "attn.o.hook_out"),
    "resid_mid": ("hook_resid_mid",),
    "ln2": ("ln2.hook_out", "mlp.hook_in"),
    "router_logits": ("mlp.gate.hook_out",),
    "expert_indices": ("mlp.gate.hook_expert_indices",),
    "expert_weights": ("mlp.gate.hook_expert_weights",),
    "mlp_pre": ("mlp.hook_pre", "mlp.in.hook_out"),
    "mlp_pre_linear": ("mlp.hook_pre_linear", "mlp.in.hook_out"),
    "mlp_post": ("mlp.hook_post", "mlp.out.hook_in"),
    "mlp_out_own": ("mlp.hook_out", "mlp.out.hook_out"),
    "mlp_out": ("hook_mlp_out", "mlp.hook_out", "mlp.out.hook_out"),
    "resid_post": ("hook_out",),
    "ln_final": ("ln_final.hook_out",),
}
# Largest deviation of a captured value, relative to its largest magnitude. Hooks that carry another
# tensor are off by something of the order of 1.
VALUE_BOUND = {"float64": 1e-6, "float32": 1e-3, "float16": 5e-2, "bfloat16": 1e-1}
_ELSEWHERE = "; use the backend huggingface"


@dataclass(frozen=True)
class Found:
    """Which hook point carries each site, and why sites that the model has are carried by none."""

    hooks: Mapping[Place, str]
    missing: Mapping[Place, str]

    def narrowed(self, info: ModelInfo) -> dict[str, Any]:
        """The changes to what the default engine says of the model: its site kinds and what is missing."""
        kinds, places = dict(info.missing_kinds), dict(info.missing_sites)
        for kind in sorted(info.site_kinds):
            layers = range(info.n_layers) if KINDS[kind].in_block else (None,)
            gone = {at: self.missing[kind, at] for at in layers if (kind, at) in self.missing}
            has = any((kind, at) in self.hooks for at in layers)
            if gone and not has:
                kinds[kind] = next(iter(gone.values()))
                places = {place: why for place, why in places.items() if place[0] != kind}
            else:
                places |= {(kind, at): why for at, why in gone.items() if at is not None}
        site_kinds = info.site_kinds - set(kinds)
        return {"site_kinds": site_kinds, "missing_kinds": kinds, "missing_sites": places}


def places_of(info: ModelInfo) -> list[Place]:
    """Every site of a model, whole, in order of computation."""
    found: list[Place] = []
    for kind in info.site_kinds:
        layers: Sequence[int | None] = range(info.n_layers) if KINDS[kind].in_block else (None,)
        found += [(kind, at) for at in layers if at is None or (kind, at) not in info.missing_sites]
    return sorted(found, key=lambda place: Site(*place).order)


def candidates(bridge: Any, kind: str, layer: int | None) -> list[str]:
    """The bridge's hook points that may carry a site, by their own names; only those that exist."""
    prefix, there = "" if layer is None else f"blocks.{layer}.", bridge.hook_dict
    found = [there[prefix + name].name for name in HOOKS.get(kind, ()) if prefix + name in there]
    return list(dict.fromkeys(found))


def shaped(value: Tensor, rows: int) -> Tensor:
    """A hook's tensor with prompts as an axis of their own, which routers are not handed."""
    return value.view(rows, -1, value.shape[-1]) if value.dim() == 2 else value


def find_hooks(
    bridge: Any,
    engine: HuggingFaceModel,
    forward: Forward,
    open_with: Callable[[Mapping[Place, str]], Adapter],
) -> Found:
    """The hook point of every site of the model, and the reasons for those that have none.

    Args:
        bridge: the bridge, in the coordinates of the checkpoint.
        engine: the default engine over the untouched model: what every site should be.
        forward: runs the bridge.
        open_with: the backend, given the hooks.
    """
    tokens = probe_tokens(engine.info).select([0])
    places = [place for place in places_of(engine.info) if place[0] != "logits"]
    true = engine.forward(tokens, capture=[Site(*place) for place in places]).activations
    matching, missing = _same_values(bridge, engine.info, tokens, places, true, forward)
    title = f"for {engine.info.architecture}"
    while True:
        hooks = {place: names[0] for place, names in matching.items()}
        failed = _without_effect(engine, open_with(hooks), tokens, hooks, true)
        if not failed:
            return Found(hooks, missing)
        for place in [place for place in matching if place[0] in failed]:
            matching[place] = matching[place][1:]
            if not matching[place]:
                del matching[place]
                why = f"{title} changing what TransformerLens' bridge shows there changes nothing or not all"
                missing[place] = f"{why} that follows from it{_ELSEWHERE}"


def _same_values(
    bridge: Any,
    info: ModelInfo,
    tokens: Tokens,
    places: Sequence[Place],
    true: Mapping[Any, Tensor],
    forward: Forward,
) -> tuple[dict[Place, list[str]], dict[Place, str]]:
    """Hook points that fire once and show what the site should be; reasons for sites that have none."""
    names = {place: candidates(bridge, *place) for place in places}
    results = [name for place, own in names.items() if place[0] == "result" for name in own]
    others = sorted({name for own in names.values() for name in own} - set(results))
    seen = _watched(forward, tokens, others, per_head=False)
    with_results = _watched(forward, tokens, [*others, *results], per_head=True) if results else {}
    seen |= {name: with_results[name] for name in results if name in with_results}
    matching: dict[Place, list[str]] = {}
    missing: dict[Place, str] = {}
    title = f"for {info.architecture} TransformerLens' bridge"
    for place in places:
        fired = [name for name in names[place] if len(seen.get(name, ())) == 1]
        same = [name for name in fired if _same(shaped(seen[name][0], 1), true[Site(*place)], place[0], info)]
        if same:
            matching[place] = same
        else:
            why = "shows another tensor there" if fired else "shows no such tensor"
            missing[place] = f"{title} {why}{_ELSEWHERE}"
    for place in [place for place in matching if place[0] == "result"]:
        # Heads' results are computed on request, and then some hook points are passed by.
        if any(names[0] not in with_results for names in matching.values()):
            del matching[place]
            missing[place] = f"{title} cannot show it together with the other sites{_ELSEWHERE}"
    return matching, missing


def _watched(
    forward: Forward, tokens: Tokens, names: Sequence[str], per_head: bool
) -> dict[str, list[Tensor]]:
    """What hook points show in one forward; empty where per-head results are not to be had."""
    seen: dict[str, list[Tensor]] = {}

    def watching(name: str) -> Callable[..., None]:
        def see(value: Tensor, hook: Any) -> None:
            seen.setdefault(name, []).append(value.detach().clone())

        return see

    try:
        forward(tokens.ids, [(name, watching(name)) for name in names], per_head)
    except NotImplementedError:
        return {}
    return seen


def _same(found: Tensor, true: Tensor, kind: str, info: ModelInfo) -> bool:
    if found.shape != true.shape:
        return False
    if KINDS[kind].over_keys:
        # Keys that a query does not see hold whatever stands for minus infinity.
        unseen = true <= torch.finfo(true.dtype).min / 2
        found, true = found.masked_fill(unseen, 0), true.masked_fill(unseen, 0)
    gap, scale = (found.double() - true.double()).abs().max(), true.double().abs().max()
    return bool(gap <= VALUE_BOUND.get(info.dtype, 1e-1) * scale)


def _without_effect(
    engine: HuggingFaceModel,
    model: Adapter,
    tokens: Tokens,
    hooks: Mapping[Place, str],
    true: Mapping[Any, Tensor],
) -> set[str]:
    """Site kinds at which the same change has other consequences than in the default engine.

    Asked in the first and the last layer that has the kind, at the last position.
    """
    layers: dict[str, list[Place]] = {}
    for place in hooks:
        layers.setdefault(place[0], []).append(place)
    asked = [place for own in layers.values() for place in dict.fromkeys((own[0], own[-1]))]
    rows = [Row(0)]
    for kind, layer in asked:
        change = _change(kind, true[Site(kind, layer)])
        rows.append(Row(0, (Intervention(Site(kind, layer), change, positions=-1),)))
    metric = Logits((-1,))
    right = {result.index: result.value.double() for result in engine.rows(tokens, rows, metric)}
    found = {result.index: result.value.double() for result in model.rows(tokens, rows, metric)}
    noise = TOLERANCE.get(engine.info.dtype, 6e-2) / 10 * float(right[0].abs().max())
    failed = set()
    for index, place in enumerate(asked, start=1):
        effect = float((right[index] - right[0]).abs().max())
        if not float((found[index] - right[index]).abs().max()) <= 0.25 * effect + noise:
            failed.add(place[0])
    return failed


def _change(kind: str, value: Tensor) -> Operation:
    """An edit of a site's vectors of about their own size."""
    n = value.shape[-1]
    if kind in INTEGERS:
        return Replace(torch.arange(n))
    known = value[value > torch.finfo(torch.float16).min].double()
    noise = torch.randn(n, generator=torch.Generator().manual_seed(n))
    return Add(noise * float(known.pow(2).mean().sqrt()))
