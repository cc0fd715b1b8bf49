"""Weights read off TransformerLens' bridge, in the convention of `InstrumentedModel.weights`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mech_interp.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from mech_interp.backends.transformerlens import TransformerLensModel

# Component of a block, and attribute, by kind.
IN_BLOCK = {
    **{name: ("attn", name) for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")},
    **{name: ("mlp", name) for name in ("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out")},
}
OUTSIDE = {
    "W_E": ("embed", "weight"),
    "W_U": ("unembed", "W_U"),
    "b_U": ("unembed", "b_U"),
}
_BY_HEAD = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")


def weight(model: TransformerLensModel, kind: str, layer: int | None, head: int | None) -> Tensor:
    """One weight: the bridge's own where it has it in this form, otherwise the library's.

    In compatibility mode only the bridge's: the library's are in other coordinates.

    Raises:
        InputError: naming the kinds there are, when the model has no such weight.
    """
    info = model.info
    if layer is not None and not 0 <= layer < info.n_layers:
        raise InputError(
            f"There is no layer {layer}: {info.name} has {info.n_layers} layers.",
            f"Use 0 to {info.n_layers - 1}.",
        )
    plain = model.layout.weights() if layer is None else model.layout.blocks[layer].weights()
    found = _of_bridge(model, kind, layer, plain)
    if found is None:
        where = "outside the blocks" if layer is None else f"in layer {layer}"
        raise InputError(
            f"{info.name} has no weight {kind!r} {where}.",
            nearest(kind, plain) or f"There are: {', '.join(plain)}.",
        )
    if head is None:
        return found.detach()
    if kind not in _BY_HEAD:
        raise InputError(f"{kind} is not divided into heads.", "Leave out head=.")
    if not 0 <= head < found.shape[0]:
        raise InputError(f"{kind} has no head {head}.", f"Use 0 to {found.shape[0] - 1}.")
    return found[head].detach()


def final_gain(model: TransformerLensModel) -> Tensor | float:
    """The factors that the final norm applies; 1 where it has none to learn."""
    found = _of_bridge(model, "ln_final.w", None, model.layout.weights())
    return 1.0 if found is None else found


def _gain(norm: Any) -> Tensor:
    """The factors that a norm of the bridge applies (some architectures store them less 1)."""
    stored: Tensor = norm.weight
    return 1.0 + stored if norm.uses_weight_offset else stored


def _of_bridge(
    model: TransformerLensModel, kind: str, layer: int | None, plain: Mapping[str, Tensor]
) -> Tensor | None:
    own = _read(model.bridge, kind, layer)
    library = plain.get(kind)
    if model.compatibility:
        return own
    # Some kinds the bridge does not have, or not in one convention for all architectures (fused or
    # per-layer shapes, unembedding biases of zeros): the layout's then.
    return own if own is not None and library is not None and own.shape == library.shape else library


def _read(bridge: Any, kind: str, layer: int | None) -> Tensor | None:
    owner = bridge if layer is None else bridge.blocks[layer]
    part, _, letter = kind.partition(".")
    try:
        if letter == "w":
            return _gain(getattr(owner, part))
        if letter == "b":
            return _tensor(getattr(owner, part).bias)
        place = (OUTSIDE if layer is None else IN_BLOCK).get(kind)
        if place is None:
            return None
        return _tensor(getattr(getattr(owner, place[0]), place[1]))
    except (AttributeError, RuntimeError, ValueError, TypeError):
        return None  # a component without it


def _tensor(value: Any) -> Tensor | None:
    import torch

    return value if isinstance(value, torch.Tensor) else None
