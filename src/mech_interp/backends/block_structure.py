"""Finds the parts of a library model that has no layout: by what its modules take and give, not by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mech_interp.backends.checks import TOLERANCE
from mech_interp.backends.huggingface.layouts.base import norm_eps
from mech_interp.backends.watching import first_input, first_output
from mech_interp.errors import CapabilityError


@dataclass(frozen=True)
class Call:
    """One call of a module in one forward: its first input and first output."""

    module: nn.Module
    taken: Tensor
    given: Tensor


@dataclass(frozen=True)
class Structure:
    """What was found in a model.

    Attributes:
        blocks: the decoder blocks; the output of each is the input of the next.
        embedding: the token embedding, where what it gives is what enters the stream (up to an addition
            that depends on positions alone).
        norm: the module between the last block and the unembedding, if one module is all there is.
        head: the unembedding, where the logits are just what it gives.
        sublayers: attention and MLP of each block, where the two are all that the block adds.
        norm_kind, norm_gain: what the norm was found to compute (``layer``, ``rms``, or ``none`` without
            one) and its factors; None where it is neither.
        d_model: the width of the stream.
    """

    blocks: tuple[nn.Module, ...]
    embedding: nn.Module | None
    norm: nn.Module | None
    head: nn.Module | None
    sublayers: tuple[tuple[nn.Module, nn.Module], ...]
    norm_kind: str | None
    norm_gain: Tensor | None
    d_model: int


def find_structure(module: Any, probes: Sequence[Sequence[int]]) -> Structure:
    """The parts of a causal language model, seen in forwards on two prompts of the same length.

    Raises:
        CapabilityError: when no list of blocks passes one stream on from each to the next.
    """
    runs = [_watch_calls(module, ids) for ids in probes]
    calls, logits = runs[0]
    by_module = _called_once(calls)
    blocks = _find_blocks(module, by_module)
    bound = TOLERANCE.get(str(logits.dtype).removeprefix("torch."), 6e-2)
    final = by_module[id(blocks[-1])].given
    unembedding = by_module.get(id(module.get_output_embeddings()))
    norm = _find_between(calls, final, unembedding.taken) if unembedding is not None else None
    joined = unembedding is not None and (norm is not None or _equal(final, unembedding.taken))
    # Where the logits are scaled or capped after the unembedding, no module alone gives them.
    plain = unembedding is not None and joined and _equal(unembedding.given, logits)
    kind, gain = ("none", None) if norm is None else _read_norm(norm, by_module, bound)
    return Structure(
        blocks=tuple(blocks),
        embedding=_find_embedding(module, blocks[0], [_called_once(run[0]) for run in runs], bound),
        norm=norm,
        head=unembedding.module if unembedding is not None and plain else None,
        sublayers=_find_sublayers(blocks, by_module, bound),
        norm_kind=kind if joined else None,
        norm_gain=gain,
        d_model=final.shape[-1],
    )


@torch.no_grad()
def _watch_calls(module: Any, ids: Sequence[int]) -> tuple[list[Call], Tensor]:
    """Every call of a submodule that takes and gives a [1, position, feature] tensor, in order of return."""
    calls: list[Call] = []

    def see(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, found = first_output(output), first_input(args, kwargs)
        if given is not None and found is not None and given.dim() == 3:
            # Copies, since some architectures go on to write into what their modules gave.
            calls.append(Call(part, found[1].clone(), given.clone()))

    handles = [part.register_forward_hook(see, with_kwargs=True) for part in module.modules()]
    try:
        device = next(module.parameters()).device
        out = module(torch.tensor([list(ids)], device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls, out.logits


def _called_once(calls: Sequence[Call]) -> dict[int, Call]:
    """The call of each module that was called once."""
    count: dict[int, int] = {}
    for call in calls:
        count[id(call.module)] = count.get(id(call.module), 0) + 1
    return {id(call.module): call for call in calls if count[id(call.module)] == 1}


def _find_blocks(module: Any, calls: dict[int, Call]) -> list[nn.Module]:
    """The longest list of modules of which each takes what the one before it gave."""
    best: list[nn.Module] = []
    for members in (list(part) for part in module.modules() if isinstance(part, nn.ModuleList)):
        seen = [calls[id(member)] for member in members if id(member) in calls]
        if len(seen) != len(members) or len(members) <= len(best):
            continue
        same = all(call.taken.shape == call.given.shape for call in seen)
        if same and all(_equal(a.given, b.taken) for a, b in pairwise(seen)):
            best = members
    if not best:
        raise CapabilityError(
            f"{type(module).__name__} has no layout in this version, and no list of blocks was found in it "
            "that pass one residual stream on from each to the next.",
            "mech list-hf-architectures lists those that can be opened.",
        )
    return best


def _find_embedding(
    module: Any, first: nn.Module, runs: Sequence[dict[int, Call]], bound: float
) -> nn.Module | None:
    """The token embedding, if what is added to it on the way to the first block is the same in all runs."""
    embedding: nn.Module = module.get_input_embeddings()
    added = []
    for calls in runs:
        if id(embedding) not in calls or calls[id(embedding)].given.shape != calls[id(first)].taken.shape:
            return None
        added.append(calls[id(first)].taken - calls[id(embedding)].given)
    # Both runs see the same positions and other tokens.
    return embedding if _close(added[0], added[1], bound) else None


def _find_between(calls: Sequence[Call], taken: Tensor, given: Tensor) -> nn.Module | None:
    """The innermost module that turned the one tensor into the other (inner modules return first)."""
    for call in calls:
        if _equal(call.taken, taken) and _equal(call.given, given):
            return call.module
    return None


def _read_norm(norm: nn.Module, calls: dict[int, Call], bound: float) -> tuple[str | None, Tensor | None]:
    """Which kind of norm a module computed in its call, with which factors."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or id(norm) not in calls:
        return None, None
    x, given = calls[id(norm)].taken.double(), calls[id(norm)].given
    shift = getattr(norm, "bias", None)
    for kind, centred in (("layer", x - x.mean(-1, keepdim=True)), ("rms", x)):
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + norm_eps(norm)).sqrt()
        for gain in (weight, 1 + weight):
            wanted = scaled * gain.double() + (0.0 if shift is None else shift.double())
            if _close(wanted, given, bound):
                return kind, gain.detach()
    return None, None


def _find_sublayers(
    blocks: Sequence[nn.Module], calls: dict[int, Call], bound: float
) -> tuple[tuple[nn.Module, nn.Module], ...]:
    """Two parts of every block, under the same names, whose outputs are all that the block adds."""
    pairs: list[set[tuple[str, str]]] = []
    for block in blocks:
        own = calls[id(block)]
        parts = {name: calls[id(part)] for name, part in block.named_children() if id(part) in calls}
        # A dropout, which is idle here, gives what it takes and would pass for the sublayer before it.
        same = {
            name: call
            for name, call in parts.items()
            if call.given.shape == own.given.shape and not _equal(call.taken, call.given)
        }
        pairs.append(
            {
                (a, b)
                for a in same
                for b in same
                if "att" in a.lower()
                and "att" not in b.lower()
                and "norm" not in b.lower()
                and _close(own.taken + same[a].given + same[b].given, own.given, bound)
            }
        )
    shared = set.intersection(*pairs)
    if len(shared) != 1:
        return ()
    first, second = shared.pop()
    return tuple((getattr(block, first), getattr(block, second)) for block in blocks)


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)


def _close(left: Tensor, right: Tensor, bound: float) -> bool:
    left, right = left.double(), right.double()
    scale = max(1e-6, float(left.abs().max()), float(right.abs().max()))
    return float((left - right).abs().max()) <= bound * scale
