"""Interventions: what is done to a site, where and to which prompts.

An `Intervention` names a site, positions, heads and an `Operation`. An operation is a function of a
stack of site vectors: it receives ``live`` of shape [n, features] (one row per selected prompt,
position and head) and returns the same shape, so one call serves many prompts and many sweep rows.
Positions count the real tokens of the unpadded prompt; negative ones count from its end.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from mech_interp.digests import digest_of
from mech_interp.errors import InputError
from mech_interp.operands import fit_last, fit_value, orthonormal, own_entries
from mech_interp.sites import Site

if TYPE_CHECKING:
    from torch import Tensor


class EditContext(Protocol):
    """What an operation may know about the vectors it is given; every tensor has n entries.

    `numbers` counts the entries inside each one's own intervention, which has `totals` of them: several
    interventions may be applied in one call, and a sweep leaves out entries that cannot matter. `seen`
    counts the keys that each entry's query sees: those up to itself, or in a bidirectional model all.
    """

    site: Site
    prompts: Tensor
    positions: Tensor
    heads: Tensor | None
    numbers: Tensor
    totals: Tensor
    seen: Tensor

    def from_run(self, source: FromRun) -> Tensor:
        """The same entries in another run, [n, features]."""
        ...

    def mean_of(self, run: str, positional: bool) -> Tensor:
        """The mean of the site over the real tokens of a run, [n, features]."""
        ...


@dataclass(frozen=True)
class FromRun:
    """A lazily read value: this site (or `site`) in the named run, at the same position and head.

    `prompt` reads another prompt of that run; by default the row's own. A head in `site` is read for
    every head that is written.
    """

    run: str
    site: Site | None = None
    prompt: int | None = None

    def __post_init__(self) -> None:
        if self.site is not None:
            object.__setattr__(self, "site", Site.parse(self.site))
        if self.prompt is not None and self.prompt < 0:
            raise InputError(f"There is no prompt {self.prompt}.", "Prompts count from 0.")


class Operation:
    """Base of all operations: ``apply(live [n, features], context) -> [n, features]``.

    `differentiable` says whether gradients flow through it to the model; `digest` identifies the
    operation, values included, for run keys.
    """

    differentiable: ClassVar[bool] = True

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        """Return the new vectors."""
        raise TypeError(f"{type(self).__name__} must define apply")

    def sources(self) -> tuple[FromRun, ...]:
        """Values that must be read from other runs before this operation can be applied."""
        return ()

    def means(self) -> tuple[tuple[str, bool], ...]:
        """(run, positional) means that must be known before this operation can be applied."""
        return ()

    def group_key(self) -> tuple[Any, ...]:
        """Operations with equal keys may be applied in one call; values per entry come from the context."""
        return (type(self), *(_group_part(getattr(self, f.name)) for f in fields(self)))  # type: ignore[arg-type]

    def digest(self) -> str:
        """A hash of the operation and its values (hex, 16 characters)."""
        # A class of the user's own is known by its code as well as by its values.
        return digest_of(type(self).__name__, type(self).apply, self)[:16]


@dataclass(frozen=True, eq=False)
class Replace(Operation):
    """Set the vectors to a value: a tensor [features] or [n, features], or `FromRun`."""

    value: Tensor | FromRun

    def sources(self) -> tuple[FromRun, ...]:
        return (self.value,) if isinstance(self.value, FromRun) else ()

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        return _value(self.value, live, context)


@dataclass(frozen=True, eq=False)
class Add(Operation):
    """Add ``scale`` times a value."""

    value: Tensor | FromRun
    scale: float = 1.0

    def sources(self) -> tuple[FromRun, ...]:
        return (self.value,) if isinstance(self.value, FromRun) else ()

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        return live + self.scale * _value(self.value, live, context)


@dataclass(frozen=True, eq=False)
class Scale(Operation):
    """Multiply by a factor."""

    factor: float

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        return live * self.factor


@dataclass(frozen=True, eq=False)
class Zero(Operation):
    """Set to zero."""

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        return live.new_zeros(live.shape)


@dataclass(frozen=True, eq=False)
class ProjectOut(Operation):
    """Remove the component inside the span of `directions` ([features] or [k, features])."""

    directions: Tensor

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        basis = orthonormal(self.directions, live, context)
        return live - (live @ basis) @ basis.T


@dataclass(frozen=True, eq=False)
class SubspaceSet(Operation):
    """Set the component inside the span of `directions` to that of a value; leave the rest alone."""

    directions: Tensor
    value: Tensor | FromRun

    def sources(self) -> tuple[FromRun, ...]:
        return (self.value,) if isinstance(self.value, FromRun) else ()

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        basis = orthonormal(self.directions, live, context)
        wanted = _value(self.value, live, context)
        return live + ((wanted - live) @ basis) @ basis.T


@dataclass(frozen=True, eq=False)
class Mean(Operation):
    """Set to the site's mean over the real tokens of a run; per position if `positional`."""

    run: str = "base"
    positional: bool = False

    def means(self) -> tuple[tuple[str, bool], ...]:
        return ((self.run, self.positional),)

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        return context.mean_of(self.run, self.positional).to(live)


@dataclass(frozen=True, eq=False)
class Noise(Operation):
    """Add Gaussian noise of a given standard deviation (in units of the site).

    The draw depends on seed, site, prompt, position and head only, never on how rows are batched.
    """

    std: float
    seed: int = 0

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        import torch

        heads = context.heads.tolist() if context.heads is not None else [-1] * len(live)
        draws = []
        places = (context.prompts.tolist(), context.positions.tolist(), heads, context.seen.tolist())
        for prompt, position, head, seen in zip(*places, strict=True):
            key = f"{self.seed}|{context.site.name}|{prompt}|{position}|{head}".encode()
            generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7], "big"))
            # Over keys, only those that the query sees, so that the draw does not depend on the width.
            size = seen if context.site.spec.over_keys else live.shape[1]
            draw = torch.randn(size, generator=generator, dtype=torch.float64)
            draws.append(fit_last(draw, live.shape[1]))
        return live + self.std * torch.stack(draws).to(live)


@dataclass(frozen=True, eq=False)
class Freeze(Operation):
    """Hold the site at its value in a run (the base run by default)."""

    run: str = "base"

    def sources(self) -> tuple[FromRun, ...]:
        return (FromRun(self.run),)

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        return context.from_run(FromRun(self.run)).to(live)


@dataclass(frozen=True, eq=False)
class Custom(Operation):
    """A user's own function ``f(live, context) -> tensor`` of the same shape.

    Each vector must be handled by itself: a sweep applies the function to many rows at once, and at
    scores and patterns may cut off keys that no query in the batch sees (keys past a vector's own query
    are zero on the way in and ignored on the way out). `uses_gradient` states whether gradients flow
    through it; the digest covers the function's code, constants and the values that it refers to.
    """

    function: Callable[[Tensor, EditContext], Tensor]
    uses_gradient: bool = True

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return self.uses_gradient

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        out = self.function(live, context)
        shape = getattr(out, "shape", None)
        if shape != live.shape:
            found = f"a {type(out).__name__}" if shape is None else f"shape {tuple(shape)}"
            raise InputError(
                f"Your function for {context.site} returned {found}, where a tensor of shape "
                f"{tuple(live.shape)} went in.",
                "Return one vector per vector given.",
            )
        return out


Phase = Literal["all", "prompt", "generated"]


@dataclass(frozen=True)
class Intervention:
    """One operation at one site.

    Attributes:
        site: a `Site` or its text; a head in the site is the same as `heads=(head,)`.
        operation: what to do.
        positions: real-token positions (negative from the end of the prompt); None means all.
        heads: heads of a headed site; None means all.
        prompts: indices of the prompts of the batch it applies to; None means all.
        phase: in generation, whether it applies to prompt tokens, generated tokens or all.
    """

    site: Site
    operation: Operation
    positions: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    prompts: tuple[int, ...] | None = None
    phase: Phase = field(default="all")

    def __init__(
        self,
        site: Site | str,
        operation: Operation,
        positions: int | Sequence[int] | None = None,
        heads: int | Sequence[int] | None = None,
        prompts: int | Sequence[int] | None = None,
        phase: Phase = "all",
    ) -> None:
        parsed = Site.parse(site)
        if not isinstance(operation, Operation):
            raise InputError(
                f"{operation!r} is no operation.", "Give for example Zero() or Replace(FromRun('other'))."
            )
        chosen = _ints("heads", heads)
        if parsed.head is not None:
            if chosen is not None:
                raise InputError(f"{parsed} already names a head.", "Give heads= or the bracket, not both.")
            chosen = (parsed.head,)
        if chosen is not None and parsed.spec.heads is None:
            raise InputError(f"{parsed} has no heads.", "Leave out heads=.")
        if phase not in ("all", "prompt", "generated"):
            raise InputError(f"There is no phase {phase!r}.", "Use all, prompt or generated.")
        for name, value in (
            ("site", parsed.whole),
            ("operation", operation),
            ("positions", _ints("positions", positions)),
            ("heads", chosen),
            ("prompts", _ints("prompts", prompts)),
            ("phase", phase),
        ):
            object.__setattr__(self, name, value)

    def digest(self) -> str:
        """A hash of everything that decides this intervention's effect (hex, 16 characters)."""
        where = (str(self.site), self.positions, self.heads, self.prompts, self.phase)
        return digest_of(*where, self.operation.digest())[:16]


def _ints(name: str, value: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        found: tuple[int, ...] = (operator.index(value),)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        try:
            found = tuple(operator.index(v) for v in value)  # type: ignore[union-attr]
        except TypeError:
            raise InputError(
                f"{name}={value!r} is no list of whole numbers.", "Give for example [0, -1]."
            ) from None
    if not found:
        raise InputError(f"{name}= is empty, so the intervention would do nothing.", "Leave it out for all.")
    return found


def _value(value: Tensor | FromRun, live: Tensor, context: EditContext) -> Tensor:
    if isinstance(value, FromRun):
        return fit_value(context.from_run(value), live, context)
    return fit_value(own_entries(value, context), live, context)


def _group_part(value: Any) -> Any:
    if isinstance(value, FromRun):
        # The prompt that is read is carried per entry, so it does not split groups.
        return (value.run, value.site)
    return value if isinstance(value, int | float | str | bool | type(None)) else id(value)


__all__ = [
    "Add",
    "Custom",
    "EditContext",
    "Freeze",
    "FromRun",
    "Intervention",
    "Mean",
    "Noise",
    "Operation",
    "Phase",
    "ProjectOut",
    "Replace",
    "Scale",
    "SubspaceSet",
    "Zero",
]
