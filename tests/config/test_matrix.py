"""Matrix expansion: counts, order, names, determinism."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mech_interp.config import Spec, expand, points
from mech_interp.config.files import parse_specs
from mech_interp.config.matrix import count
from mech_interp.errors import InputError

BASE = {
    "name": "base",
    "family": "f",
    "model": "tinyworld",
    "seed": 7,
    "parameters": {"kind": "z", "x": {"y": 0}},
}


def spec(**matrix: object) -> Spec:
    return Spec.from_dict(BASE | {"matrix": matrix})


def test_without_matrix_a_spec_is_itself():
    one = Spec.from_dict(BASE)
    assert expand(one) == [one]


def test_grid_is_every_combination_last_axis_fastest():
    found = [point.values for point in points(spec(grid={"model": ["a", "b"], "parameters.x.y": [1, 2, 3]}))]
    assert found == [{"model": m, "parameters.x.y": y} for m in "ab" for y in (1, 2, 3)]


def test_values_reach_the_children_and_nothing_else_changes():
    (child,) = expand(
        spec(grid={"parameters.x.y": [5], "parameters.model": ["gpt2"]}, zip={"hook_site": ["z.1"]})
    )
    assert child.parameters == {"kind": "z", "x": {"y": 5}}
    assert (child.model, child.hook_site, child.seed) == ("gpt2", "blocks.1.attn.hook_z", 7)
    assert child.matrix is None


def test_zip_goes_together_and_list_takes_cases():
    zipped = [point.values for point in points(spec(zip={"model": ["a", "b"], "seed": [1, 2]}))]
    assert zipped == [{"model": "a", "seed": 1}, {"model": "b", "seed": 2}]
    cases = [{"model": "a"}, {"parameters.kind": "q", "seed": 3}]
    assert [point.values for point in points(spec(list=cases))] == cases


def test_seeds_count_up_from_the_specs_own_or_are_given():
    assert [child.seed for child in expand(spec(seeds=3))] == [7, 8, 9]
    assert [child.seed for child in expand(spec(seeds=[4, 0]))] == [4, 0]


def test_axes_straight_under_matrix_are_a_grid():
    one, other = spec(seed=[1, 2], grid={"model": ["a"]}), spec(grid={"model": ["a"], "seed": [1, 2]})
    assert one == other


def test_the_model_may_come_from_the_matrix():
    data = {key: value for key, value in BASE.items() if key != "model"}
    for matrix in ({"model": ["a", "b"]}, {"list": [{"model": "a"}, {"parameters.model": "b"}]}):
        assert [one.model for one in expand(Spec.from_dict(data | {"matrix": matrix}))] == ["a", "b"]
    with pytest.raises(InputError, match="model is missing"):
        Spec.from_dict(data | {"matrix": {"list": [{"model": "a"}, {"seed": 1}]}})


AXIS = st.sampled_from(["model", "parameters.kind", "parameters.x.y", "parameters.new"])
VALUES = st.lists(st.integers(0, 50).map(str), min_size=1, max_size=4, unique=True)


@st.composite
def matrices(draw):
    axes = draw(st.lists(AXIS, unique=True, min_size=1))
    cut = draw(st.integers(0, len(axes)))
    length = draw(st.integers(1, 3))
    same = st.lists(st.integers(0, 50).map(str), min_size=length, max_size=length, unique=True)
    matrix = {
        "grid": {axis: draw(VALUES) for axis in axes[:cut]},
        "zip": {axis: draw(same) for axis in axes[cut:]},
    }
    if draw(st.booleans()):
        matrix["seeds"] = draw(st.integers(1, 3))
    return matrix


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_counts_names_and_determinism(matrix):
    one = spec(**matrix)
    found = points(one)
    zipped = max((len(values) for values in matrix["zip"].values()), default=1)
    wanted = math.prod(map(len, matrix["grid"].values())) * zipped * matrix.get("seeds", 1)
    assert len(found) == wanted == count(one)
    assert len({point.spec.name for point in found}) == wanted
    assert [point.spec for point in found] == expand(one) == expand(Spec.from_dict(one.to_dict()))
    assert all(point.spec.name.startswith("base-") for point in found)
    # The oracle: every combination of what each axis can be, no more and no less.
    seen = {tuple(sorted(point.values.items())) for point in found}
    rows = [
        dict(zip(matrix["zip"], row, strict=True)) for row in zip(*matrix["zip"].values(), strict=True)
    ] or [{}]
    for row, cells in itertools.product(rows, itertools.product(*matrix["grid"].values())):
        values = row | dict(zip(matrix["grid"], cells, strict=True))
        seeds = range(7, 7 + matrix["seeds"]) if "seeds" in matrix else [None]
        for seed in seeds:
            assert tuple(sorted((values | ({} if seed is None else {"seed": seed})).items())) in seen


def test_names_depend_on_the_values_not_on_the_order_of_keys_or_the_process():
    data = BASE | {"matrix": {"model": ["a/b c", "d"], "seeds": 2}}
    code = (
        "from mech_interp.config import Spec, expand\n"
        f"print([child.name for child in expand(Spec.from_dict({data!r}))])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        ).stdout
        for seed in "12"
    }
    assert len(found) == 1
    names = [child.name for child in expand(spec(model=["a/b c", "d"], seeds=2))]
    assert str(names) == found.pop().strip()
    assert names[0].startswith("base-model-b-c-seed-7-")
    swapped = [child.name for child in expand(spec(seeds=2, model=["a/b c", "d"]))]
    assert {name[-8:] for name in swapped} == {name[-8:] for name in names}


def test_long_and_odd_values_still_make_names():
    values = ["x" * 300, {"a": ["ü", 1]}, None, "", "../..", " Paris"]
    children = expand(Spec.from_dict(BASE | {"name": "n" * 200, "matrix": {"parameters.kind": values}}))
    assert len({child.name for child in children}) == len(values)
    assert [child.parameters["kind"] for child in children] == values


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ({"parameters.kind": [1, 1.0]}, "twice"),
        ({"grid": {f"parameters.a{i}": list(range(10)) for i in range(5)}}, "has 100000 points"),
        ({"parameters.kind.deeper": [1]}, "parameters.kind is 'z'"),
        ({"dtype": ["float32", "half"]}, "dtype is 'half'"),
        ({"seeds": ["a"]}, "seed is 'a'"),
        ({"list": [{"model": "a"}], "model": ["b"]}, "the axis model is given twice"),
        ({"tags": [["a"]]}, "There is no key 'tags' under matrix"),
    ],
)
def test_impossible_matrices(matrix, said):
    with pytest.raises(InputError) as caught:
        expand(spec(**matrix))
    assert said in caught.value.message


def test_overwriting_seeds_past_the_largest_is_refused():
    with pytest.raises(InputError, match="seed is 4294967296"):
        expand(Spec.from_dict(BASE | {"seed": 2**32 - 1, "matrix": {"seeds": 2}}))


def test_mistakes_at_a_point_name_the_point_and_its_line():
    text = "name: a\nfamily: f\nmodel: m\nseed: 1\nmatrix:\n  seed: [1, -2]\n"
    with pytest.raises(InputError) as caught:
        parse_specs(text, "f.yaml")
    assert caught.value.message == "f.yaml:5: seed is -2, but must be at least 0."
    assert caught.value.hint.endswith('This is the point {"seed":-2} of the matrix.')
    # What the matrix leaves alone is found where it stands.
    child = expand(parse_specs(text.replace("-2", "2"), "f.yaml")[0])[0]
    assert child.origin.at(("family",)) == "f.yaml:2: "
    assert child.origin.at(("seed",)) == "f.yaml:5: "
