"""What an operation is told about the vectors it is given, and the reading of values from other runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mech_interp.errors import InputError
from mech_interp.interventions import (
    Add,
    Freeze,
    FromRun,
    Mean,
    Noise,
    Operation,
    ProjectOut,
    Replace,
    Scale,
    SubspaceSet,
    Zero,
)
from mech_interp.operands import fit_last, seen_keys
from mech_interp.sites import Site

# Kinds that hold numbers of things, and the operations that only mean something on quantities.
INTEGERS = frozenset({"expert_indices"})
ARITHMETIC = (Add, Mean, Noise, ProjectOut, Scale, SubspaceSet, Zero)


class Reader(Protocol):
    """Values of sites in other runs."""

    def gather(
        self, run: str, site: Site, prompts: Tensor, positions: Tensor, heads: Tensor | None, seen: Tensor
    ) -> Tensor:
        """[n, features] at the given entries, whose queries see `seen` keys."""
        ...

    def mean(self, run: str, site: Site, positional: bool) -> Tensor:
        """Mean over a run's real tokens, [(position,) (head,) features]."""
        ...


@dataclass
class Entries:
    """The `EditContext` an operation receives."""

    site: Site
    prompts: Tensor
    positions: Tensor
    heads: Tensor | None
    numbers: Tensor
    totals: Tensor
    seen: Tensor
    window: int | None
    source_prompts: Tensor
    reader: Reader | None

    def from_run(self, source: FromRun) -> Tensor:
        """The same entries in another run (for scores and patterns: rows over that run's keys)."""
        if self.reader is None:
            raise InputError(
                f"An intervention at {self.site} reads the run {source.run!r}, which was not given.",
                "Pass it in runs=, where the call takes other runs.",
            )
        site, heads = source.site or self.site, self.heads
        if site.head is not None:
            heads = torch.full_like(self.positions, site.head)
        elif site.spec.heads is None:
            heads = None
        prompts = torch.where(self.source_prompts >= 0, self.source_prompts, self.prompts)
        try:
            return self.reader.gather(source.run, site.whole, prompts, self.positions, heads, self.seen)
        except KeyError:
            raise InputError(
                f"An operation at {self.site} reads {site} in the run {source.run!r} without having said so.",
                "Name it in the operation's sources().",
            ) from None

    def mean_of(self, run: str, positional: bool) -> Tensor:
        """The mean of the site over a run's real tokens."""
        if self.reader is None:
            raise InputError(
                f"{self.site} is set to a mean of the run {run!r}, which was not given.",
                "Pass it in runs=, where the call takes other runs.",
            )
        try:
            means = self.reader.mean(run, self.site, positional)
        except KeyError:
            raise InputError(
                f"An operation at {self.site} reads its mean over the run {run!r} without having said so.",
                "Name it in the operation's means().",
            ) from None
        if not positional:
            picked = means.expand(len(self.positions), *means.shape)
        elif int(self.positions.max()) < len(means):
            picked = means[self.positions]
        else:
            raise InputError(
                f"{self.site} is set to a mean per position of the run {run!r}, which has {len(means)} "
                f"positions, none of them {int(self.positions.max())}.",
                "Use a run at least as long, or the mean over all positions.",
            )
        if self.heads is None:
            return picked
        return picked[torch.arange(len(picked), device=picked.device), self.heads]


def check_operation(site: Site, operation: Operation) -> None:
    """Refuse arithmetic on what are no quantities."""
    if site.kind in INTEGERS and isinstance(operation, ARITHMETIC):
        raise InputError(
            f"{type(operation).__name__} cannot act at {site}, which holds numbers of experts.",
            "Use Replace, Freeze or a function of your own that gives whole numbers.",
        )


def applied(operation: Operation, live: Tensor, context: Entries) -> Tensor:
    """The new vectors, in the shape and type of the old; keys that are not seen stay as they were."""
    if context.site.spec.over_keys:
        seen = seen_keys(live, context.seen)
        if context.window is not None:
            keys = torch.arange(live.shape[-1], device=live.device)
            seen &= keys > (context.positions - context.window)[:, None]
        new = operation.apply(live.masked_fill(~seen, 0), context)
        return torch.where(seen, fit_last(new, live.shape[-1]).to(live.dtype), live)
    whole = context.site.kind in INTEGERS
    # A value that is given must not become whole by being cut off before it is looked at.
    given = live.double() if whole and isinstance(operation, Replace | Freeze) else live
    new = operation.apply(given, context)
    name = type(operation).__name__
    if new.shape != live.shape:
        raise InputError(
            f"{name} at {context.site} gave vectors of shape {tuple(new.shape)}, "
            f"where {tuple(live.shape)} went in.",
            "Values must have as many features as the site that they are written to.",
        )
    if whole and bool((new != new.long()).any()):
        raise InputError(
            f"{name} at {context.site} gave a number that is not whole.", "Give the numbers of experts."
        )
    return new.to(live.dtype)


def site_means(site: Site, values: Tensor, mask: Tensor, positional: bool, causal: bool = True) -> Tensor:
    """Mean of a captured site over the real tokens of a run: [...], or [position, ...] if positional.

    A score counts where its query sees its key; others were never computed.
    """
    if site.spec.axes[0] == "head":
        values = values.transpose(1, 2)
    weight = mask.reshape(*mask.shape, *([1] * (values.dim() - 2)))
    if site.kind == "attn_scores":
        order = torch.ones(values.shape[1], values.shape[-1], device=mask.device).tril().bool()
        weight = weight & (order[:, None] if causal else mask[:, None, None])
        weight = weight & (values > torch.finfo(values.dtype).min)  # keys that a sliding window hides
    held = torch.where(weight, values, 0).to(torch.promote_types(values.dtype, torch.float32))
    axes = (0,) if positional else (0, 1)
    count = weight.expand(values.shape).sum(axes)
    return (held.sum(axes) / count.clamp(min=1)).to(values.dtype)


def gather_entries(
    values: Tensor,
    lengths: Tensor,
    site: Site,
    prompts: Tensor,
    positions: Tensor,
    heads: Tensor | None,
    seen: Tensor,
) -> Tensor:
    """[n, features] of a captured tensor at the given entries, whose queries see `seen` keys.

    Raises:
        InputError: when the run has no such prompt or head, or the prompt no such position.
    """
    if bool((prompts >= len(lengths)).any()):
        raise InputError(
            f"{site} is read from prompt {int(prompts.max())} of a run that has {len(lengths)} prompts.",
            "Prompt i of every run belongs together.",
        )
    last = seen - 1 if site.spec.over_keys else positions
    short = last >= lengths[prompts]
    if bool(short.any()):
        at = int(short.int().argmax())
        raise InputError(
            f"Position {int(last[at])} of {site} is read from a prompt of another run, "
            f"which has {int(lengths[prompts[at]])} tokens.",
            "Prompts that values are taken from must be at least as long.",
        )
    if heads is None:
        return values[prompts, positions]
    by_head = site.spec.axes[0] == "head"
    n_heads = values.shape[1 if by_head else 2]
    if int(heads.max()) >= n_heads:
        raise InputError(
            f"{site} is read at head {int(heads.max())}, but has {n_heads} heads.", f"Use 0 to {n_heads - 1}."
        )
    return values[prompts, heads, positions] if by_head else values[prompts, positions, heads]
