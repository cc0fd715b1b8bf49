"""How the tensors given to an operation meet the vectors it acts on.

At scores and patterns the features of a vector are keys. How many there are depends on how prompts are
batched, so values are cut or zero-filled to the width at hand, and keys that a vector's query does not see
(those past it in a causal model, those past its prompt in another) hold nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mech_interp.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from mech_interp.interventions import EditContext

_SHAPES = "Give [features], or [n, features] with one vector per selected prompt, position and head."


def fit_value(given: Tensor, live: Tensor, context: EditContext) -> Tensor:
    """A value in the shape [n, features], type and device of `live`.

    Raises:
        InputError: when it does not broadcast to that shape.
    """
    keyed = context.site.spec.over_keys
    try:
        fitted = fit_last(given, live.shape[-1]) if keyed else given
        out = fitted.to(live).expand_as(live)
    except RuntimeError:
        raise InputError(
            f"The value given for {context.site} has shape {tuple(given.shape)}, "
            f"which does not fit its vectors of {live.shape[-1]} features.",
            _SHAPES,
        ) from None
    return out.masked_fill(~seen_keys(live, context.seen), 0) if keyed else out


def own_entries(value: Tensor, context: EditContext) -> Tensor:
    """The rows of a value [n, features] that belong to the entries of this call; others as they are.

    Raises:
        InputError: when the value holds another number of vectors than its intervention selects.
    """
    if value.dim() != 2 or value.shape[0] == 1:
        return value
    wrong = context.totals != value.shape[0]
    if bool(wrong.any()):
        raise InputError(
            f"The value given for {context.site} holds {value.shape[0]} vectors, "
            f"but its intervention selects {int(context.totals[wrong][0])}.",
            _SHAPES,
        )
    return value[context.numbers.to(value.device)]


def seen_keys(live: Tensor, seen: Tensor) -> Tensor:
    """[n, key] bool: the first `seen` [n] keys of each entry."""
    import torch

    return torch.arange(live.shape[-1], device=live.device) < seen.to(live.device)[:, None]


def fit_last(x: Tensor, width: int) -> Tensor:
    """Cut or zero-fill the last axis."""
    import torch

    return x[..., :width] if x.shape[-1] >= width else torch.nn.functional.pad(x, (0, width - x.shape[-1]))


def orthonormal(directions: Tensor, live: Tensor, context: EditContext) -> Tensor:
    """An orthonormal basis of the directions' span as columns, [features, k]."""
    import torch

    matrix = directions.reshape(-1, directions.shape[-1]).to(device=live.device, dtype=torch.float64)
    keyed, width = context.site.spec.over_keys, live.shape[-1]
    if matrix.shape[1] != width and not keyed:
        raise InputError(
            f"The directions given for {context.site} have {matrix.shape[1]} features, "
            f"where its vectors have {width}.",
            "Give directions of shape [features] or [k, features].",
        )
    if not bool((torch.linalg.vector_norm(matrix, dim=1) > 0).all()):
        raise InputError("A direction of length zero was given.", "Give non-zero directions.")
    left, strength, _ = torch.linalg.svd(matrix.T, full_matrices=False)
    # Linearly dependent directions add nothing to the span, up to the rounding they were stored with.
    given = directions.dtype if directions.is_floating_point() else torch.float64
    rounding = max(matrix.shape) * torch.finfo(given).eps
    basis: Tensor = left[:, strength > rounding * strength.max()].to(live)
    return fit_last(basis.T, width).T if keyed else basis
