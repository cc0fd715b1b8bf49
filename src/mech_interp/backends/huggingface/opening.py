"""From a Hugging Face module in memory to a verified `HuggingFaceModel`."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from mech_interp.backends.block_level import BlockLevelModel, open_block_level
from mech_interp.backends.checks import verify
from mech_interp.backends.huggingface.layouts import layout_for, layouts
from mech_interp.backends.huggingface.layouts.base import Layout
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.writers import EDGE_LEVEL
from mech_interp.backends.protocol import Capability, ModelInfo
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import ModelError
from mech_interp.sites import KINDS


def open_module(
    module: Any,
    tokenizer: Any = None,
    *,
    name: str = "",
    source: str = "memory",
    weights_hash: str = "",
    tokenizer_hash: str = "",
    check: bool = True,
) -> HuggingFaceModel | BlockLevelModel:
    """Open a causal language model that is already in memory; at block level if it has no layout.

    The module is put in evaluation mode and its weights are frozen; nothing else about it changes.

    Raises:
        CapabilityError: when the architecture has no layout and no stack of blocks is found in it.
        ModelError: for weights that are not finite.
        IdentityError: when an identity of `backends.checks` fails.
    """
    has_layout = getattr(module.config, "model_type", "") in layouts()
    if not has_layout:
        _prepare(module, name or source)
        weights_hash = weights_hash or tensors_hash(module)
        tokenizer_hash = tokenizer_hash or (_tokenizer_hash(tokenizer) if tokenizer is not None else "")
    return (open_engine if has_layout else open_block_level)(
        module,
        tokenizer,
        name=name,
        source=source,
        weights_hash=weights_hash,
        tokenizer_hash=tokenizer_hash,
        check=check,
    )


def open_engine(
    module: Any,
    tokenizer: Any = None,
    *,
    name: str = "",
    source: str = "memory",
    weights_hash: str = "",
    tokenizer_hash: str = "",
    check: bool = True,
) -> HuggingFaceModel:
    """Open a causal language model whose architecture has a layout; see `open_module`.

    Raises:
        CapabilityError: when the architecture has no layout.
        ModelError, IdentityError: see `open_module`.
    """
    layout = layout_for(module)
    _prepare(module, name or source)
    info = _describe(layout, tokenizer, name, source, weights_hash, tokenizer_hash)
    model = HuggingFaceModel(layout, tokenizer, info)
    if check:
        verify(model, lambda tokens: library_logits(module, tokens))
    return model


def library_logits(module: Any, tokens: Tokens) -> list[Tensor]:
    """The unmodified library forward, each prompt by itself: [position, vocabulary] per prompt."""
    device = next(module.parameters()).device
    with torch.no_grad():
        return [
            module(torch.tensor([tokens.row(i)], device=device), use_cache=False).logits[0]
            for i in range(len(tokens))
        ]


def _describe(
    layout: Layout, tokenizer: Any, name: str, source: str, weights_hash: str, tokenizer_hash: str
) -> ModelInfo:
    module, sizes = layout.module, layout.sizes
    parameter = next(module.parameters())
    return ModelInfo(
        name=name or getattr(module.config, "name_or_path", "") or type(module).__name__,
        backend="huggingface",
        architecture=type(module).__name__,
        n_layers=sizes.n_layers,
        n_heads=sizes.n_heads,
        n_kv_heads=sizes.n_kv_heads,
        d_model=sizes.d_model,
        d_head=sizes.d_head,
        d_mlp=sizes.d_mlp,
        vocabulary=sizes.vocabulary,
        context=sizes.context,
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
        attention="eager" if module.config._attn_implementation == "eager" else "sdpa",
        n_parameters=sum(p.numel() for p in module.parameters()),
        weights_hash=weights_hash or tensors_hash(module),
        tokenizer_hash=tokenizer_hash or (_tokenizer_hash(tokenizer) if tokenizer is not None else ""),
        capabilities=frozenset(Capability)
        - (set() if _continues(layout) else {Capability.GENERATE})
        - (set() if layout.model_type in EDGE_LEVEL and layout.causal else {Capability.EDGES}),
        site_kinds=frozenset(KINDS) - frozenset(layout.missing),
        missing_kinds=layout.missing,
        missing_sites={
            (kind, layer): why
            for layer in range(sizes.n_layers)
            for kind, why in layout.missing_in(layer).items()
            if kind not in layout.missing
        },
        source=source,
        norm=layout.norm,
        norm_eps=layout.norm_eps,
        causal=layout.causal,
        n_outputs=sizes.n_outputs or sizes.vocabulary,
        notice=layout.notice,
        windows=tuple(block.window for block in layout.blocks),
    )


def _continues(layout: Layout) -> bool:
    """Whether the model can continue a text: its logits are over its tokens, and look ahead at none."""
    return layout.causal and layout.sizes.n_outputs in (0, layout.sizes.vocabulary)


def tensors_hash(module: Any) -> str:
    """SHA-256 over names, types, shapes and values of all parameters and buffers."""
    hasher = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        hasher.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def _tokenizer_hash(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _prepare(module: Any, name: str) -> None:
    """Evaluation mode, frozen weights, all of them finite."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    _refuse_non_finite(module, name)


def _refuse_non_finite(module: Any, name: str) -> None:
    for key, value in module.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"The weights of {name} are damaged: {key} contains NaN or infinite values.",
                "Fetch the checkpoint again, or load it in a wider dtype if it overflowed.",
            )
