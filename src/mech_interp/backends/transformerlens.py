"""The `transformerlens` backend: TransformerLens' bridge around the same weights.

The bridge (`TransformerBridge`, 4.3) runs the library's model with hook points in its submodules and
computes attention step by step. Its hook points are read and written through the same taps as the
default engine's, and its own weights, final norm and unembedding are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.adapter import Adapter
from mech_interp.backends.checks import verify
from mech_interp.backends.huggingface.checkpoint import Loaded, load_folder
from mech_interp.backends.huggingface.generation import default_stops
from mech_interp.backends.huggingface.layouts.base import Layout
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.opening import library_logits, open_module
from mech_interp.backends.protocol import Capability, ModelInfo
from mech_interp.backends.tokens import Tokens
from mech_interp.backends.transformerlens_bridge import quiet, require_package, unsupported_reason, wrap
from mech_interp.backends.transformerlens_sites import Place, find_hooks, places_of, shaped
from mech_interp.backends.transformerlens_weights import final_gain, weight
from mech_interp.errors import CapabilityError

__all__ = ["TransformerLensModel", "open_folder", "open_loaded", "unsupported_reason"]

COMPATIBILITY = (
    "TransformerLens' compatibility mode: norms are folded into the weights that read them, and weights "
    "that write to the residual stream and the unembedding are centred where the architecture allows it. "
    "Predictions are the same (probabilities, most likely tokens, losses), but logits differ from the "
    "checkpoint's by a constant per position, and the residual stream, lens readings, direct attributions "
    "and weights are in other coordinates."
)


class TransformerLensModel(Adapter):
    """A model run by TransformerLens' bridge; see `Adapter`. The bridge itself is `bridge`."""

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: Any,
        bridge: Any,
        layout: Layout,
        hooks: Mapping[Place, str],
        *,
        compatibility: bool = False,
    ) -> None:
        super().__init__(info, tokenizer)
        self.bridge, self.layout, self.hooks = bridge, layout, hooks
        self.compatibility = compatibility

    def run(self, tokens: Tokens, tap: ed.Tap, *, grad: bool = False) -> Tensor:
        hooks = _RunHooks(self, tap, len(tokens), grad)
        logits = forward(self.bridge, tokens.ids, hooks.named(), per_head=hooks.per_head)
        # The cap on the logits, where there is one, stands behind the last hook point.
        return tap("logits", None, logits)

    def unembed(self, resid: Tensor, token_ids: Tensor | None = None) -> Tensor:
        normed = self.bridge.ln_final(resid)
        if token_ids is None:
            return self.layout.softcap(self.bridge.unembed(normed))
        ids = token_ids.to(normed.device)
        rows = self.bridge.unembed.W_U.T[ids]
        return self.layout.softcap((rows @ normed[..., None])[..., 0] + self.bridge.unembed.b_U[ids])

    def final_norm_direction(self, resid: Tensor, direction: Tensor) -> Tensor:
        kind, eps = self.layout.norm, self.layout.norm_eps
        if kind == "none":
            return direction
        pulled = direction * final_gain(self)
        if kind == "rms":
            return pulled / (resid.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        centred = resid - resid.mean(-1, keepdim=True)
        scale = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return (pulled - pulled.mean(-1, keepdim=True)) / scale

    def weights(self, kind: str, layer: int | None = None, head: int | None = None) -> Tensor:
        return weight(self, kind, layer, head)

    @property
    def stop_ids(self) -> Sequence[int]:
        return default_stops(self.layout.module)

    def close(self) -> None:
        """Let go of the bridge. The library's model was never changed: the bridge has a copy of its tree."""
        self.bridge = None


class _RunHooks:
    """The hook functions of one forward, which show the tap what it wants, in order of computation."""

    def __init__(self, model: TransformerLensModel, tap: ed.Tap, rows: int, grad: bool) -> None:
        self.tap, self.rows, self.grad = tap, rows, grad
        self.at: dict[str, list[Place]] = {}
        self.shift: dict[int, Tensor] = {}
        self.start = "embed.hook_out" if grad else ""
        if grad:
            self.at[self.start] = []
        wanted = [place for place in places_of(model.info) if tap.wants(*place) and place in model.hooks]
        for kind, layer in wanted:
            self.at.setdefault(model.hooks[kind, layer], []).append((kind, layer))
            if kind == "resid_mid":
                self.at.setdefault(f"blocks.{layer}.hook_out", []).append(("shift", layer))
        self.per_head = any(kind == "result" for kind, _ in wanted)

    def named(self) -> list[tuple[str, Any]]:
        """Hook names and functions."""
        return [(name, self._function(name, places)) for name, places in self.at.items()]

    def _function(self, name: str, places: Sequence[Place]) -> Any:
        def see(value: Tensor, hook: Any) -> Tensor:
            if name == self.start and not value.requires_grad:
                value = value.detach().requires_grad_()  # weights are frozen: the graph starts here
            shape = value.shape
            value = shaped(value, self.rows)
            for kind, layer in places:
                value = self._shown(kind, layer, value)
            return value.reshape(shape)

        return see

    def _shown(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        tap = self.tap
        if kind == "shift":
            return value + self.shift.pop(layer or 0)
        if kind == "resid_mid":
            # The hook lies on the way into the MLP, past where the stream itself goes on; what an edit
            # changes (and, for gradients, the path through the stream) joins at the end of the block.
            shown = tap(kind, layer, value.view_as(value))
            self.shift[layer or 0] = shown - value
            return shown
        if kind == "attn_scores":
            # One number for "not seen", as everywhere; the bridge has two.
            lowest = torch.finfo(value.dtype).min
            value = value.masked_fill(value <= lowest / 2, lowest)
        if kind == "pos_embed":
            value = value.expand(self.rows, -1, -1)
            value = value.clone().requires_grad_() if self.grad else value
        return tap(kind, layer, value)


def forward(bridge: Any, ids: Tensor, hooks: list[tuple[str, Any]], per_head: bool = False) -> Tensor:
    """Logits [prompt, position, vocabulary] of ids with hook functions; `per_head` has results computed."""
    if per_head:
        bridge.set_use_attn_result(True)
    try:
        with bridge.hooks(fwd_hooks=hooks):
            # A mask of ones changes nothing and keeps the library from warning of padding.
            mask = torch.ones_like(ids)
            logits: Tensor = bridge(ids, return_type="logits", use_cache=False, attention_mask=mask)
    finally:
        if per_head:
            bridge.set_use_attn_result(False)
    return logits


def open_folder(folder: Path, **options: Any) -> TransformerLensModel:
    """Load a folder and open it; see `load_folder`. Attention is always computed step by step.

    Raises:
        MissingExtraError: when TransformerLens is not installed; nothing has been read then.
        ModelError, CapabilityError: see `load_folder`.
        IdentityError: when an identity of `backends.checks` fails.
    """
    require_package()
    return open_loaded(load_folder(folder, **options))


def open_loaded(loaded: Loaded, *, compatibility: bool = False) -> TransformerLensModel:
    """Open a library model in memory. It is put in evaluation mode and frozen, and not changed otherwise.

    With `compatibility` the bridge has weights of its own, in TransformerLens' processed form: norms
    folded in, weights that write to the stream and the unembedding centred. Logits then differ from the
    checkpoint's by a constant per position, while probabilities do not; see `info.notice`.

    Raises:
        MissingExtraError: when TransformerLens is not installed.
        CapabilityError: when it cannot wrap the architecture, or has no compatibility mode for it, or
            the architecture has no layout.
        IdentityError: when its logits or an identity of `backends.checks` are off.
    """
    require_package()
    engine = open_module(
        loaded.module,
        loaded.tokenizer,
        name=loaded.name,
        source=loaded.source,
        weights_hash=loaded.weights_hash,
        tokenizer_hash=loaded.tokenizer_hash,
        check=False,
    )
    if not isinstance(engine, HuggingFaceModel):
        raise CapabilityError(
            f"The architecture of {engine.info.name} has no layout, so nothing tells which of "
            "TransformerLens' hook points carries which site.",
            "Use backend: huggingface, which runs it at block level.",
        )
    if not engine.info.causal:
        raise CapabilityError(
            f"The positions of {engine.info.name} see the whole prompt, which TransformerLens does not run.",
            "Use backend: huggingface.",
        )
    bridge = wrap(loaded.module, engine.info.name, own_weights=compatibility)
    model = _with_its_sites(engine, bridge)
    if compatibility:
        _process(bridge, model.info)
        info = replace(model.info, notice=COMPATIBILITY)
        model = TransformerLensModel(
            info, engine.tokenizer, bridge, engine.layout, model.hooks, compatibility=True
        )
    verify(model, lambda tokens: _expected(model, tokens))
    return model


def _with_its_sites(engine: HuggingFaceModel, bridge: Any) -> TransformerLensModel:
    """The model with the sites that the bridge proves to carry."""
    able = engine.info.capabilities - {Capability.EDGES}
    info = replace(engine.info, backend="transformerlens", attention="eager", capabilities=able)

    def opened(info: ModelInfo, hooks: Mapping[Place, str]) -> TransformerLensModel:
        return TransformerLensModel(info, engine.tokenizer, bridge, engine.layout, hooks)

    # Without the right logits no hook could prove anything.
    bare = opened(replace(info, site_kinds=frozenset({"logits"})), {})
    verify(bare, lambda tokens: _expected(bare, tokens))
    with quiet(), torch.no_grad():
        found = find_hooks(
            bridge,
            engine,
            lambda ids, hooks, per_head: forward(bridge, ids, hooks, per_head),
            lambda hooks: opened(info, hooks),
        )
    return opened(replace(info, **found.narrowed(info)), found.hooks)


def _process(bridge: Any, info: ModelInfo) -> None:
    with quiet(), torch.no_grad():
        try:
            bridge.enable_compatibility_mode(disable_warnings=True)
        except Exception as error:
            raise CapabilityError(
                f"TransformerLens has no compatibility mode for {info.name}: {str(error)[:200]}",
                "Leave out compatibility.",
            ) from error


def _expected(model: TransformerLensModel, tokens: Tokens) -> list[Tensor]:
    """The library's own logits; in compatibility mode as a centred unembedding gives them."""
    logits = library_logits(model.layout.module, tokens)
    # A cap on the logits rules centring out.
    if not model.compatibility or (model.bridge.cfg.output_logits_soft_cap or 0) > 0:
        return logits
    return [one - one.mean(-1, keepdim=True) for one in logits]
