"""The slow obvious way to evaluate rows: one whole forward each. The oracle of the fast way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mech_interp.backends.metrics import Metric
from mech_interp.backends.protocol import InstrumentedModel, Progress, Row, RowResult
from mech_interp.backends.rows.check import check_rows
from mech_interp.backends.tokens import Tokens


def naive_rows(
    model: InstrumentedModel,
    runs: Tokens | Mapping[str, Tokens],
    rows: Sequence[Row],
    metric: Metric,
    *,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> Iterator[RowResult]:
    """Evaluate rows one forward at a time, in order, through `InstrumentedModel.forward` alone.

    Backends without a row executor use this; `memory_budget` has no effect, as one row is the least.
    """
    import torch

    named = check_rows(model, runs, rows)
    for index, row in enumerate(rows):
        tokens = named[row.run].select([row.prompt])
        # Values in other runs are read at this row's prompt number, so every run keeps its numbering.
        result = model.forward(
            tokens,
            interventions=row.interventions,
            runs=named,
            logits=list(metric.positions),
            prompt_ids=[row.prompt],
        )
        assert result.logits is not None
        logits = result.logits
        wanted = metric.token_ids([row.prompt])
        if wanted is not None:
            ids = wanted.to(logits.device)[:, None, :].expand(-1, logits.shape[1], -1)
            logits = torch.gather(logits, 2, ids)
        yield RowResult(index, metric(logits, [row.prompt])[0], True)
        if progress is not None:
            progress(index + 1, len(rows))
