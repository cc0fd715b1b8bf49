"""`--set key=value`: paths, YAML values, and what cannot be set."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mech_interp.config import apply
from mech_interp.config.canonical import canonical_json
from mech_interp.errors import InputError

DATA = {
    "name": "a",
    "parameters": {"kind": "z", "model": "gpt2", "layers": [0, {"at": 1}]},
    "description": None,
}


def test_values_are_yaml_and_the_data_is_left_alone():
    before = canonical_json(DATA)
    found = apply(
        DATA,
        [
            "parameters.kind=no",
            "seed=3",
            "parameters.lr=1e-3",
            "prompts=[a, ' b']",
            "parameters.x.y.z=",
            "tags=[]",
        ],
    )
    assert found["parameters"]["kind"] == "no"
    assert found["seed"] == 3
    assert found["parameters"]["lr"] == 0.001
    assert found["prompts"] == ["a", " b"]
    assert found["parameters"]["x"] == {"y": {"z": None}}
    assert canonical_json(DATA) == before


def test_the_last_setting_wins_and_equals_signs_may_follow():
    assert apply({}, ["a=1", "a=2"]) == {"a": 2}
    assert apply({}, ["a='b=c'"]) == {"a": "b=c"}
    assert apply({}, ["a=b=c"]) == {"a": "b=c"}


def test_shared_keys_are_set_wherever_they_are_named():
    assert apply(DATA, ["model=x"])["model"] == "x"
    found = apply(DATA, ["parameters.model=y"])
    assert found["model"] == "y"
    assert "model" not in found["parameters"]


def test_items_of_lists_and_empty_parents():
    found = apply(DATA, ["parameters.layers.1.at=5", "parameters.layers.0=9", "description.x=1"])
    assert found["parameters"]["layers"] == [9, {"at": 5}]
    assert found["description"] == {"x": 1}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("seed", "sets nothing"),
        ("=3", "sets nothing"),
        ("a..b=1", "is not a path"),
        ("name.first=1", "name is 'a', which has no parts"),
        ("parameters.layers.7=1", "a list of 2"),
        ("parameters.layers.x=1", "a list of 2"),
        ("parameters.layers.-1=1", "a list of 2"),
        (f"parameters.layers.{'9' * 5000}=1", "a list of 2"),
        ("a=[1", "this is not YAML"),
        ("a=1\n---\n2", "several documents"),
        ("a=.nan", "not a finite number"),
    ],
)
def test_what_cannot_be_set(setting, said):
    with pytest.raises(InputError) as caught:
        apply(DATA, [setting])
    assert said in caught.value.message


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=3))
def test_any_text_is_set_or_refused_in_a_sentence(given_text):
    said = ""
    try:
        found = apply(DATA, given_text)
    except InputError as error:
        said = error.message
    else:
        assert canonical_json(found)
        assert given_text or found["model"] == "gpt2"
    assert "\n" not in said.replace(repr(given_text), "")
