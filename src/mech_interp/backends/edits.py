"""Interventions compiled to index lists, applied and recorded while a block runs."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mech_interp.backends.entries import Entries, Reader, applied, check_operation
from mech_interp.backends.protocol import ModelInfo
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, InputError, NotFiredError, nearest
from mech_interp.interventions import FromRun, Intervention, Operation
from mech_interp.sites import KINDS, Site

Place = tuple[str, int | None]


class Edit:
    """One group of like operations with the entries they act on.

    An item is one intervention on one row; it covers every pair of its positions and heads.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.operations: list[Operation] = []
        self._items: list[tuple[int, int, int, int]] = []
        self._positions: list[np.ndarray] = []
        self._heads: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []

    def add(
        self,
        operation: Operation,
        row: int,
        prompt: int,
        positions: Sequence[int],
        heads: Sequence[int],
        numbers: Sequence[int],
        total: int,
    ) -> None:
        """Add one item; `heads` is (-1,) for sites without heads, `numbers` counts positions."""
        self.operations.append(operation)
        source = (operation.sources() or (FromRun(""),))[0].prompt
        self._items.append((row, prompt, -1 if source is None else source, total * len(heads)))
        place, head = np.asarray(positions, dtype=np.int64), np.asarray(heads, dtype=np.int64)
        self._positions.append(np.repeat(place, len(head)))
        self._heads.append(np.tile(head, len(place)))
        number = np.asarray(numbers, dtype=np.int64)[:, None] * len(head) + np.arange(len(head))
        self._numbers.append(number.ravel())

    def entries(self, device: torch.device) -> _Table:
        """All entries, items in the order they were added."""
        counts = [len(p) for p in self._positions]
        items = np.repeat(np.asarray(self._items, dtype=np.int64), counts, axis=0)
        lists = (self._positions, self._heads, self._numbers)
        columns = (*items.T, *(np.concatenate(one) for one in lists))
        return _Table(*(torch.from_numpy(np.ascontiguousarray(c)).to(device) for c in columns))


@dataclass(frozen=True)
class _Table:
    """Entries as columns: row, own prompt, source prompt (-1: its own), size of the intervention,
    position, head and number inside the intervention."""

    rows: Tensor
    prompts: Tensor
    sources: Tensor
    totals: Tensor
    positions: Tensor
    heads: Tensor
    numbers: Tensor


class Edits:
    """All edits of a batch, by place; on every row they act in the order in which they were given."""

    def __init__(self, windows: Sequence[int | None] = ()) -> None:
        self.windows = windows
        self.at: dict[Place, list[Edit]] = {}
        self._groups: dict[tuple[Any, ...], list[int]] = {}
        self._latest: dict[tuple[Place, int], int] = {}

    def window(self, site: Site) -> int | None:
        """How many keys a query of this site's layer sees (None: all that come before it)."""
        return self.windows[site.layer] if self.windows and site.layer is not None else None

    def add(
        self,
        intervention: Intervention,
        chosen: Sequence[tuple[int, int, Sequence[int]]],
        n_heads: int,
        numbers: Sequence[int] | None = None,
        total: int | None = None,
    ) -> None:
        """Add one intervention on `chosen` (row, prompt, absolute positions).

        Where some positions were left out, `numbers` and `total` say which of how many these are.
        """
        site = intervention.site
        heads: Sequence[int] = (-1,)
        if site.spec.heads:
            heads = intervention.heads if intervention.heads is not None else range(n_heads)
        if total is None:
            total = sum(len(positions) for _, _, positions in chosen)
        begin = 0
        for row, prompt, positions in chosen:
            own = range(begin, begin + len(positions)) if numbers is None else numbers
            begin += len(positions)
            if len(positions):
                edit = self._group((site.kind, site.layer), intervention, row)
                edit.add(intervention.operation, row, prompt, positions, heads, own, total)

    def _group(self, place: Place, intervention: Intervention, row: int) -> Edit:
        """The first group of like operations that comes after everything already done to the row here."""
        edits = self.at.setdefault(place, [])
        after = self._latest.get((place, row), -1)
        like = self._groups.setdefault((place, intervention.operation.group_key()), [])
        at = bisect.bisect_right(like, after)
        if at == len(like):
            like.append(len(edits))
            edits.append(Edit(intervention.site))
        self._latest[place, row] = like[at]
        return edits[like[at]]


class Tap:
    """Applies edits and records captures while a batch runs.

    `first` is the position of column 0. `lengths` [row] are given where a query sees its whole prompt.
    `read_positions` [row, n], set while only some positions are still computed, are the positions of the
    columns; `narrow` sets them to `narrow_to`.
    """

    def __init__(
        self,
        edits: Edits,
        captures: Iterable[Place] = (),
        *,
        first: int = 0,
        reader: Reader | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        self.edits = edits
        self.lengths = lengths
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
            for edit in self.edits.at[place]:
                value = self._apply(edit, value)
        if place in self.captures:
            self.captured[place] = value
        return value

    def narrow(self) -> None:
        self.read_positions = self.narrow_to

    def _apply(self, edit: Edit, value: Tensor) -> Tensor:
        table = edit.entries(value.device)
        columns, keep = table.positions - self.first, torch.arange(len(table.rows), device=value.device)
        if self.read_positions is not None:
            # A position may be read more than once, and must then be edited in each of its columns.
            match = self.read_positions[table.rows] == table.positions[:, None]
            keep, columns = match.nonzero(as_tuple=True)
        if not len(keep):
            return value
        rows, heads = table.rows[keep], table.heads[keep]
        headed = edit.site.spec.heads is not None
        context = Entries(
            edit.site,
            table.prompts[keep],
            table.positions[keep],
            heads if headed else None,
            table.numbers[keep],
            table.totals[keep],
            table.positions[keep] + 1 if self.lengths is None else self.lengths[rows],
            self.edits.window(edit.site),
            table.sources[keep],
            self._reader,
        )
        index: tuple[Tensor, ...] = (rows, columns)
        if headed:
            index = (rows, heads, columns) if edit.site.spec.axes[0] == "head" else (rows, columns, heads)
        live = value[index]
        return value.index_put(index, applied(edit.operations[0], live, context))

    def check_all_fired(self) -> None:
        """Raise `NotFiredError` when an edit or a capture was asked for and never happened."""
        asked = set(self.edits.at) | self.captures
        missed = sorted(asked - self.fired - set(self.captured), key=str)
        if missed:
            raise NotFiredError(
                f"Nothing was computed at {Site(*missed[0])}, so it could not be captured or changed.",
                "Look at stop_after and logits: the site lies beyond where this forward stopped.",
            )


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
    if site.layer is not None and (site.kind, site.layer) in info.missing_sites:
        raise InputError(f"{info.name} has no {site}: {info.missing_sites[site.kind, site.layer]}.")
    check_heads(info, site, () if site.head is None else (site.head,))


def check_intervention(info: ModelInfo, intervention: Intervention) -> None:
    """Refuse a site or head that the model lacks or only shows, and arithmetic on what are no quantities.

    Raises:
        InputError: for the site, the head or the operation.
        CapabilityError: for a site that the backend can capture but not change.
    """
    check_site(info, intervention.site)
    if intervention.site.kind in info.capture_only:
        raise CapabilityError(
            f"{intervention.site} of {info.name} can be captured but not changed.",
            f"The reason: {info.capture_only[intervention.site.kind]}.",
        )
    check_heads(info, intervention.site, intervention.heads or ())
    check_operation(intervention.site, intervention.operation)


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
    edits = Edits(info.windows)
    for intervention in interventions:
        check_intervention(info, intervention)
        chosen = [
            (prompt, prompt_ids[prompt], positions_of(intervention, tokens, prompt))
            for prompt in prompts_of(intervention, len(tokens))
        ]
        edits.add(intervention, chosen, info.heads(intervention.site.kind))
    return edits


def prompts_of(intervention: Intervention, n_prompts: int) -> Sequence[int]:
    """The prompts an intervention acts on; checked."""
    if intervention.prompts is None:
        return range(n_prompts)
    for prompt in intervention.prompts:
        if not 0 <= prompt < n_prompts:
            raise InputError(
                f"There is no prompt {prompt} in a batch of {n_prompts}.", f"Use 0 to {n_prompts - 1}."
            )
    return tuple(dict.fromkeys(intervention.prompts))


def positions_of(intervention: Intervention, tokens: Tokens, prompt: int) -> list[int]:
    """The columns an intervention touches in one prompt, each once; checked."""
    if intervention.positions is None:
        return list(range(tokens.lengths[prompt]))
    return list(dict.fromkeys(tokens.position(prompt, p) for p in intervention.positions))


def numbers_of(
    intervention: Intervention, tokens: Tokens, prompt: int, kept: Sequence[int]
) -> tuple[Sequence[int], int]:
    """Which of its own positions those that were kept are, and how many it has."""
    given = intervention.positions
    if given is None:
        return kept, tokens.lengths[prompt]
    if len(given) == 1:
        return (0,), 1
    own = positions_of(intervention, tokens, prompt)
    return [own.index(position) for position in kept], len(own)


def needed_sources(interventions: Iterable[Intervention]) -> dict[str, set[Place]]:
    """Which sites of which runs interventions read.

    Raises:
        InputError: when a value is read from a site with other features than the one it is written to.
    """
    needed: dict[str, set[Place]] = {}
    for intervention in interventions:
        for source in intervention.operation.sources():
            site = source.site or intervention.site
            _check_source(intervention.site, site)
            needed.setdefault(source.run, set()).add((site.kind, site.layer))
    return needed


def _check_source(site: Site, source: Site) -> None:
    here, there = site.spec.axes[-1], source.spec.axes[-1]
    if here != there:
        raise InputError(
            f"A value read from {source} has {there} features, but {site} takes {here} features.",
            "Read from a site of the same kind of vector.",
        )
    if source.spec.heads and source.head is None and not site.spec.heads:
        raise InputError(
            f"{source} has one vector per head, but {site} takes one.",
            f"Name the head to read, for example {source}[0].",
        )


def needed_means(interventions: Iterable[Intervention]) -> dict[str, set[Place]]:
    """Which sites of which runs interventions take the mean of."""
    needed: dict[str, set[Place]] = {}
    for intervention in interventions:
        for run, _ in intervention.operation.means():
            needed.setdefault(run, set()).add((intervention.site.kind, intervention.site.layer))
    return needed


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
