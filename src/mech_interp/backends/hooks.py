"""The reference backend: plain PyTorch hooks on the library's own, unmodified forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.agreement import require_agreement
from mech_interp.backends.around_library import AroundLibrary
from mech_interp.backends.block_level import BlockLevelModel
from mech_interp.backends.checks import TOLERANCE, probe_tokens, verify
from mech_interp.backends.huggingface.checkpoint import Loaded, load_folder
from mech_interp.backends.huggingface.layouts.base import Port
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.opening import library_logits, open_module
from mech_interp.backends.protocol import Capability, ModelInfo
from mech_interp.backends.routers import ROUTER_KINDS, router_of, watching_router
from mech_interp.backends.stepwise import KINDS_INSIDE, goes_through_registry, stepwise
from mech_interp.backends.tokens import Tokens
from mech_interp.backends.watching import Watch, watching
from mech_interp.sites import KINDS, Site

CAPABILITIES = frozenset(
    Capability(one) for one in ("capture", "intervene", "gradients", "rows", "heads", "weights", "generate")
)
ELSEWHERE = "no module of the library's model shows it to a hook; the backend huggingface does"
OWN_ATTENTION = (
    "the library computes this architecture's attention outside its registry of attention functions, where "
    "hooks cannot reach it; the backend huggingface can"
)


class HooksModel(AroundLibrary):
    """Runs the library's forward with a hook at every site that is wanted; implements `InstrumentedModel`.

    Weights and unembedding are read through the architecture's layout. Use `open_loaded` or
    `open_folder` to make one.
    """

    def __init__(self, engine: HuggingFaceModel) -> None:
        """`engine` is the default engine around the same library model, for what needs no forward."""
        self.layout, self._ports = engine.layout, _ports(engine)
        blocks = self.layout.blocks
        self._layers = {id(block.attention_module): layer for layer, block in enumerate(blocks)}
        self._registry = goes_through_registry(engine.module)
        super().__init__(engine, _describe(engine, self._ports, self._registry))

    def run(self, tokens: Tokens, tap: ed.Tap, *, grad: bool = False) -> Tensor:
        """One forward of the library's model; see `Adapter.run`."""
        inside = [(k, n) for k in KINDS_INSIDE for n in range(self.info.n_layers) if tap.wants(k, n)]
        # Where positions look back alone the filled columns count as tokens, which spares masks.
        mask = torch.ones_like(tokens.ids) if self.layout.causal else tokens.mask.long()
        options: dict[str, Any] = {"use_cache": False, "attention_mask": mask}
        with ExitStack() as stack:
            stack.enter_context(watching(self._watches(tap, grad), rows=len(tokens), grad=grad))
            if inside and self._registry:
                stack.enter_context(stepwise(self.module, self._layers, tap))
            elif inside:
                options["output_attentions"] = True
            for layer, block in enumerate(self.layout.blocks):
                if any(tap.wants(kind, layer) for kind in ROUTER_KINDS):
                    stack.enter_context(watching_router(block, layer, tap, rows=len(tokens)))
            out = self.module(tokens.ids, **options)
        if inside and not self._registry:
            for kind, layer in inside:
                tap(kind, layer, out.attentions[layer])
        logits: Tensor = tap("logits", None, out.logits)
        return logits

    def _watches(self, tap: ed.Tap, grad: bool) -> list[Watch]:
        watches = []
        results = {n for n in range(self.info.n_layers) if tap.wants("result", n)}
        seen: dict[int, Tensor] = {}
        for (kind, layer), port in self._ports.items():
            act: Callable[[Tensor], Tensor] = partial(tap, kind, layer)
            if kind == "z" and layer in results:
                act = partial(_remember, act, seen, layer)
            elif kind == "attn_out_own" and layer in results:
                act = partial(self._through_results, tap, layer, seen)
            elif not tap.wants(kind, layer) and not (grad and kind == "embed"):
                continue
            watches.append(Watch(Site(kind, layer), port, act))
        return watches

    def _through_results(self, tap: ed.Tap, layer: int, seen: Mapping[int, Tensor], out: Tensor) -> Tensor:
        """Show each head's own output; what an edit changes there is added to the sublayer's output."""
        weights = self.layout.blocks[layer].weights()
        results = torch.einsum("rphd,hdm->rphm", seen[layer], weights["W_O"])
        edited: Tensor = tap("result", layer, results)
        if edited.requires_grad:
            # Gradients must pass through the heads' outputs.
            out = edited.sum(2) + weights["b_O"] if "b_O" in weights else edited.sum(2)
        elif edited is not results:
            out = out + (edited - results).sum(2)
        after: Tensor = tap("attn_out_own", layer, out)
        return after


def open_folder(
    folder: Path,
    *,
    name: str,
    source: str,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "sdpa",
    allow_pickle: bool = False,
) -> HooksModel | BlockLevelModel:
    """Load a checkpoint folder and open it with plain hooks; see `load_model` for the arguments.

    Raises:
        ModelError, CapabilityError: see `checkpoint.load_folder`.
        IdentityError: when an identity fails, or a site is not what the default engine says it is.
    """
    return open_loaded(
        load_folder(
            folder,
            name=name,
            source=source,
            device=device,
            dtype=dtype,
            attention=attention,
            allow_pickle=allow_pickle,
        )
    )


def open_loaded(loaded: Loaded) -> HooksModel | BlockLevelModel:
    """Put plain hooks around a library model that is in memory; at block level if it has no layout.

    Raises:
        ModelError: for weights that are not finite.
        IdentityError: when an identity fails, or a site is not what the default engine says it is.
    """
    engine = open_module(
        loaded.module,
        loaded.tokenizer,
        name=loaded.name,
        source=loaded.source,
        weights_hash=loaded.weights_hash,
        tokenizer_hash=loaded.tokenizer_hash,
        check=False,
    )
    if isinstance(engine, BlockLevelModel):
        engine.use_backend("hooks")
        engine.check()
        return engine
    model = HooksModel(engine)
    verify(model, lambda tokens: library_logits(loaded.module, tokens))
    require_agreement(model, engine)
    return model


def _remember(act: Callable[[Tensor], Tensor], seen: dict[int, Tensor], layer: int, z: Tensor) -> Tensor:
    seen[layer] = act(z)
    return seen[layer]


def _ports(engine: HuggingFaceModel) -> dict[ed.Place, Port]:
    """Where the layout says each site that the model has is found; logits are what the forward returns."""
    info = engine.info
    found: dict[ed.Place, Port] = {(k, None): p for k, p in engine.layout.ports().items() if k != "logits"}
    for layer, block in enumerate(engine.layout.blocks):
        found |= {(kind, layer): port for kind, port in block.ports().items()}
    found.setdefault(("embed", None), Port(engine.module.get_input_embeddings()))
    return {
        place: port
        for place, port in found.items()
        if place[0] in info.site_kinds and place not in info.missing_sites
    }


def _describe(engine: HuggingFaceModel, ports: Mapping[ed.Place, Port], registry: bool) -> ModelInfo:
    """The engine's facts with the sites that hooks reach, and the reasons for those they do not."""
    info = engine.info
    layers = range(info.n_layers)
    missing, missing_sites = dict(info.missing_kinds), dict(info.missing_sites)
    capture_only: dict[str, str] = {}
    shown = {place for place in ports if place[0] not in missing} | {("logits", None)}
    shown |= {(kind, n) for n in layers for kind in ROUTER_KINDS if router_of(engine.layout.blocks[n])}
    shown |= {("result", n) for n in layers if {("z", n), ("attn_out_own", n)} <= shown}
    if registry:
        shown |= {(kind, n) for kind in KINDS_INSIDE for n in layers if kind in info.site_kinds}
    elif _gives_patterns(engine):
        shown |= {("pattern", n) for n in layers}
        capture_only["pattern"] = OWN_ATTENTION
    for kind in info.site_kinds:
        places = [(kind, n) for n in layers] if KINDS[kind].in_block else [(kind, None)]
        absent = [place for place in places if place not in shown and place not in info.missing_sites]
        why = OWN_ATTENTION if kind in KINDS_INSIDE else ELSEWHERE
        if absent and not any(place in shown for place in places):
            missing[kind] = why
        else:
            missing_sites |= {(kind, layer): why for kind, layer in absent if layer is not None}
    return replace(
        info,
        backend="hooks",
        capabilities=info.capabilities & CAPABILITIES,
        site_kinds=info.site_kinds - set(missing),
        missing_kinds=missing,
        missing_sites={place: why for place, why in missing_sites.items() if place[0] not in missing},
        capture_only=capture_only,
    )


def _gives_patterns(engine: HuggingFaceModel) -> bool:
    """Whether the library hands out each layer's pattern when asked, and still computes the same model."""
    tokens, info = probe_tokens(engine.info), engine.info
    ids = torch.tensor([tokens.row(0)[:9]], device=info.device)
    with torch.no_grad():
        plain = engine.module(ids, use_cache=False)
        asked = engine.module(ids, use_cache=False, output_attentions=True)
    given, shape = getattr(asked, "attentions", None), (1, info.n_heads, ids.shape[1], ids.shape[1])
    if not isinstance(given, tuple | list) or len(given) != info.n_layers:
        return False
    if not all(isinstance(one, Tensor) and one.shape == shape for one in given):
        return False
    # One architecture forgets its mask when it is asked for patterns under fused attention.
    scale = max(1.0, float(plain.logits.abs().max()))
    off = float((plain.logits - asked.logits).abs().max()) / scale
    return off <= TOLERANCE.get(info.dtype, 6e-2)
