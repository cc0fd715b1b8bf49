"""Numbers of every family on a fixed tiny model; they may move only with the family's version.

After a deliberate change raise the family's version and store the new numbers with

    GOLDEN_WRITE=1 python -m pytest tests/experiments/families/test_golden.py

which refuses a family whose numbers moved while its version did not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mech_interp.experiments import get, registry

STORED = Path(__file__).with_name("golden.json")
TEXTS = [
    {"text": f"{first} {old} {name} {tail}", "label": label}
    for label, tail in (("giving", "gave that book"), ("saying", "say 12 7 ."), ("red", "to a red a red"))
    for first in ("The", "a")
    for old in ("old", "new")
    for name in ("Ann", "dog")
]
CASES: dict[str, dict[str, Any]] = {
    "activation_capture": {"hook_sites": ["resid_post", "mlp_post.1"]},
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
    "causal_tracing": {"only_known": False, "samples": 3},
    "circuit_patching": {"positions": ["subject", "last"], "control_sites": ["k"]},
    "direct_logit_attribution": {},
    "logit_lens": {},
    "polysemanticity": {"prompts": TEXTS, "shuffles": 50},
    "superposition": {"replicates": 3},
}
# The same operations in another order or on another processor; far below any change of method.
RELATIVE, ABSOLUTE = 1e-6, 1e-9


def measured(run: Any, family: str, records: Any) -> dict[str, Any]:
    """Value, interval, n and control of every metric."""
    given = dict(CASES[family])
    if "prompt_pairs" in get(family).Params.model_fields:
        given["prompt_pairs"] = records
    found = {}
    for name, metric in run(family, **given).metrics.items():
        control = (metric.control or {}).get("value")
        found[name] = {"value": metric.value, "interval": metric.interval, "n": metric.n, "control": control}
    return json.loads(json.dumps(found))


def moved(stored: Any, now: Any) -> list[str]:
    """Metrics that are not what was stored."""
    names = sorted({*stored, *now})
    return [name for name in names if not _near(stored.get(name), now.get(name))]


def _near(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_near(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_near, one, other))
    if one is None or other is None:
        return one is other
    return bool(other == pytest.approx(one, rel=RELATIVE, abs=ABSOLUTE))


def test_every_family_has_golden_numbers() -> None:
    assert sorted(CASES) == registry.built_in()


@pytest.mark.parametrize("family", CASES)
def test_numbers_move_only_with_the_version(family: str, run: Any, records: Any) -> None:
    everything = json.loads(STORED.read_text(encoding="utf-8")) if STORED.is_file() else {}
    now, version = measured(run, family, records), get(family).version
    stored = everything.get(family)
    changed = moved(stored["metrics"], now) if stored else sorted(now)
    if os.environ.get("GOLDEN_WRITE"):
        assert stored is None or stored["version"] != version or not changed, (
            f"{family} {version}: {changed} moved; raise its version first"
        )
        everything[family] = {"version": version, "metrics": now}
        text = json.dumps(everything, indent=1, sort_keys=True) + "\n"
        STORED.write_text(text, encoding="utf-8")
        return
    assert stored is not None, f"{family} has no golden numbers"
    assert stored["version"] == version, f"{family} is at version {version}: store its new numbers"
    assert not changed, f"{family} {version}: {changed} moved; raise its version if that was meant"


def test_a_moved_number_is_seen() -> None:
    stored = {"a": {"value": 1.0, "interval": [0.5, 1.5], "n": 3, "control": None}}
    assert moved(stored, stored) == []
    assert moved(stored, {"a": {**stored["a"], "value": 1.0 + 1e-8}}) == []
    for change in (
        {"value": 1.00001},
        {"interval": None},
        {"interval": [0.5, 1.51]},
        {"n": 4},
        {"control": 0.0},
        {"value": None},
    ):
        assert moved(stored, {"a": {**stored["a"], **change}}) == ["a"]
    assert moved(stored, {}) == moved({}, stored) == ["a"]
