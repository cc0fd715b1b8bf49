"""Interventions: what is done to a site, where and to which prompts.

An `Intervention` names a site, positions, heads and an `Operation`. An operation is a function of a
stack of site vectors: it receives ``live`` of shape [n, features] (one row per selected prompt,
position and head) and returns the same shape, so one call serves many prompts and many sweep rows.
Positions count the real tokens of the unpadded prompt; negative ones count from its end.
"""

from __future__ import annotations

import hashlib
import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, SupportsIndex

from mech_interp.errors import InputError
from mech_interp.sites import Site

if TYPE_CHECKING:
    from torch import Tensor


class EditContext(Protocol):
    """What an operation may know about the vectors it is given; every tensor has n entries."""

    site: Site
    prompts: Tensor
    positions: Tensor
    heads: Tensor | None

    def from_run(self, source: FromRun) -> Tensor:
        """The same entries in another run, [n, features]."""
        ...

    def mean_of(self, run: str, positional: bool) -> Tensor:
        """The mean of the site over the real tokens of a run, [n, features]."""
        ...


@dataclass(frozen=True)
class FromRun:
    """A lazily read value: this site (or `site`) in the named run, at the same position and head.

    `prompt` reads another prompt of that run; by default the row's own.
    """

    run: str
    site: Site | None = None
    prompt: int | None = None


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
        hasher = hashlib.sha256(type(self).__name__.encode())
        for f in fields(self):  # type: ignore[arg-type]
            hasher.update(f.name.encode() + b"=")
            _hash_value(hasher, getattr(self, f.name))
        return hasher.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Replace(Operation):
    """Set the vectors to a value: a tensor that broadcasts to [n, features], or `FromRun`."""

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
        basis = _orthonormal(self.directions, live)
        return live - (live @ basis) @ basis.T


@dataclass(frozen=True, eq=False)
class SubspaceSet(Operation):
    """Set the component inside the span of `directions` to that of a value; leave the rest alone."""

    directions: Tensor
    value: Tensor | FromRun

    def sources(self) -> tuple[FromRun, ...]:
        return (self.value,) if isinstance(self.value, FromRun) else ()

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        basis = _orthonormal(self.directions, live)
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
        for prompt, position, head in zip(
            context.prompts.tolist(), context.positions.tolist(), heads, strict=True
        ):
            key = f"{self.seed}|{context.site.name}|{prompt}|{position}|{head}".encode()
            generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7], "big"))
            draws.append(torch.randn(live.shape[1:], generator=generator, dtype=torch.float64))
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

    `uses_gradient` states whether gradients flow through it; the digest covers the function's code.
    """

    function: Callable[[Tensor, EditContext], Tensor]
    uses_gradient: bool = True

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return self.uses_gradient

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        out = self.function(live, context)
        if out.shape != live.shape:
            raise InputError(
                f"Your function for {context.site} returned shape {tuple(out.shape)}, "
                f"where {tuple(live.shape)} went in.",
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
        chosen = _ints(heads)
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
            ("positions", _ints(positions)),
            ("heads", chosen),
            ("prompts", _ints(prompts)),
            ("phase", phase),
        ):
            object.__setattr__(self, name, value)

    def digest(self) -> str:
        """A hash of everything that decides this intervention's effect (hex, 16 characters)."""
        parts = (self.site, self.positions, self.heads, self.prompts, self.phase, self.operation.digest())
        return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def _ints(value: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    return (int(value),) if isinstance(value, SupportsIndex) else tuple(int(v) for v in value)


def _value(value: Tensor | FromRun, live: Tensor, context: EditContext) -> Tensor:
    if isinstance(value, FromRun):
        return context.from_run(value).to(live)
    try:
        return value.to(live).expand_as(live)
    except RuntimeError:
        raise InputError(
            f"The value given for {context.site} has shape {tuple(value.shape)}, "
            f"which does not fit its vectors of shape {tuple(live.shape)}.",
            "Give [features], or [n, features] with one vector per selected prompt, position and head.",
        ) from None


def _orthonormal(directions: Tensor, like: Tensor) -> Tensor:
    """An orthonormal basis of the directions' span as columns, [features, k]."""
    import torch

    matrix = directions.reshape(-1, directions.shape[-1]).to(device=like.device, dtype=torch.float64)
    if not bool((torch.linalg.vector_norm(matrix, dim=1) > 0).all()):
        raise InputError("A direction of length zero was given.", "Give non-zero directions.")
    left, strength, _ = torch.linalg.svd(matrix.T, full_matrices=False)
    # Linearly dependent directions add nothing to the span.
    basis: Tensor = left[:, strength > 1e-10 * strength.max()]
    return basis.to(like)


def _group_part(value: Any) -> Any:
    if isinstance(value, FromRun):
        # The prompt that is read is carried per entry, so it does not split groups.
        return (value.run, value.site)
    return value if isinstance(value, int | float | str | bool | type(None)) else id(value)


def _hash_value(hasher: hashlib._Hash, value: Any) -> None:
    if hasattr(value, "detach"):
        array = value.detach().cpu().contiguous()
        hasher.update(f"{array.dtype}{tuple(array.shape)}".encode())
        hasher.update(array.view(-1).double().numpy().tobytes())
    elif callable(value):
        hasher.update(_code_bytes(value))
    else:
        hasher.update(repr(value).encode())


def _code_bytes(function: Callable[..., Any]) -> bytes:
    """Source text where it can be read, else the compiled code, with the values it closes over."""
    target = function
    while hasattr(target, "__wrapped__"):
        target = target.__wrapped__
    code = getattr(target, "__code__", None)
    closure = getattr(target, "__closure__", None) or ()
    bound = "".join(_describe(cell.cell_contents) for cell in closure)
    if isinstance(code, types.CodeType):
        try:
            text = inspect.getsource(target)
        except (OSError, TypeError):
            text = code.co_code.hex() + repr(code.co_names) + repr([c for c in code.co_consts if not callable(c)])
        return (text + bound + repr(getattr(target, "__defaults__", None))).encode()
    return _describe(function).encode()


def _describe(value: Any) -> str:
    hasher = hashlib.sha256()
    if hasattr(value, "detach"):
        _hash_value(hasher, value)
        return hasher.hexdigest()
    return repr(value)


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
