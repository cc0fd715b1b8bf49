"""Backward rules of relevance patching: norm scales frozen, activations by the slope of their secant.

A gradient at one point misreads saturating activations and norms whose scale follows their input. With
these rules a norm passes gradients as if its scale were a constant, an activation f by f(x) / x instead
of f'(x), and the product of a gated MLP gives each factor half. Values of the forward pass stay as they
are. Source: Jafari et al. 2025 (RelP), the rules for norms, activations and gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from mech_interp.backends.protocol import InstrumentedModel
from mech_interp.errors import CapabilityError

if TYPE_CHECKING:
    from torch import Tensor

    Function = Callable[[Tensor], Tensor]

Rules = Literal["none", "relp"]
RULES: tuple[Rules, ...] = ("none", "relp")
_SMALL = 1e-6  # activations nearer to zero take the slope of the secant from here


def backward_rules(model: InstrumentedModel, rules: Rules) -> AbstractContextManager[None]:
    """The context in which backward passes follow `rules`: plain gradients (``none``), or ``relp``."""
    return relevance_rules(model) if rules == "relp" else nullcontext()


@contextmanager
def relevance_rules(model: InstrumentedModel) -> Iterator[None]:
    """Use the rules in every backward pass through the model while the context is open.

    Raises:
        CapabilityError: for backends whose blocks are not at hand, and for mixtures of experts.
    """
    from mech_interp.backends.huggingface.model import HuggingFaceModel

    if not isinstance(model, HuggingFaceModel) or any(b.mixture is not None for b in model.layout.blocks):
        raise CapabilityError(
            f"{model.info.name} cannot use the rules of relevance patching here.",
            "Use a dense model with the default backend, or rules none.",
        )
    layout = model.layout
    kind, eps = layout.norm, layout.norm_eps
    with ExitStack() as stack:
        for block in layout.blocks:
            weights = block.weights()
            for name, gain in (("norm1", "ln1.w"), ("norm2", "ln2.w")):
                _replace(stack, block, name, frozen(getattr(block, name), kind, eps, weights.get(gain)))
            for name, gain in (("post_attention", "ln1_post.w"), ("post_mlp", "ln2_post.w")):
                norm = getattr(block, name)
                if norm is not None:
                    _replace(stack, block, name, frozen(norm, kind, eps, weights.get(gain)))
            _replace(stack, block, "mlp_activation", secant(block.mlp_activation))
        final = frozen(lambda x: x, kind, eps, layout.weights().get("ln_final.w"))

        def hook(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            del module
            (x,) = inputs
            moved: Tensor = final(x) - x.detach()  # zero, and carries the frozen norm's gradient
            return output.detach() + moved

        stack.callback(layout.final_norm.register_forward_hook(hook).remove)
        yield


def frozen(norm: Function, kind: str, eps: float, gain: Tensor | None) -> Function:
    """The norm with gradients as if its scale were a constant: (x - mean x) gain / sigma."""

    def function(x: Tensor) -> Tensor:
        moved = x - x.detach()
        if kind == "none":
            return norm(x)
        if kind == "layer":
            moved = moved - moved.mean(-1, keepdim=True)
        held = x.detach()
        centred = held - held.mean(-1, keepdim=True) if kind == "layer" else held
        moved = moved / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return norm(x).detach() + (moved if gain is None else moved * gain.detach())

    return function


def secant(
    activation: Callable[[Tensor, Tensor | None], Tensor],
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """The activation with gradients by the slope of its secant through the origin; half to each gate."""

    def function(pre: Tensor, linear: Tensor | None) -> Tensor:
        held, side = pre.detach(), None if linear is None else linear.detach()
        out = activation(held, side)
        apart = held.abs() > _SMALL
        safe = held.where(apart, held.new_tensor(_SMALL))
        slope = activation(safe, side) / safe
        if linear is None or side is None:
            return out + slope * (pre - held)
        plain = activation(held, side.new_ones(()).expand_as(side))
        return out + 0.5 * slope * (pre - held) + 0.5 * plain * (linear - side)

    return function


def _replace(stack: ExitStack, target: Any, name: str, value: Any) -> None:
    """Set an attribute of one object until the context closes."""
    own, before = name in vars(target), getattr(target, name)
    setattr(target, name, value)

    def restore() -> None:
        if own:
            setattr(target, name, before)
        else:
            delattr(target, name)

    stack.callback(restore)
