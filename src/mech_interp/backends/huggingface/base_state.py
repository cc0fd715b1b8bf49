"""What a sweep keeps of its runs: where rows take over, and the values that interventions read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.entries import gather_entries, site_means
from mech_interp.backends.huggingface.stack import embed, frame_for, run_blocks
from mech_interp.backends.protocol import InstrumentedModel, Row
from mech_interp.backends.rows.plan import Job, Stage
from mech_interp.backends.tokens import Tokens
from mech_interp.interventions import Intervention
from mech_interp.sites import Site

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.model import HuggingFaceModel


class BaseState:
    """One forward over all base prompts of a block of rows, keeping only what those rows need.

    `index` gives the row of each (run, prompt) in the state's tensors [base, position, ...].
    """

    def __init__(self, model: HuggingFaceModel, runs: Mapping[str, Tokens], jobs: Sequence[Job]) -> None:
        self.runs = runs
        bases = sorted({job.base for job in jobs})
        self.index = {base: i for i, base in enumerate(bases)}
        rows = [runs[run].row(prompt) for run, prompt in bases]
        self.tokens = Tokens.from_lists(rows).to(model.info.device)
        self._n_layers, self._blocks = model.info.n_layers, model.layout.blocks
        self._keys_values: dict[int, tuple[Tensor, Tensor]] = {}
        self._keep_from = min((j.start.layer for j in jobs if j.first > 0), default=self._n_layers)
        tap = ed.Tap(ed.Edits(), self._captures(jobs))
        positions = torch.arange(self.tokens.ids.shape[1], device=self.tokens.ids.device)[None]
        x = embed(model.layout, self.tokens.ids, positions, tap)
        self.like = x[:0]
        explicit = model.info.attention == "eager"
        lengths = model.info.keys_seen(self.tokens)
        frame = frame_for(model.layout, x, positions, kv=self._record, explicit=explicit, lengths=lengths)
        run_blocks(model.layout, x, range(self._n_layers), frame, tap)
        self._values = tap.captured

    def _captures(self, jobs: Sequence[Job]) -> set[ed.Place]:
        wanted: set[ed.Place] = set()
        for job in jobs:
            layer, stage = job.start.layer, job.start.stage
            if stage in (Stage.PRE, Stage.Z):
                wanted.add(self._resid_place(layer))
            if stage in (Stage.POST, Stage.FINAL):
                wanted.add(self._resid_place(layer + (stage is Stage.POST)))
            if stage is Stage.Z:
                wanted.add(("z", layer))
            if stage is Stage.MID and self._blocks[layer].parallel:
                wanted |= {self._resid_place(layer), ("attn_out", layer)}
            elif stage is Stage.MID:
                wanted.add(("resid_mid", layer))
        return wanted

    def _resid_place(self, layer: int) -> ed.Place:
        return ("resid_pre", layer) if layer < self._n_layers else ("resid_post", layer - 1)

    def _record(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer >= self._keep_from:
            self._keys_values[layer] = (k, v)
        return k, v

    def resid(self, layer: int) -> Tensor:
        """The stream entering a layer (the final stream for the number of layers)."""
        return self._values[self._resid_place(layer)]

    def z(self, layer: int) -> Tensor:
        """z of a layer."""
        return self._values["z", layer]

    def mid(self, layer: int) -> Tensor:
        """The stream after attention: resid_mid, or in a parallel block what it would be."""
        if self._blocks[layer].parallel:
            return self.resid(layer) + self._values["attn_out", layer]
        return self._values["resid_mid", layer]

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys (after rotary) and values of a layer."""
        return self._keys_values[layer]


class SourceReader:
    """Values that interventions read from runs: means once, sites for the prompts of one block at a time."""

    def __init__(
        self, model: InstrumentedModel, runs: Mapping[str, Tokens], interventions: Sequence[Intervention]
    ) -> None:
        self.model, self.runs = model, runs
        self._means = {
            (run, Site(*place), positional): mean
            for run, places in ed.needed_means(interventions).items()
            for place in places
            for positional, mean in self._compute_means(run, Site(*place)).items()
        }
        self._values: dict[tuple[str, Site], Tensor] = {}
        self._local: dict[str, Tensor] = {}
        self._lengths: dict[str, Tensor] = {}

    def load(self, rows: Sequence[Row]) -> None:
        """Compute the sites that these rows read."""
        self._values.clear()
        needed = ed.needed_sources(i for row in rows for i in row.interventions)
        prompts: dict[str, set[int]] = {run: set() for run in needed}
        for row in rows:
            for intervention in row.interventions:
                for source in intervention.operation.sources():
                    prompts[source.run].add(row.prompt if source.prompt is None else source.prompt)
        for run, places in needed.items():
            chosen = sorted(prompts[run])
            tokens = self.runs[run].select(chosen)
            found = self.model.forward(tokens, capture=[Site(*p) for p in places], logits="none").activations
            self._values |= {(run, Site(*p)): found[Site(*p)] for p in places}
            device = tokens.ids.device
            local = torch.zeros(len(self.runs[run]), dtype=torch.long, device=device)
            local[chosen] = torch.arange(len(chosen), device=device)
            self._local[run] = local
            self._lengths[run] = torch.tensor(tokens.lengths, device=device)

    def gather(
        self, run: str, site: Site, prompts: Tensor, positions: Tensor, heads: Tensor | None, seen: Tensor
    ) -> Tensor:
        """[n, features] of a site in a run."""
        values = self._values[run, site.whole]
        local = self._local[run][prompts]
        return gather_entries(values, self._lengths[run], site, local, positions, heads, seen)

    def mean(self, run: str, site: Site, positional: bool) -> Tensor:
        """The mean of a site over the real tokens of a run."""
        return self._means[run, site.whole, positional]

    def _compute_means(self, run: str, site: Site) -> dict[bool, Tensor]:
        values, tokens = self._whole_run(run, site)
        causal = self.model.info.causal
        return {by: site_means(site, values, tokens.mask, by, causal) for by in (False, True)}

    def _whole_run(self, run: str, site: Site) -> tuple[Tensor, Tokens]:
        result = self.model.forward(self.runs[run], capture=[site], logits="none")
        return result.activations[site], result.tokens


def base_bytes_per_token(model: HuggingFaceModel, n_runs: int) -> int:
    """Bytes that a block holds per prompt token: stream, z, mid and keys and values of every layer."""
    info = model.info
    size = torch.empty((), dtype=getattr(torch, info.dtype)).element_size()
    per_layer = 2 * info.d_model + info.n_heads * info.d_head + 2 * info.n_kv_heads * info.d_head
    return size * info.n_layers * per_layer * n_runs
