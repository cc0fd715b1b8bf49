"""Planning of sweep rows: where each can start, which cannot matter, and what runs together.

Pure functions over integers: no model, no tensors. A row starts at the first layer and stage, and at
the first position, that its interventions can change; everything before comes from the base run.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mech_interp.interventions import Freeze, FromRun, Intervention, Replace, SubspaceSet
from mech_interp.sites import Site


class Stage(enum.IntEnum):
    """Where inside a layer a row can take over from the base run."""

    EMBED = 0
    PRE = 1
    Z = 2
    MID = 3
    POST = 4
    FINAL = 5


_STAGES = {
    Stage.EMBED: ("embed", "pos_embed"),
    Stage.Z: ("z", "result", "attn_out_own", "attn_out"),
    Stage.MID: (
        "resid_mid",
        "ln2",
        "router_logits",
        "expert_indices",
        "expert_weights",
        "mlp_pre",
        "mlp_pre_linear",
        "mlp_post",
        "mlp_out_own",
        "mlp_out",
    ),
    Stage.POST: ("resid_post",),
    Stage.FINAL: ("ln_final", "logits"),
}
# Kinds that in layer 0, before its attention, depend on the token at their own position alone.
_UNMIXED = {"embed", "pos_embed", "resid_pre", "ln1", "q", "k", "v", "rot_q", "rot_k"}
_STAGE_OF = {kind: stage for stage, kinds in _STAGES.items() for kind in kinds}


@dataclass(frozen=True, order=True)
class Start:
    """A place in the computation; later places compare greater."""

    layer: int
    stage: Stage


@dataclass(frozen=True)
class Job:
    """One row, ready to be scheduled.

    Attributes:
        index: the row's number.
        base: its (run, prompt).
        length: real tokens of its prompt.
        start: where its computation begins.
        first: the first position computed.
        reads: the positions whose logits the metric reads.
        edits: (intervention, positions) that remain.
        whole: every position sees the whole prompt, so that all of them are computed.
    """

    index: int
    base: tuple[str, int]
    length: int
    start: Start
    first: int
    reads: tuple[int, ...]
    edits: tuple[tuple[Intervention, tuple[int, ...]], ...]
    whole: bool = False

    @property
    def end(self) -> int:
        """One past the last position that matters: to a causal model, the last one read."""
        return self.length if self.whole else max(self.reads) + 1


@dataclass(frozen=True)
class Chunk:
    """Jobs executed together, sorted by start; positions `first` to `width` - 1 are computed."""

    jobs: tuple[Job, ...]
    first: int
    width: int

    def halves(self) -> tuple[Chunk, Chunk]:
        """The same jobs in two chunks, for when memory runs out."""
        middle = len(self.jobs) // 2
        return make_chunk(self.jobs[:middle]), make_chunk(self.jobs[middle:])


@dataclass(frozen=True)
class Costs:
    """What a chunk costs in bytes: per computed token, per key and row, per score, per row."""

    token: int
    key: int
    score: int
    row: int

    def of(self, rows: int, first: int, width: int) -> int:
        """Peak bytes of a chunk of `rows` rows over positions first..width-1."""
        computed = width - first
        return rows * (self.token * computed + self.key * width + self.score * computed * width + self.row)


def start_of(site: Site, n_layers: int) -> Start:
    """Where a row must take over to apply an edit at this site."""
    stage = _STAGE_OF.get(site.kind, Stage.PRE)
    if stage is Stage.EMBED:
        return Start(0, stage)
    if stage is Stage.FINAL:
        return Start(n_layers, stage)
    assert site.layer is not None
    return Start(site.layer, stage)


def job_of(
    index: int,
    base: tuple[str, int],
    length: int,
    edits: Sequence[tuple[Intervention, Sequence[int]]],
    reads: Sequence[int],
    n_layers: int,
    shared_prefix: Callable[[FromRun], int],
    same_token: Callable[[FromRun, int], bool] = lambda source, position: False,
    *,
    causal: bool = True,
) -> Job | None:
    """Schedule one row, or None when its edits cannot change what the metric reads.

    `edits` are interventions with absolute positions; `shared_prefix` gives the number of leading
    tokens that the row's prompt has in common with the prompt a value is read from: a causal model
    computes the same values on both, so replacing one by the other changes nothing there. `same_token`
    says whether both have the same token at a position, which settles it before any attention has mixed
    positions. Where the model is not `causal`, only equal prompts share a prefix.
    """
    first = min((p for edit in edits for p in _effective(*edit, shared_prefix, same_token)), default=None)
    if first is None:
        return None
    if not causal:
        first = 0
    kept = [(i, tuple(p for p in positions if p >= first)) for i, positions in edits]
    kept = [(i, _reaching(i.site, positions, reads, n_layers, causal)) for i, positions in kept]
    kept = [(i, positions) for i, positions in kept if positions]
    if not kept:
        return None
    first = min(p for _, positions in kept for p in positions) if causal else 0
    start = min(start_of(i.site, n_layers) for i, _ in kept)
    return Job(index, base, length, start, min(first, *reads), tuple(reads), tuple(kept), not causal)


def _effective(
    intervention: Intervention,
    positions: Sequence[int],
    shared_prefix: Callable[[FromRun], int],
    same_token: Callable[[FromRun, int], bool],
) -> list[int]:
    """Positions at which the operation can change the base run's own value."""
    source = _restores(intervention)
    if source is None:
        return list(positions)
    prefix = shared_prefix(source)
    unmixed = intervention.site.kind in _UNMIXED and not intervention.site.layer
    return [p for p in positions if p >= prefix and not (unmixed and same_token(source, p))]


def _restores(intervention: Intervention) -> FromRun | None:
    """The source of an operation that does nothing where its source equals the live value."""
    operation = intervention.operation
    if isinstance(operation, Freeze):
        return FromRun(operation.run)
    if isinstance(operation, Replace | SubspaceSet) and isinstance(operation.value, FromRun):
        source = operation.value
        if source.site is None or source.site == intervention.site:
            return source
        own_head = source.site.whole == intervention.site and intervention.heads == (source.site.head,)
        return source if own_head else None
    return None


def _reaching(
    site: Site, positions: Sequence[int], reads: Sequence[int], n_layers: int, causal: bool
) -> tuple[int, ...]:
    """Positions from which an edit can still reach a read position."""
    last = max(reads)
    start = start_of(site, n_layers)
    beyond_mixing = start >= Start(n_layers - 1, Stage.Z)  # no attention follows
    return tuple(p for p in positions if (p in reads if beyond_mixing else p <= last or not causal))


def make_chunk(jobs: Sequence[Job]) -> Chunk:
    """A chunk of jobs in order of their start, wide enough for all of them."""
    ordered = tuple(sorted(jobs, key=lambda job: (job.start, job.index)))
    width = max(job.end for job in ordered)
    return Chunk(ordered, min(job.first for job in ordered), width)


def plan(
    jobs: Sequence[Job], n_layers: int, costs: Costs, budget: int, *, max_tokens: int, waste: float = 1.1
) -> list[Chunk]:
    """Group jobs into chunks that fit the budget (bytes).

    Jobs are taken in order of first position, width and start, so that a chunk computes few positions
    that only some of its rows need: at most `waste` times the useful work (in token-layers), and at
    most `max_tokens` tokens at once. One job alone always makes a chunk.
    """
    order = sorted(jobs, key=lambda j: (j.first, j.end, j.start, j.index))
    chunks: list[Chunk] = []
    current: list[Job] = []
    useful = first = width = depth = 0
    for job in order:
        layers = max(n_layers - job.start.layer, 1)
        if current:
            wider = max(width, job.end)
            rows = len(current) + 1
            spent = (wider - first) * (depth + layers)
            needed = useful + (job.end - job.first) * layers
            fits = costs.of(rows, first, wider) <= budget and rows * (wider - first) <= max_tokens
            if not fits or spent > waste * needed:
                chunks.append(make_chunk(current))
                current = []
        if not current:
            useful, depth, first, width = 0, 0, job.first, 0
        current.append(job)
        useful += (job.end - job.first) * layers
        depth += layers
        width = max(width, job.end)
    if current:
        chunks.append(make_chunk(current))
    return chunks


def blocks_of_prompts(sizes: Sequence[int], per_token: int, budget: int) -> list[range]:
    """Split prompts, given by their token counts, into neighbours whose base state fits the budget."""
    blocks: list[range] = []
    begin = 0
    for end in range(1, len(sizes) + 1):
        held = (end - begin) * max(sizes[begin:end]) * per_token
        if held > budget and end - begin > 1:
            blocks.append(range(begin, end - 1))
            begin = end - 1
    if begin < len(sizes):
        blocks.append(range(begin, len(sizes)))
    return blocks
