"""Rows that cannot be run are refused in one sentence, by the executor and by the naive loop alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mech_interp.backends.metrics import Logits
from mech_interp.backends.protocol import Row
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError
from mech_interp.interventions import FromRun, Intervention, Mean, Replace, Zero


@pytest.mark.parametrize("way", ["fast", "naive"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(0, run="bsae"), "names the run 'bsae'. Did you mean base"),
        (Row(3), "names prompt 3 of 3"),
        (Row(-1), "names prompt -1 of 3"),
        (Row(0, (Intervention("z.9", Zero()),)), "has 3 layers"),
        (Row(0, (Intervention("z.0.9", Zero()),)), "names head 9"),
        (Row(0, (Intervention("z.0", Zero(), positions=7),)), "Position 7 does not exist in prompt 0"),
        (Row(0, (Intervention("z.0", Zero(), prompts=0),)), "take no prompts="),
        (
            Row(0, (Intervention("z.0", Replace(FromRun("ohter"))),)),
            "reads the run 'ohter'. Did you mean other",
        ),
        (Row(0, (Intervention("z.0", Replace(FromRun("other", prompt=3))),)), "reads prompt 3 of 3"),
        (Row(0, (Intervention("z.0", Replace(torch.zeros(9))),)), "does not fit"),
        (Row(0, (Intervention("z.0", Replace(FromRun("other", site="embed"))),)), "has d_model features"),
        (Row(0, (Intervention("z.0", Mean("elsewhere")),)), "run 'elsewhere'"),
        (Row(0, (Intervention("z.0", Replace(torch.zeros(5, 8)), positions=1, heads=0),)), "holds 5 vectors"),
    ],
)
def test_bad_rows_are_one_sentence(model: Any, runs: Any, row: Row, message: str, way: str) -> None:
    rows = [Row(1), row]
    stream = model.rows(runs, rows, Logits()) if way == "fast" else naive_rows(model, runs, rows, Logits())
    with pytest.raises(InputError, match=message) as caught:
        list(stream)
    assert caught.value.hint


def test_bad_calls_are_one_sentence(model: Any, runs: Any) -> None:
    uneven = {"base": runs["base"], "other": Tokens.from_lists([[1]])}
    with pytest.raises(InputError, match="same number of prompts"):
        list(model.rows(uneven, [Row(0)], Logits()))
    with pytest.raises(InputError, match="Position 5 does not exist in prompt 1"):
        list(model.rows(runs, [Row(1)], Logits((5,))))
    with pytest.raises(InputError, match="at most 24"):
        list(model.rows(Tokens.from_lists([[1] * 25]), [Row(0)], Logits()))
