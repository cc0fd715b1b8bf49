"""Checks that every backend makes on rows before it runs any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mech_interp.backends.protocol import InstrumentedModel, Row
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError, nearest


def check_rows(
    model: InstrumentedModel, runs: Tokens | Mapping[str, Tokens], rows: Sequence[Row]
) -> dict[str, Tokens]:
    """Named runs, after checking that rows name runs and prompts that exist.

    Raises:
        InputError: for an unknown run, a prompt out of range, or runs with different numbers of prompts.
    """
    named = {"base": runs} if isinstance(runs, Tokens) else dict(runs)
    named = {name: model.tokens(tokens) for name, tokens in named.items()}
    counts = {name: len(tokens) for name, tokens in named.items()}
    if len(set(counts.values())) > 1:
        raise InputError(
            f"Runs must have the same number of prompts, but have {counts}.",
            "Prompt i of every run belongs together.",
        )
    for row in rows:
        if row.run not in named:
            raise InputError(
                f"A row names the run {row.run!r}.", nearest(row.run, named) or f"Given: {list(named)}."
            )
        if not 0 <= row.prompt < counts[row.run]:
            raise InputError(
                f"A row names prompt {row.prompt} of {counts[row.run]}.", "Prompts count from 0."
            )
        for intervention in row.interventions:
            if intervention.prompts is not None:
                raise InputError(
                    "A row is one prompt, so its interventions take no prompts=.",
                    "Leave prompts= out in rows.",
                )
            sources = intervention.operation.sources()
            means = intervention.operation.means()
            for run in (*(source.run for source in sources), *(run for run, _ in means)):
                if run not in named:
                    raise InputError(
                        f"An intervention reads the run {run!r}.",
                        nearest(run, named) or f"Given: {list(named)}.",
                    )
            for source in sources:
                if source.prompt is not None and not 0 <= source.prompt < counts[source.run]:
                    raise InputError(
                        f"An intervention reads prompt {source.prompt} of {counts[source.run]}.",
                        "Prompts count from 0.",
                    )
    return named
