"""Canonical JSON and hashes: one text per content, and every deciding field decides."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mech_interp.config import Spec, canonical_json, digest, plain, spec_content
from mech_interp.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
DATA = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=20
)


def shuffled(data: object, rng: random.Random) -> object:
    if isinstance(data, dict):
        items = [(key, shuffled(value, rng)) for key, value in data.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(item, rng) for item in data] if isinstance(data, list) else data


def normal(data: object) -> object:
    """Equal exactly where the content is: types told apart, but not 1 from 1.0. The oracle of `digest`."""
    if isinstance(data, dict):
        return ("dict", frozenset((key, normal(value)) for key, value in data.items()))
    if isinstance(data, list | tuple):
        return ("list", tuple(normal(item) for item in data))
    return (type(data).__name__.replace("float", "int"), data)


@settings(deadline=None)
@given(DATA, st.randoms(use_true_random=False))
def test_key_order_does_not_count(data, rng):
    assert canonical_json(shuffled(data, rng)) == canonical_json(data)


@settings(deadline=None)
@given(DATA)
def test_the_text_reads_back_to_equal_content_and_is_stable(data):
    text = canonical_json(data)
    assert text.isascii()
    assert normal(json.loads(text)) == normal(data)
    assert canonical_json(json.loads(text)) == text


@settings(deadline=None)
@given(DATA, DATA)
def test_hashes_are_equal_exactly_where_content_is(one, other):
    assert (digest(one) == digest(other)) == (normal(one) == normal(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (-0.0, 0), ((1, 2), [1, 2]), ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}), (1e22, 10**22)],
)
def test_equal_numbers_and_sequences_are_equal_content(one, other):
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (0, None),
        ("1", 1),
        ("\u00e9", "e\u0301"),
        ([], {}),
        ([[1], 2], [1, [2]]),
        (0.1, 0.1 + 1e-17 + 1e-16),
    ],
)
def test_what_differs_differs(one, other):
    assert digest(one) != digest(other)


def test_the_hash_is_the_same_in_another_process():
    code = "from mech_interp.config import digest; print(digest({'b': [1.5, 'é', None], 'a': {'z': True}}))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {digest({"b": [1.5, "é", None], "a": {"z": True}})}


def endless() -> list:
    out: list = []
    out.append(out)
    return out


@pytest.mark.parametrize(
    "bad",
    [math.nan, math.inf, {1: 2}, {"a": {1, 2}}, [object()], b"x", {"a": "\ud800"}, {"\udfff": 1}, endless()],
    ids=["nan", "inf", "key 1", "set", "object", "bytes", "surrogate", "surrogate key", "endless"],
)
def test_what_json_cannot_hold_is_refused(bad):
    with pytest.raises(InputError) as caught:
        canonical_json(bad)
    assert caught.value.hint


def test_plain_names_the_place():
    with pytest.raises(InputError) as caught:
        plain({"a": [1, {"b": math.nan}]}, "the spec")
    assert caught.value.message == "the spec.a[1].b is nan."


BASE = {
    "name": "one",
    "family": "logit_lens",
    "model": "tinyworld",
    "parameters": {"top_k": 5, "positions": [-1], "nested": {"kind": "z"}},
}
DECIDING = {
    "family": "causal_tracing",
    "backend": "nnsight",
    "model": "gpt2",
    "revision": "main",
    "hook_site": "resid_pre.1",
    "device": "cpu",
    "dtype": "float64",
    "attention": "eager",
    "seed": 1,
    "prompts": ["The capital"],
    "parameters.top_k": 6,
    "parameters.positions": [-1, 0],
    "parameters.nested.kind": "q",
    "parameters.new": None,
}
IDLE = {
    "name": "two",
    "description": "different",
    "tags": ["paper"],
    "artifact_policy.retain_activation_tensors": True,
    "artifact_policy.write_report": False,
    "artifact_policy.max_artifact_bytes": 5,
    "parent_run": "run-000001-0000abcd",
    "hypothesis": {"claim": "c", "metric": "m", "direction": "above", "threshold": 1.0},
}


def key(spec: Spec) -> str:
    return digest(spec_content(spec, spec.parameters))


def test_every_field_is_known_to_decide_or_not():
    known = {path.partition(".")[0] for path in (*DECIDING, *IDLE)} | {"matrix"}
    assert known == set(Spec.model_fields)


@settings(deadline=None)
@given(st.sets(st.sampled_from(sorted(DECIDING)), min_size=1), st.sets(st.sampled_from(sorted(IDLE))))
def test_any_deciding_change_gives_another_hash_and_no_other_does(deciding, idle):
    base = Spec.from_dict(BASE)
    changed = base.changed({path: DECIDING[path] for path in deciding} | {path: IDLE[path] for path in idle})
    assert key(changed) != key(base)
    assert key(base.changed({path: IDLE[path] for path in idle})) == key(base)
    # And each of the changes adds to the others.
    for path in deciding:
        fewer = base.changed({other: DECIDING[other] for other in deciding - {path}})
        assert key(fewer) != key(changed)


def test_facts_of_the_model_replace_its_names():
    one = Spec.from_dict(BASE | {"model": "gpt2", "device": "auto", "dtype": "auto"})
    other = Spec.from_dict(BASE | {"model": "./copy-of-gpt2", "device": "cuda:1", "dtype": "float32"})
    facts = {"weights": "ab" * 32, "device": "cuda:1", "dtype": "float32"}
    assert spec_content(one, {}, **facts) == spec_content(other, {}, **facts | {"device": "cuda:0"})
    assert spec_content(one, {}, **facts) != spec_content(one, {}, **facts | {"weights": "cd" * 32})
    assert spec_content(one, {}, **facts) != spec_content(one, {}, **facts | {"device": "cpu"})


def test_site_and_prompts_count_once_where_the_family_takes_them():
    spec = Spec.from_dict(BASE | {"hook_site": "resid_pre.2"})
    taken = spec_content(spec, {"hook_site": "blocks.2.hook_resid_pre"})
    assert "hook_site" not in taken
    assert spec_content(spec, {})["hook_site"] == "blocks.2.hook_resid_pre"


def test_two_spellings_of_a_site_are_one():
    spellings = ["resid_pre.2", "blocks.2.hook_resid_pre", "2.resid_pre"]
    assert len({key(Spec.from_dict(BASE | {"hook_site": one})) for one in spellings}) == 1
