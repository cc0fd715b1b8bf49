"""Rows for backends that run whole forwards: many rows per forward, each with its own interventions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mech_interp.backends.metrics import Metric
from mech_interp.backends.protocol import Progress, Row, RowResult
from mech_interp.backends.rows.check import check_rows
from mech_interp.backends.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from mech_interp.backends.adapter import Adapter
    from mech_interp.backends.huggingface.base_state import SourceReader

# Prompts whose values in other runs are held at once, and tokens per forward.
PROMPTS_HELD, TOKENS_AT_ONCE = 16, 2048


def batched_rows(
    model: Adapter,
    runs: Tokens | Mapping[str, Tokens],
    rows: Sequence[Row],
    metric: Metric,
    *,
    progress: Progress | None = None,
) -> Iterator[RowResult]:
    """Evaluate every row by a whole forward; nothing is reused but the values read from other runs.

    Rows stream in order of their prompt's block and length.
    """
    from mech_interp.backends.huggingface.base_state import SourceReader

    named = check_rows(model, runs, rows)
    reader = SourceReader(model, named, [i for row in rows for i in row.interventions])
    prompts = sorted({row.prompt for row in rows})
    done = 0
    for at in range(0, len(prompts), PROMPTS_HELD):
        block = set(prompts[at : at + PROMPTS_HELD])
        members = [index for index, row in enumerate(rows) if row.prompt in block]
        reader.load([rows[index] for index in members])
        for batch in _batches(members, rows, named):
            values = _evaluate(model, [rows[index] for index in batch], named, metric, reader)
            for index, value in zip(batch, values, strict=True):
                yield RowResult(index, value, True)
                done += 1
                if progress is not None:
                    progress(done, len(rows))


def _batches(members: list[int], rows: Sequence[Row], runs: Mapping[str, Tokens]) -> Iterator[list[int]]:
    """Rows of like length together, at most `TOKENS_AT_ONCE` tokens each time."""
    length = {index: runs[rows[index].run].lengths[rows[index].prompt] for index in members}
    batch: list[int] = []
    for index in sorted(members, key=lambda i: (length[i], i)):
        if batch and (len(batch) + 1) * length[index] > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _evaluate(
    model: Adapter, rows: Sequence[Row], runs: Mapping[str, Tokens], metric: Metric, reader: SourceReader
) -> Tensor:
    from mech_interp.backends import edits as ed

    edits = ed.Edits(model.info.windows)
    for number, row in enumerate(rows):
        for intervention in row.interventions:
            ed.check_intervention(model.info, intervention)
            positions = ed.positions_of(intervention, runs[row.run], row.prompt)
            heads = model.info.heads(intervention.site.kind)
            edits.add(intervention, [(number, row.prompt, positions)], heads)
    tokens = Tokens.from_lists([runs[row.run].row(row.prompt) for row in rows]).to(model.info.device)
    tap = ed.Tap(edits, reader=reader, lengths=model.info.keys_seen(tokens))
    logits = model.evaluate(tokens, tap, list(metric.positions))
    prompts = [row.prompt for row in rows]
    wanted = metric.token_ids(prompts)
    if wanted is not None:
        logits = logits.gather(2, wanted.to(logits.device)[:, None].expand(-1, logits.shape[1], -1))
    return metric(logits, prompts)
