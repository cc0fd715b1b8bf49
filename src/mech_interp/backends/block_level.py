"""Architectures without a layout: plain hooks around whole decoder blocks, found by their behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.adapter import Adapter
from mech_interp.backends.block_structure import Structure, find_structure
from mech_interp.backends.checks import TOLERANCE, Identity, probe_tokens, verify
from mech_interp.backends.huggingface.generation import default_stops
from mech_interp.backends.huggingface.layouts.base import Port, norm_eps
from mech_interp.backends.protocol import Capability, ModelInfo
from mech_interp.backends.tokens import Tokens
from mech_interp.backends.watching import Watch, watching
from mech_interp.errors import CapabilityError, IdentityError, InputError
from mech_interp.interventions import Intervention, Scale
from mech_interp.sites import KINDS, Site

CAPABILITIES = frozenset(Capability(one) for one in ("capture", "intervene", "gradients", "rows", "generate"))
NO_LAYOUT = "the architecture has no layout, so nothing inside its blocks is known"
# Recurrent architectures state no longest prompt.
UNBOUNDED = 1 << 20


class BlockLevelModel(Adapter):
    """A library model of which only the stream between blocks is known; implements `InstrumentedModel`.

    Use `open_block_level` to make one.
    """

    def __init__(self, module: Any, structure: Structure, info: ModelInfo, tokenizer: Any) -> None:
        self.module, self.structure = module, structure
        self._ports = _ports(structure)
        super().__init__(info, tokenizer)
        self._unembeds = self._check_unembedding()

    def use_backend(self, name: str) -> None:
        """Go by the name of the backend that the model was asked for in."""
        self._info = replace(self._info, backend=name)

    def run(self, tokens: Tokens, tap: ed.Tap, *, grad: bool = False) -> Tensor:
        """One forward of the library's model; see `Adapter.run`."""
        watches = [
            Watch(Site(*place), port, partial(tap, *place))
            for place, port in self._ports.items()
            if tap.wants(*place)
        ]
        if grad and not tap.wants("embed", None):
            start = Port(self.module.get_input_embeddings())
            watches.append(Watch(Site("embed"), start, lambda x: x))
        with watching(watches, rows=len(tokens), grad=grad):
            # The filled columns count as tokens: no position looks ahead at them.
            out = self.module(tokens.ids, attention_mask=torch.ones_like(tokens.ids), use_cache=False)
        logits: Tensor = tap("logits", None, out.logits)
        return logits

    def unembed(self, resid: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """The parts after the last block; see `InstrumentedModel.unembed`.

        Raises:
            CapabilityError: when norm and unembedding, as found, do not give the model's logits.
        """
        if not self._unembeds:
            raise CapabilityError(
                f"{self.info.name} runs at block level, and the way from its last stream to its logits is "
                "more than one norm and one unembedding, so streams cannot be unembedded.",
                "Its logits and the streams themselves can be captured and changed.",
            )
        norm, head = self.structure.norm, self._head
        normed = resid if norm is None else norm(resid)
        if token_ids is None:
            out: Tensor = head(normed)
            return out
        ids = token_ids.to(normed.device)
        logits: Tensor = (head.weight[ids] @ normed[..., None])[..., 0]
        return logits if head.bias is None else logits + head.bias[ids]

    def final_norm_direction(self, resid: Tensor, direction: Tensor) -> Tensor:
        """See `InstrumentedModel.final_norm_direction`.

        Raises:
            CapabilityError: when the final norm is neither a LayerNorm nor an RMSNorm.
        """
        kind, gain = self.structure.norm_kind, self.structure.norm_gain
        if kind is None or not self._unembeds:
            raise CapabilityError(
                f"{self.info.name} runs at block level, and its final norm is of no kind that is known.",
                "Use methods that only need streams and logits.",
            )
        if gain is None:
            return direction
        pulled, eps = direction * gain, self.info.norm_eps
        if kind == "layer":
            centred = resid - resid.mean(-1, keepdim=True)
            scale = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
            return (pulled - pulled.mean(-1, keepdim=True)) / scale
        return pulled / (resid.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    def weights(self, kind: str, layer: int | None = None, head: int | None = None) -> Tensor:
        """W_E, and W_U and b_U where the unembedding is known; nothing inside the blocks."""
        found: dict[str, Tensor] = {}
        if layer is None and ("embed", None) in self._ports:
            found["W_E"] = self.module.get_input_embeddings().weight
        if layer is None and self._unembeds:
            found["W_U"] = self._head.weight.T
            if self._head.bias is not None:
                found["b_U"] = self._head.bias
        if kind not in found or head is not None:
            where = "outside the blocks" if layer is None else f"in layer {layer}"
            raise InputError(
                f"{self.info.name} runs at block level, where the weight {kind!r} {where} is not known.",
                f"There are: {', '.join(found)}." if found else "It has no weights that are known.",
            )
        return found[kind].detach()

    @property
    def stop_ids(self) -> Sequence[int]:
        """The end-of-text ids at which generation stops by default."""
        return default_stops(self.module)

    def check(self) -> None:
        """Refuse the model unless its blocks behave as the sites say.

        Raises:
            IdentityError: naming what does not hold.
        """
        from mech_interp.backends.huggingface.opening import library_logits

        verify(self, lambda tokens: library_logits(self.module, tokens))
        for identity in self.identities():
            if not identity.holds:
                raise IdentityError(
                    f"{self.info.name} runs at block level and fails the identity '{identity.name}' in layer "
                    f"{identity.layer}: it is off by {identity.deviation:.2g}.",
                    "Its blocks do not pass one residual stream on, so it is not opened.",
                )

    def identities(self) -> list[Identity]:
        """The stream is passed on as it is, and what is written to it is what later blocks read."""
        info, tokens = self.info, probe_tokens(self.info)
        bound = TOLERANCE.get(info.dtype, 6e-2)
        layers = range(info.n_layers)
        streams = [Site(kind, layer) for kind in ("resid_pre", "resid_post") for layer in layers]
        seen = self.forward(tokens, capture=streams, logits="none").activations
        found = []
        for layer in layers[1:]:
            gap = float((seen[Site("resid_post", layer - 1)] - seen[Site("resid_pre", layer)]).abs().max())
            found.append(Identity("resid_post of a layer = resid_pre of the next", layer, gap, 0.0))
        rows = tokens.select([0] * (info.n_layers + 1))
        # Row 0 has every stream written back as it is; row l + 1 has the stream after layer l turned.
        edits = [Intervention(Site("resid_post", n), Scale(1.0), prompts=0) for n in layers]
        edits += [Intervention(Site("resid_post", n), Scale(-1.0), prompts=n + 1) for n in layers]
        plain, edited = self.forward(rows).logits, self.forward(rows, interventions=edits).logits
        assert plain is not None
        assert edited is not None
        same = float((plain[0] - edited[0]).abs().max()) / max(1.0, float(plain[0].abs().max()))
        found.append(Identity("streams written back as they are change nothing", 0, same, bound))
        for layer in layers:
            moved = float((plain[layer + 1] - edited[layer + 1]).abs().max())
            deaf = 0.0 if moved > 0 else float("inf")
            found.append(Identity("turning resid_post changes the logits", layer, deaf, bound))
        return found

    @property
    def _head(self) -> Any:
        return self.structure.head

    def _check_unembedding(self) -> bool:
        """Whether norm and unembedding turn the last stream into the logits."""
        if not isinstance(self._head, torch.nn.Linear):
            return False
        self._unembeds = True
        tokens = probe_tokens(self.info)
        last = Site("resid_post", self.info.n_layers - 1)
        result = self.forward(tokens, capture=[last])
        assert result.logits is not None
        gap = (self.unembed(result.activations[last]) - result.logits)[tokens.mask].abs().max()
        scale = max(1.0, float(result.logits[tokens.mask].abs().max()))
        return float(gap) / scale <= TOLERANCE.get(self.info.dtype, 6e-2)


def open_block_level(
    module: Any,
    tokenizer: Any,
    *,
    name: str,
    source: str,
    weights_hash: str,
    tokenizer_hash: str,
    check: bool,
) -> BlockLevelModel:
    """Open a library model that has no layout; its weights are frozen already.

    Raises:
        CapabilityError: when no stack of blocks is found in it.
        IdentityError: when its blocks do not behave as a residual stream's.
    """
    vocabulary = module.get_input_embeddings().weight.shape[0]
    longest = min(9, _context(module) - 1)
    probes = [
        [(start + step * i) % vocabulary for i in range(longest)] for start, step in ((37, 101), (5, 67))
    ]
    structure = find_structure(module, probes)
    info = _describe(module, structure, name, source, weights_hash, tokenizer_hash)
    model = BlockLevelModel(module, structure, info, tokenizer)
    if check:
        model.check()
    return model


def _ports(structure: Structure) -> dict[ed.Place, Port]:
    ports: dict[ed.Place, Port] = {}
    if structure.embedding is not None:
        ports["embed", None] = Port(structure.embedding)
    if structure.norm is not None:
        ports["ln_final", None] = Port(structure.norm)
    for layer, block in enumerate(structure.blocks):
        ports["resid_pre", layer], ports["resid_post", layer] = Port(block, "input"), Port(block)
    for layer, (attention, mlp) in enumerate(structure.sublayers):
        ports |= {(kind, layer): Port(attention) for kind in ("attn_out_own", "attn_out")}
        ports |= {(kind, layer): Port(mlp) for kind in ("mlp_out_own", "mlp_out")}
    return ports


def _describe(
    module: Any, structure: Structure, name: str, source: str, weights_hash: str, tokenizer_hash: str
) -> ModelInfo:
    config, parameter = module.config, next(module.parameters())
    kinds = {kind for kind, _ in _ports(structure)} | {"logits"}
    missing = {kind: NO_LAYOUT for kind in KINDS if kind not in kinds}
    if "embed" in missing:
        missing["embed"] = (
            "the token embedding is changed on its way to the first block, and without a layout it is not "
            "known how; use resid_pre of layer 0"
        )
    n_heads = int(getattr(config, "num_attention_heads", 0) or 0)
    d_model = structure.d_model
    architecture = type(module).__name__
    return ModelInfo(
        name=name or getattr(config, "name_or_path", "") or architecture,
        backend="huggingface",
        architecture=architecture,
        n_layers=len(structure.blocks),
        n_heads=n_heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", 0) or n_heads),
        d_model=d_model,
        d_head=int(getattr(config, "head_dim", 0) or (d_model // n_heads if n_heads else 0)),
        d_mlp=int(getattr(config, "intermediate_size", 0) or 0),
        vocabulary=module.get_input_embeddings().weight.shape[0],
        context=_context(module),
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
        attention="eager" if config._attn_implementation == "eager" else "sdpa",
        n_parameters=sum(p.numel() for p in module.parameters()),
        weights_hash=weights_hash,
        tokenizer_hash=tokenizer_hash,
        capabilities=CAPABILITIES,
        site_kinds=frozenset(kinds),
        missing_kinds=missing,
        source=source,
        norm=structure.norm_kind or "none",
        norm_eps=0.0 if structure.norm is None else norm_eps(structure.norm),
        notice=(
            f"{architecture} has no layout in this version, so it runs at block level by plain hooks: the "
            "stream between its blocks and the logits can be captured and changed, what is inside cannot."
        ),
    )


def _context(module: Any) -> int:
    """The longest prompt that the config states."""
    for name in ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"):
        value = getattr(module.config, name, None)
        if isinstance(value, int) and value > 1:
            return value
    return UNBOUNDED
