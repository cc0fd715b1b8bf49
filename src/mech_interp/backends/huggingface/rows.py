"""Executes a plan of rows: restart at a layer, recompute a suffix of positions, read few logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.huggingface.base_state import BaseState, SourceReader, base_bytes_per_token
from mech_interp.backends.huggingface.chunk import ChunkRun
from mech_interp.backends.metrics import Metric
from mech_interp.backends.protocol import Progress, Row, RowResult
from mech_interp.backends.rows.check import check_rows
from mech_interp.backends.rows.plan import (
    Chunk,
    Costs,
    Job,
    blocks_of_prompts,
    job_of,
    plan,
)
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError, OutOfMemoryError
from mech_interp.interventions import FromRun

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.model import HuggingFaceModel

DEFAULT_BUDGET = 2 << 30
# Beyond this many tokens a CPU's matrix products gain nothing and its caches lose.
CPU_TOKENS = 1024


@torch.no_grad()
def run_rows(
    model: HuggingFaceModel,
    runs: Tokens | Mapping[str, Tokens],
    rows: Sequence[Row],
    metric: Metric,
    *,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> Iterator[RowResult]:
    """Stream one `RowResult` per row, in the order of computation.

    `memory_budget` is in bytes, for what the sweep holds beside the weights (default 2 GiB, or half
    of the free memory on a GPU).
    """
    budget = _default_budget(model) if memory_budget is None else memory_budget
    if budget < 1:
        raise InputError(
            f"A memory budget of {budget} bytes holds nothing.", "Give a positive number of bytes."
        )
    sweep = Sweep(model, check_rows(model, runs, rows), metric, budget)
    for done, result in enumerate(sweep.results(rows), 1):
        yield result
        if progress is not None:
            progress(done, len(rows))


class Sweep:
    """The rows of one call, with the runs they start from and read."""

    def __init__(self, model: HuggingFaceModel, runs: dict[str, Tokens], metric: Metric, budget: int) -> None:
        self.model, self.runs, self.metric, self.budget = model, runs, metric, budget
        self._ids = {run: [tokens.row(i) for i in range(len(tokens))] for run, tokens in runs.items()}
        self._prefixes: dict[tuple[str, int, str, int], int] = {}

    def results(self, rows: Sequence[Row]) -> Iterator[RowResult]:
        """All rows, block of prompts by block of prompts."""
        interventions = [i for row in rows for i in row.interventions]
        reader = SourceReader(self.model, self.runs, interventions)
        prompts = sorted({row.prompt for row in rows})
        sizes = [max(tokens.lengths[p] for tokens in self.runs.values()) for p in prompts]
        per_token = base_bytes_per_token(self.model, len(self.runs))
        members: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            members.setdefault(row.prompt, []).append(index)
        for block in blocks_of_prompts(sizes, per_token, self.budget // 2):
            indices = [index for at in block for index in members[prompts[at]]]
            yield from self._block(rows, indices, reader)

    def _block(self, rows: Sequence[Row], indices: list[int], reader: SourceReader) -> Iterator[RowResult]:
        jobs = [self._job(index, rows[index]) for index in indices]
        live = [job for job in jobs if job is not None]
        reader.load([rows[index] for index in indices])
        idle = [index for index, job in zip(indices, jobs, strict=True) if job is None]
        yield from self._unchanged(rows, idle)
        if not live:
            return
        state = BaseState(self.model, self.runs, live)
        max_tokens = CPU_TOKENS if self.model.info.device == "cpu" else 1 << 30
        chunks = plan(live, self.model.info.n_layers, self._costs(), self.budget // 2, max_tokens=max_tokens)
        for chunk in chunks:
            yield from self._run_or_halve(chunk, state, reader)

    def _unchanged(self, rows: Sequence[Row], indices: list[int]) -> Iterator[RowResult]:
        """Rows whose interventions cannot reach what is read: the base run's own value."""
        bases = sorted({(rows[i].run, rows[i].prompt) for i in indices})
        values: dict[tuple[str, int], Tensor] = {}
        for run in {run for run, _ in bases}:
            prompts = [prompt for name, prompt in bases if name == run]
            for at in range(0, len(prompts), 64):
                some = prompts[at : at + 64]
                tokens = self.runs[run].select(some)
                out = self.model.forward(tokens, logits=list(self.metric.positions)).logits
                assert out is not None
                wanted = self.metric.token_ids(some)
                if wanted is not None:
                    out = out.gather(2, wanted.to(out.device)[:, None].expand(-1, out.shape[1], -1))
                found = self.metric(out, some)
                values |= {(run, prompt): found[i] for i, prompt in enumerate(some)}
        for index in indices:
            yield RowResult(index, values[rows[index].run, rows[index].prompt], False)

    def _job(self, index: int, row: Row) -> Job | None:
        info, tokens = self.model.info, self.runs[row.run]
        edits = []
        for intervention in row.interventions:
            ed.check_intervention(info, intervention)
            edits.append((intervention, ed.positions_of(intervention, tokens, row.prompt)))
        reads = [tokens.position(row.prompt, p) for p in self.metric.positions]

        def shared(source: FromRun) -> int:
            other = row.prompt if source.prompt is None else source.prompt
            return self._shared_prefix(row.run, row.prompt, source.run, other)

        def same(source: FromRun, position: int) -> bool:
            other = row.prompt if source.prompt is None else source.prompt
            there = self._ids[source.run][other]
            return position < len(there) and there[position] == self._ids[row.run][row.prompt][position]

        base = (row.run, row.prompt)
        length = tokens.lengths[row.prompt]
        return job_of(index, base, length, edits, reads, info.n_layers, shared, same, causal=info.causal)

    def _shared_prefix(self, run: str, prompt: int, other_run: str, other: int) -> int:
        key = (run, prompt, other_run, other)
        if key not in self._prefixes:
            a, b = self._ids[run][prompt], self._ids[other_run][other]
            differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
            self._prefixes[key] = next(differing, min(len(a), len(b)))
            if not self.model.info.causal and a != b:
                self._prefixes[key] = 0  # every position sees where the prompts differ
        return self._prefixes[key]

    def _costs(self) -> Costs:
        info = self.model.info
        size = torch.empty((), dtype=getattr(torch, info.dtype)).element_size()
        heads = info.n_heads * info.d_head
        logits = 2 if self.metric.token_ids([0]) is not None else 2 * info.n_outputs
        return Costs(
            token=size * (6 * info.d_model + 3 * info.d_mlp + 4 * heads),
            key=size * 4 * heads,
            score=size * 2 * info.n_heads,
            row=max(size, 4) * logits * len(self.metric.positions),
        )

    def _run_or_halve(self, chunk: Chunk, state: BaseState, reader: SourceReader) -> Iterator[RowResult]:
        try:
            values = ChunkRun(self.model, self.metric, chunk, state, reader).values()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _ran_out(error):
                raise
            if len(chunk.jobs) == 1:
                raise OutOfMemoryError(
                    f"One row over {chunk.width - chunk.first} tokens does not fit in memory.",
                    "Shorten the prompts, use a smaller dtype, or free memory.",
                ) from None
            values = None
        if values is None:
            for half in chunk.halves():
                yield from self._run_or_halve(half, state, reader)
            return
        for job, value in zip(chunk.jobs, values, strict=True):
            yield RowResult(job.index, value, True)


def _ran_out(error: BaseException) -> bool:
    """Whether memory ran out: PyTorch raises a plain RuntimeError on a CPU."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _default_budget(model: HuggingFaceModel) -> int:
    if model.info.device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(model.info.device)
        return int(free // 2)
    return DEFAULT_BUDGET
