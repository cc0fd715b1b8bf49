"""Sweeps as units of a run: what a killed run has computed already is read back, not computed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from mech_interp.backends.metrics import Metric
from mech_interp.backends.protocol import InstrumentedModel, Progress, Row, RowResult
from mech_interp.backends.tokens import Tokens

if TYPE_CHECKING:
    from mech_interp.experiments.context import Context

ROWS_PER_UNIT = 2048
"""Rows of a sweep in one unit; it ends with the last row of a prompt, so that its base run is reused."""


class _Units(Protocol):
    def unit(self, key: str, function: Any) -> Any: ...


class ResumableModel:
    """A model whose sweeps are stored unit by unit; everything else is the model's own.

    A method called with it computes the same numbers as with the model itself: only rows whose values are
    stored are skipped. Sweeps are told apart by their order, so a method must ask for them in the same
    order each time, as a deterministic method does.
    """

    def __init__(self, model: InstrumentedModel, context: Context[Any], name: str, size: int) -> None:
        self._model, self._context, self._name, self._size = model, context, name, size
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def rows(
        self,
        runs: Tokens | Mapping[str, Tokens],
        rows: Sequence[Row],
        metric: Metric,
        *,
        memory_budget: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[RowResult]:
        """As `InstrumentedModel.rows`, in the order of the rows."""
        import torch

        call = self._calls
        self._calls += 1
        for start, stop in portions(rows, self._size):
            part = rows[start:stop]

            def compute(part: Sequence[Row] = part) -> dict[str, Any]:
                found: list[Any] = [None] * len(part)
                computed = np.zeros(len(part), dtype=np.bool_)
                for result in self._model.rows(runs, part, metric, memory_budget=memory_budget):
                    found[result.index] = result.value.detach().cpu().double().numpy()
                    computed[result.index] = result.computed
                return {"values": np.stack(found), "computed": computed}

            arrays = self._context.unit(f"{self._name}/{call:03d}/{start:07d}", compute)
            values = torch.from_numpy(np.asarray(arrays["values"]))
            for i in range(stop - start):
                yield RowResult(start + i, values[i], bool(arrays["computed"][i]))
            if progress is not None:
                progress(stop, len(rows))


def resumable(
    model: InstrumentedModel, context: Context[Any], name: str = "rows", size: int = ROWS_PER_UNIT
) -> InstrumentedModel:
    """The model with its sweeps stored as units `name/sweep/first row` of the run."""
    return cast(InstrumentedModel, ResumableModel(model, context, name, size))


def portions(rows: Sequence[Row], size: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of parts of about `size` rows; neighbouring rows of one prompt stay together."""
    start = 0
    while start < len(rows):
        stop = min(start + size, len(rows))
        while stop < len(rows) and (rows[stop].run, rows[stop].prompt) == (
            rows[stop - 1].run,
            rows[stop - 1].prompt,
        ):
            stop += 1
        yield start, stop
        start = stop
