"""Interventions compiled to index lists, applied and recorded while a block runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mech_interp.backends.protocol import ModelInfo
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError, NotFiredError, nearest
from mech_interp.interventions import FromRun, Intervention, Operation
from mech_interp.sites import KINDS, Site

Place = tuple[str, int | None]


class Reader(Protocol):
    """Values of sites in other runs."""

    def gather(
        self, run: str, site: Site, prompts: Tensor, positions: Tensor, heads: Tensor | None
    ) -> Tensor:
        """[n, features] at the given entries."""
        ...

    def mean(self, run: str, site: Site, positional: bool) -> Tensor:
        """Mean over a run's real tokens, [(position,) (head,) features]."""
        ...


class Edit:
    """One group of like operations with the entries they act on.

    An item is one intervention on one row; it covers every pair of its positions and heads.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.operations: list[Operation] = []
        self._items: list[tuple[int, int]] = []
        self._positions: list[np.ndarray] = []
        self._heads: list[np.ndarray] = []

    def add(self, operation: Operation, row: int, prompt: int, positions: Sequence[int], heads: Sequence[int]) -> None:
        """Add one item; `heads` is (-1,) for sites without heads."""
        self.operations.append(operation)
        self._items.append((row, prompt))
        place, head = np.asarray(positions, dtype=np.int64), np.asarray(heads, dtype=np.int64)
        self._positions.append(np.repeat(place, len(head)))
        self._heads.append(np.tile(head, len(place)))

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """row, prompt, position, head and source prompt (-1: the row's own) of every entry."""
        counts = [len(p) for p in self._positions]
        items = np.repeat(np.asarray(self._items, dtype=np.int64), counts, axis=0)
        read = [(op.sources() or (FromRun(""),))[0].prompt for op in self.operations]
        source = np.repeat(np.asarray([-1 if p is None else p for p in read], dtype=np.int64), counts)
        return items[:, 0], items[:, 1], np.concatenate(self._positions), np.concatenate(self._heads), source


class Edits:
    """All edits of a batch, by place, in the order in which they were given."""

    def __init__(self) -> None:
        self.at: dict[Place, dict[tuple[Any, ...], Edit]] = {}

    def add(
        self, intervention: Intervention, row: int, prompt: int, positions: Sequence[int], n_heads: int
    ) -> None:
        """Add one intervention on one row at absolute `positions`."""
        site = intervention.site
        heads: Sequence[int] = (-1,)
        if site.spec.heads:
            heads = intervention.heads if intervention.heads is not None else range(n_heads)
        group = self.at.setdefault((site.kind, site.layer), {})
        edit = group.setdefault(intervention.operation.group_key(), Edit(site))
        edit.add(intervention.operation, row, prompt, positions, heads)


@dataclass(frozen=True)
class Entries:
    """The `EditContext` an operation receives."""

    site: Site
    prompts: Tensor
    positions: Tensor
    heads: Tensor | None
    source_prompts: Tensor
    reader: Reader | None

    def from_run(self, source: FromRun) -> Tensor:
        """The same entries in another run (for scores and patterns: rows over that run's keys)."""
        if self.reader is None:
            raise InputError(
                f"An intervention at {self.site} reads the run {source.run!r}, which was not given.",
                "Pass it in runs=.",
            )
        prompts = torch.where(self.source_prompts >= 0, self.source_prompts, self.prompts)
        return self.reader.gather(source.run, source.site or self.site, prompts, self.positions, self.heads)

    def mean_of(self, run: str, positional: bool) -> Tensor:
        """The mean of the site over a run's real tokens."""
        if self.reader is None:
            raise InputError(f"{self.site} is set to a mean of {run!r}, which was not given.", "Pass it in runs=.")
        means = self.reader.mean(run, self.site, positional)
        picked = means[self.positions] if positional else means.expand(len(self.positions), *means.shape)
        if self.heads is None:
            return picked
        return picked[torch.arange(len(picked), device=picked.device), self.heads]


class Tap:
    """Applies edits and records captures while a batch runs.

    `first` is the position of column 0. `read_positions` [row, n], set while only some positions are
    still computed, are the positions of the columns; `narrow` sets them to `narrow_to`.
    """

    def __init__(
        self,
        edits: Edits,
        captures: Iterable[Place] = (),
        *,
        first: int = 0,
        reader: Reader | None = None,
    ) -> None:
        self.edits = edits
        self.captures = set(captures)
        self.captured: dict[Place, Tensor] = {}
        self.fired: set[Place] = set()
        self.first = first
        self.read_positions: Tensor | None = None
        self.narrow_to: Tensor | None = None
        self._reader = reader

    def wants(self, kind: str, layer: int | None) -> bool:
        place = (kind, layer)
        return place in self.captures or place in self.edits.at

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        place = (kind, layer)
        if place in self.edits.at:
            self.fired.add(place)
            for edit in self.edits.at[place].values():
                value = self._apply(edit, value)
        if place in self.captures:
            self.captured[place] = value
        return value

    def narrow(self) -> None:
        self.read_positions = self.narrow_to

    def _apply(self, edit: Edit, value: Tensor) -> Tensor:
        rows, prompts, positions, heads, source = (
            torch.from_numpy(array).to(value.device) for array in edit.entries()
        )
        columns = positions - self.first
        keep = torch.arange(len(rows), device=value.device)
        if self.read_positions is not None:
            match = self.read_positions[rows] == positions[:, None]
            columns, keep = match.int().argmax(1), keep[match.any(1)]
        if not len(keep):
            return value
        rows, columns, heads = rows[keep], columns[keep], heads[keep]
        headed = edit.site.spec.heads is not None
        context = Entries(
            edit.site,
            prompts[keep],
            positions[keep],
            heads if headed else None,
            source[keep],
            self._reader,
        )
        index = (rows, columns)
        if headed:
            index = (rows, heads, columns) if edit.site.spec.axes[0] == "head" else (rows, columns, heads)
        live = value[index]
        new = edit.operations[0].apply(live, context)
        return value.index_put(index, _fit(new, live))

    def check_all_fired(self) -> None:
        """Raise `NotFiredError` when an edit or a capture was asked for and never happened."""
        asked = set(self.edits.at) | self.captures
        missed = sorted(asked - self.fired - set(self.captured), key=str)
        if missed:
            raise NotFiredError(
                f"Nothing was computed at {Site(*missed[0])}, so it could not be captured or changed.",
                "Look at stop_after and logits: the site lies beyond where this forward stopped.",
            )


def _fit(new: Tensor, live: Tensor) -> Tensor:
    """Cut or zero-fill the key axis of a pattern taken from a batch of another width."""
    width = live.shape[-1]
    if new.shape[-1] > width:
        new = new[..., :width]
    elif new.shape[-1] < width:
        new = torch.nn.functional.pad(new, (0, width - new.shape[-1]))
    return new.to(live.dtype)


def check_site(info: ModelInfo, site: Site) -> None:
    """Refuse a site that the model does not have, saying why.

    Raises:
        InputError: for a missing kind, a layer or a head out of range.
    """
    if site.kind in info.missing_kinds:
        raise InputError(f"{info.name} has no {site}: {info.missing_kinds[site.kind]}.")
    if site.kind not in info.site_kinds:
        raise InputError(
            f"The {info.backend} backend does not offer {site} on {info.name}.",
            nearest(site.kind, info.site_kinds),
        )
    if site.layer is not None and site.layer >= info.n_layers:
        raise InputError(
            f"{site} names layer {site.layer}, but {info.name} has {info.n_layers} layers.",
            f"Use 0 to {info.n_layers - 1}.",
        )
    check_heads(info, site, () if site.head is None else (site.head,))


def check_heads(info: ModelInfo, site: Site, heads: Sequence[int]) -> None:
    """Refuse heads out of range."""
    n_heads = info.heads(site.kind)
    for head in heads:
        if not 0 <= head < n_heads:
            kind = "key/value heads" if KINDS[site.kind].heads == "kv" else "heads"
            raise InputError(
                f"{site.whole} names head {head}, but {info.name} has {n_heads} {kind}.",
                f"Use 0 to {n_heads - 1}.",
            )


def compile_edits(
    info: ModelInfo, tokens: Tokens, interventions: Sequence[Intervention], prompt_ids: Sequence[int]
) -> Edits:
    """The edits of a plain forward: every intervention on every prompt it names."""
    edits = Edits()
    for intervention in interventions:
        check_site(info, intervention.site)
        check_heads(info, intervention.site, intervention.heads or ())
        prompts = range(len(tokens)) if intervention.prompts is None else intervention.prompts
        for prompt in prompts:
            if not 0 <= prompt < len(tokens):
                raise InputError(f"There is no prompt {prompt} in a batch of {len(tokens)}.")
            positions = positions_of(intervention, tokens, prompt)
            edits.add(intervention, prompt, prompt_ids[prompt], positions, info.heads(intervention.site.kind))
    return edits


def positions_of(intervention: Intervention, tokens: Tokens, prompt: int) -> list[int]:
    """The columns an intervention touches in one prompt; checked."""
    if intervention.positions is None:
        return list(range(tokens.lengths[prompt]))
    return [tokens.position(prompt, p) for p in intervention.positions]


def needed_sources(interventions: Iterable[Intervention]) -> dict[str, set[Place]]:
    """Which sites of which runs interventions read."""
    needed: dict[str, set[Place]] = {}
    for intervention in interventions:
        for source in intervention.operation.sources():
            site = source.site or intervention.site
            needed.setdefault(source.run, set()).add((site.kind, site.layer))
    return needed


def needed_means(interventions: Iterable[Intervention]) -> dict[str, set[Place]]:
    """Which sites of which runs interventions take the mean of."""
    needed: dict[str, set[Place]] = {}
    for intervention in interventions:
        for run, _ in intervention.operation.means():
            needed.setdefault(run, set()).add((intervention.site.kind, intervention.site.layer))
    return needed


def site_means(values: Tensor, mask: Tensor, positional: bool) -> Tensor:
    """Mean over real tokens of [prompt, position, ...]: [...], or [position, ...] if positional."""
    weight = mask.to(values.dtype).reshape(*mask.shape, *([1] * (values.dim() - 2)))
    total = (values * weight).sum(0) if positional else (values * weight).sum((0, 1))
    count = weight.sum(0) if positional else weight.sum((0, 1))
    return total / count.clamp(min=1)


def resolve_captures(info: ModelInfo, capture: Sequence[Site | str]) -> list[Site]:
    """Parsed and checked capture sites."""
    parsed = [Site.parse(site) for site in capture]
    for site in parsed:
        check_site(info, site)
    return parsed


def slice_captured(sites: Sequence[Site], captured: Mapping[Place, Tensor]) -> dict[Site, Tensor]:
    """Cut single heads out of captured tensors."""
    found: dict[Site, Tensor] = {}
    for site in sites:
        value = captured[(site.kind, site.layer)]
        if site.head is not None:
            axis = 1 if site.spec.axes[0] == "head" else 2
            value = value.select(axis, site.head)
        found[site] = value
    return found


def gather_entries(
    values: Tensor, lengths: Tensor, site: Site, prompts: Tensor, positions: Tensor, heads: Tensor | None
) -> Tensor:
    """[n, features] of a captured tensor at the given entries.

    Raises:
        InputError: when a prompt that is read from is too short to have the position.
    """
    short = positions >= lengths[prompts]
    if bool(short.any()):
        at = int(short.int().argmax())
        raise InputError(
            f"Position {int(positions[at])} of {site} is read from prompt {int(prompts[at])} of another run, "
            f"which has {int(lengths[prompts[at]])} tokens.",
            "Prompts that values are taken from must be at least as long.",
        )
    if heads is None:
        return values[prompts, positions]
    if site.spec.axes[0] == "head":
        return values[prompts, heads, positions]
    return values[prompts, positions, heads]
