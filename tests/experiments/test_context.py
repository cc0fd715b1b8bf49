"""Units are computed once, come back the same, and draw the same random numbers in any order."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mech_interp.errors import MechError
from mech_interp.experiments.context import Budget, Context, MemoryStore
from mech_interp.experiments.errors import BudgetError, FamilyError
from mech_interp.experiments.family import FamilyParams
from mech_interp.storage.folder import RunFolder


class Params(FamilyParams):
    pass


class Told:
    def __init__(self) -> None:
        self.steps: list[tuple[int, int, str]] = []
        self.events: list[tuple[str, dict]] = []

    def progress(self, done: int, total: int, what: str) -> None:
        self.steps.append((done, total, what))

    def event(self, kind: str, **data: object) -> None:
        self.events.append((kind, data))


def context(**given: object) -> Context[Params]:
    return Context(Params(), **given)


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    if request.param == "memory":
        yield MemoryStore()
        return
    with RunFolder.create(tmp_path / "runs", "ab" * 32, "name: a\n", {}) as folder:
        yield folder


def test_a_unit_is_computed_once_and_comes_back_the_same(store):
    calls: list[str] = []

    def work() -> dict:
        calls.append("x")
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        return {
            "rows": [(1, 2.5)],
            "x": np.float64(0.1),
            "none": None,
            "nan": float("nan"),
            "a": array,
            "ä": "é\n",
        }

    first = context(units=store)
    one = first.unit("pair/0", work)
    second = context(units=store)
    other = second.unit("pair/0", work)
    assert calls == ["x"]
    assert (first.computed, first.reused) == (["pair/0"], [])
    assert (second.computed, second.reused) == ([], ["pair/0"])
    for found in (one, other):
        assert found["rows"] == [[1, 2.5]]
        assert found["x"] == 0.1
        assert found["none"] is None
        assert np.isnan(found["nan"])
        assert found["ä"] == "é\n"
        assert found["a"].dtype == np.float32
        np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])
    assert list(one) == list(other)


NUMBERS = (
    st.floats(allow_nan=False)
    | st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.none()
    | st.text(max_size=5)
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.lists(NUMBERS, max_size=3) | NUMBERS, max_size=4))
def test_computed_and_stored_values_are_equal(payload):
    units = MemoryStore()
    one = context(units=units).unit("k", lambda: payload)
    other = context(units=units).unit("k", lambda: {})
    assert json.dumps(one) == json.dumps(other)
    assert one == payload


def test_what_a_caller_does_to_a_value_does_not_reach_the_store():
    units = MemoryStore()
    one = context(units=units).unit("k", lambda: {"a": np.zeros(2), "list": [1]})
    one["a"][0] = 9
    one["list"].append(2)
    other = context(units=units).unit("k", lambda: {})
    assert other["a"].tolist() == [0, 0]
    assert other["list"] == [1]


def test_tensors_become_arrays(store):
    torch = pytest.importorskip("torch")
    values = torch.tensor([1.5, -2.0], requires_grad=True)
    found = context(units=store).unit("k", lambda: {"x": values, "half": values.detach().to(torch.bfloat16)})
    assert isinstance(found["x"], np.ndarray)
    assert found["x"].tolist() == [1.5, -2.0]
    assert found["half"].dtype == np.float32


def test_the_same_key_twice_is_a_mistake():
    one = context()
    one.unit("k", lambda: {"a": 1})
    with pytest.raises(FamilyError, match="asked for twice"):
        one.unit("k", lambda: {"a": 2})


@pytest.mark.parametrize("value", [3, [1], None, {1: 2}])
def test_a_unit_returns_a_mapping(value):
    with pytest.raises(FamilyError, match="returned a"):
        context().unit("k", lambda: value)


def test_a_unit_that_fails_is_not_stored_and_can_be_done_again():
    one = context()
    with pytest.raises(ZeroDivisionError):
        one.unit("k", lambda: {"a": 1 / 0})
    assert one.unit("k", lambda: {"a": 1}) == {"a": 1}


def test_each_gives_a_unit_per_item_with_progress():
    told, units = Told(), MemoryStore()
    context(units=units).unit("square 2", lambda: {"y": 4})
    one = context(units=units, observer=told)
    found = list(one.each([1, 2, 3], lambda x: f"square {x}", lambda x: {"y": x * x}, "squares"))
    assert found == [{"y": 1}, {"y": 4}, {"y": 9}]
    assert (one.computed, one.reused) == (["square 1", "square 3"], ["square 2"])
    assert told.steps == [(0, 3, "squares"), (1, 3, "squares"), (2, 3, "squares"), (3, 3, "squares")]
    assert [data["key"] for kind, data in told.events if kind == "unit"] == ["square 1", "square 3"]


def noisy_run(one: Context[Params], order: list[int], stop: int | None = None) -> dict[int, float]:
    found = {}
    for done, i in enumerate(order):
        if done == stop:
            raise KeyboardInterrupt
        found[i] = one.unit(f"u{i}", lambda i=i: {"x": float(one.generator(f"u{i}").normal())})["x"]
    return found


@settings(deadline=None)
@given(st.permutations(range(5)), st.integers(0, 4), st.integers(0, 99))
def test_resuming_gives_the_same_numbers_whatever_was_done_before(order, stop, seed):
    whole = noisy_run(context(seed=seed), list(range(5)))
    units = MemoryStore()
    with pytest.raises(KeyboardInterrupt):
        noisy_run(context(seed=seed, units=units), list(order), stop)
    assert noisy_run(context(seed=seed, units=units), list(range(5))) == whole
    assert noisy_run(context(seed=seed + 1), list(range(5))) != whole


def test_seeds_depend_on_every_name():
    one = context(seed=1)
    names = [(), ("a",), ("a", "b"), ("ab",), ("a", 1), ("a", "1 ")]
    seeds = [one.subseed(*name) for name in names]
    assert len(set(seeds)) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Fixed for ever: another value would change the numbers of every stored run.
    assert context(seed=0).subseed("unit") == 4_654_636_810_174_234_907


def test_the_model_is_opened_once_and_only_when_used():
    opened: list[object] = []

    def load() -> object:
        opened.append(object())
        return opened[-1]

    told = Told()
    one = context(load_model=load, observer=told)
    assert not opened
    assert one.model is one.model is opened[0]
    assert len(opened) == 1
    assert [kind for kind, _ in told.events] == ["model"]
    with pytest.raises(FamilyError, match="has no model"):
        _ = context().model


def test_time_is_checked_between_units_and_stored_ones_are_free():
    now = [0.0]
    units = MemoryStore()

    def work() -> dict:
        now[0] += 4
        return {"a": 1}

    one = context(units=units, budget=Budget(seconds=10), clock=lambda: now[0])
    with pytest.raises(BudgetError, match=r"limit of 10 seconds after 3 units"):
        list(one.each(range(9), str, lambda _: work()))
    other = context(units=units, budget=Budget(seconds=10), clock=lambda: now[0])
    with pytest.raises(BudgetError):
        list(other.each(range(9), str, lambda _: work()))
    assert other.reused == ["0", "1", "2"]
    assert other.computed == ["3", "4", "5"]


def test_data_that_changed_since_the_receipt_is_refused():
    told = Told()
    one = context(datasets={"facts": "a" * 64}, observer=told)
    one.dataset("facts", "a" * 64, 32)
    one.dataset("facts", "a" * 64, 32)
    one.dataset("more", "b" * 64, 2)
    assert one.datasets == {"facts": "a" * 64, "more": "b" * 64}
    assert len(told.events) == 2
    for name, sha in (("facts", "c" * 64), ("more", "c" * 64)):
        with pytest.raises(MechError, match="has changed"):
            one.dataset(name, sha, 32)
    with pytest.raises(MechError, match="has changed"):
        context(datasets={"facts": "a" * 64}).dataset("facts", "c" * 64, 32)


def test_notes_are_kept_once():
    told = Told()
    one = context(observer=told)
    for _ in range(2):
        one.note("3 items were dropped.")
    assert one.notes == ["3 items were dropped."]
    assert told.events == [("note", {"text": "3 items were dropped."})]
