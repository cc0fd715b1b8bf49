"""Plain forward hooks on a library model's submodules, for the sites that a tap wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import Port
from mech_interp.errors import ModelError
from mech_interp.sites import Site

Act = Callable[[Tensor], Tensor]
# The stream between the sublayers has no module of its own: the norm that reads it gets the very tensor
# that the MLP's output is added to, so this one is written in place.
IN_PLACE = frozenset({"resid_mid"})


@dataclass(frozen=True)
class Watch:
    """One site to pass through: where it is, and what is done with its tensor."""

    site: Site
    port: Port
    act: Act


@contextmanager
def watching(watches: Iterable[Watch], *, rows: int, grad: bool = False) -> Iterator[None]:
    """Hook the ports of all watches while the context lasts, several on one port in order of the sites.

    Args:
        watches: what to pass through.
        rows: rows of the batch; tensors that the library shares between rows are widened to it.
        grad: keep what was seen on the path of gradients, and let them start at the embeddings.
    """
    groups: dict[tuple[int, str], list[Watch]] = {}
    for watch in sorted(watches, key=lambda one: one.site.order):
        groups.setdefault((id(watch.port.module), watch.port.side), []).append(watch)
    handles = []
    try:
        for (_, side), group in groups.items():
            module = group[0].port.module
            if side == "input":
                before = _before(group, rows, grad)
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_after(group, rows, grad)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | str, Tensor] | None:
    """Where a module's first tensor came in (an index or a keyword), and the tensor."""
    named = {"hidden_states": kwargs["hidden_states"]} if "hidden_states" in kwargs else kwargs
    if args and isinstance(args[0], Tensor):
        return 0, args[0]
    return next(((key, value) for key, value in named.items() if isinstance(value, Tensor)), None)


def first_output(output: Any) -> Tensor | None:
    """The tensor that a module gives, or the first of those that it gives."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _before(group: list[Watch], rows: int, grad: bool) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = first_input(args, kwargs)
        if found is None:
            raise _no_tensor(group[0], module, "takes")
        key, value = found
        new = _through_all(group, value, rows, grad)
        if new is value:
            return None
        if isinstance(key, int):
            return (*args[:key], new, *args[key + 1 :]), kwargs
        return args, kwargs | {key: new}

    return hook


def _after(group: list[Watch], rows: int, grad: bool) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        value = first_output(output)
        if value is None:
            raise _no_tensor(group[0], module, "gives")
        new = _through_all(group, value, rows, grad)
        if new is value:
            return None
        return new if isinstance(output, Tensor) else type(output)((new, *output[1:]))

    return hook


def _no_tensor(watch: Watch, module: nn.Module, does: str) -> ModelError:
    return ModelError(
        f"{watch.site} was looked for in a {type(module).__name__}, which {does} no tensor.",
        "The layout of this architecture is at fault: its port points at the wrong module.",
    )


def _through_all(group: list[Watch], value: Tensor, rows: int, grad: bool) -> Tensor:
    for watch in group:
        value = _through(watch, value, rows, grad)
    return value


def _through(watch: Watch, value: Tensor, rows: int, grad: bool) -> Tensor:
    """Show a site's part of a tensor to the watch; the tensor to go on with, `value` itself if unchanged."""
    kind = watch.site.kind
    if kind == "pos_embed" and len(value) != rows:
        value = value.expand(rows, *value.shape[1:])
    # A copy, since some architectures go on to write into the tensors that their modules gave.
    whole = value.clone()
    rows_of = partial(_in_rows, rows=rows)
    if grad and kind in ("embed", "pos_embed") and not whole.requires_grad:
        whole.requires_grad_()  # weights are frozen, so the graph starts at the embeddings
    part = watch.port.view(rows_of(whole))
    _check_part(watch, part, whole, rows)
    new = watch.act(part)
    if new is part and not grad:
        return value
    if kind in IN_PLACE:
        watch.port.view(rows_of(value)).copy_(new)
        return value
    changed = whole.clone()
    watch.port.view(rows_of(changed)).copy_(new)
    return changed


def _in_rows(x: Tensor, rows: int) -> Tensor:
    """[row, position, ...] of a tensor in which some architectures fold rows and positions into one axis."""
    return x.view(rows, -1, x.shape[-1]) if x.dim() == 2 else x


def _check_part(watch: Watch, part: Tensor, whole: Tensor, rows: int) -> None:
    if part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
        raise ModelError(
            f"What was cut out for {watch.site} is a copy, so writing to it would change nothing.",
            "The layout of this architecture is at fault: its port's view must be a view.",
        )
    wanted = 1 + len(watch.site.spec.axes)
    if part.dim() != wanted or len(part) != rows:
        raise ModelError(
            f"What was found at {watch.site} has shape {tuple(part.shape)}, where {wanted} axes and {rows} "
            "rows should be.",
            "The layout of this architecture is at fault: its port points at the wrong module.",
        )
