"""A run whose units are partly stored computes only the rest, and finds the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mech_interp.backends.protocol import Row
from mech_interp.experiments import parts, resumable
from mech_interp.experiments.families import polysemanticity
from mech_interp.experiments.result import Result
from mech_interp.experiments.resumable import portions

TEXTS = [
    {"text": f"{first} {old} {name} {tail}", "label": label}
    for label, tail in (("giving", "gave that book to a"), ("saying", "say 12 7 ."))
    for first in ("The", "a")
    for old in ("old", "new", "big")
    for name in ("Ann", "dog")
]
CASES: dict[str, dict[str, Any]] = {
    "activation_capture": {"hook_sites": ["resid_post", "z"]},
    "logit_lens": {},
    "direct_logit_attribution": {},
    "circuit_patching": {"positions": ["subject", "last"]},
    "causal_tracing": {"only_known": False, "samples": 2},
    "polysemanticity": {"prompts": TEXTS, "shuffles": 20},
    "superposition": {"replicates": 2},
    "acdc_edge": {"tau": 0.02, "taus": [0.1], "repeats": 2, "curve_random": 2},
    "acdc_lite": {"tau": 0.02, "curve_random": 2, "completeness": 2},
    "attribution_patching": {"check": 8, "claims": 4, "curve_random": 2},
    "causal_scrubbing": {
        "hypothesis": {
            "logits": ["late"],
            "nodes": {"late": {"sites": ["a1.h0", "m1"], "depends_on": ["subject"]}},
        },
        "samples": 3,
        "samples_per_unit": 1,
    },
    "circuit_evaluation": {"nodes": ["a0.h1", "m0", "m1"], "completeness": 2},
    "path_patching": {"receivers": ["logits", "m1"], "senders": "all"},
}


def case(family: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    given = CASES[family]
    return given if family in ("polysemanticity", "superposition") else {"prompt_pairs": records, **given}


def same(one: Result, other: Result) -> None:
    assert {name: metric.to_dict() for name, metric in one.metrics.items()} == {
        name: metric.to_dict() for name, metric in other.metrics.items()
    }
    assert one.tables == other.tables
    assert one.controls == other.controls
    assert {name: view.to_dict() for name, view in one.views.items()} == {
        name: view.to_dict() for name, view in other.views.items()
    }
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor, other.tensors[name])


@pytest.mark.parametrize("family", CASES)
def test_half_the_units_are_read_back(
    family: str, run: Any, records: Any, half_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small units, so that there are several of each.
    monkeypatch.setattr(parts.portions, "__defaults__", (5,))
    monkeypatch.setattr(resumable.resumable, "__defaults__", ("rows", 20))
    assert polysemanticity.portions is parts.portions
    contexts: list[Any] = []
    parameters = case(family, records)
    first = run(family, units=half_store, contexts=contexts, **parameters)
    kept, lost = half_store.lose_half()
    assert kept
    assert lost
    again = run(family, units=half_store, contexts=contexts, **parameters)
    assert contexts[1].reused == [key for key in contexts[0].computed if key in kept]
    assert contexts[1].computed == [key for key in contexts[0].computed if key in lost]
    same(first, again)
    third = run(family, units=half_store, contexts=contexts, **parameters)
    assert not contexts[2].computed
    same(first, third)


def test_a_stored_unit_is_believed(run: Any, records: Any, half_store: Any) -> None:
    """Otherwise nothing above would show that units are used at all."""
    first = run("logit_lens", units=half_store, prompt_pairs=records)
    (key,) = half_store._units
    text, arrays = half_store._units[key]
    half_store._units[key] = (text, {**arrays, "target_probability": arrays["target_probability"] * 0 + 0.25})
    again = run("logit_lens", units=half_store, prompt_pairs=records)
    assert again.metrics["final_probability"].value == 0.25 != first.metrics["final_probability"].value


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_portions_cover_all_rows_and_keep_prompts_together(size: int) -> None:
    rows = [Row(prompt) for prompt, count in enumerate([3, 1, 4, 2, 7]) for _ in range(count)]
    found = list(portions(rows, size))
    assert [i for start, stop in found for i in range(start, stop)] == list(range(len(rows)))
    for start, _ in found[1:]:
        assert rows[start].prompt != rows[start - 1].prompt
    assert all(stop - start < size + 7 for start, stop in found)
    assert list(portions([], size)) == []
