"""Interventions as values: what they accept, and digests that name them."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mech_interp.digests import digest_of
from mech_interp.errors import InputError
from mech_interp.interventions import (
    Add,
    Custom,
    EditContext,
    Freeze,
    FromRun,
    Intervention,
    Mean,
    Noise,
    Operation,
    ProjectOut,
    Replace,
    Scale,
    SubspaceSet,
    Zero,
)
from mech_interp.sites import Site

LIVE = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]])
THERE = torch.tensor([[9.0, 8.0, 7.0], [6.0, 5.0, 4.0]])
MEAN = torch.tensor([[0.5, 0.25, 0.125], [0.5, 0.25, 0.125]])
ALONG = torch.tensor([1.0, 0.0, 1.0])


def context(text: str = "resid_pre.0") -> Any:
    """What an operation is told about two vectors, at positions 0 and 1 of prompt 4."""
    return SimpleNamespace(
        site=Site.parse(text),
        prompts=torch.tensor([4, 4]),
        positions=torch.tensor([0, 1]),
        heads=None,
        numbers=torch.tensor([0, 1]),
        totals=torch.tensor([2, 2]),
        seen=torch.tensor([1, 2]),
        from_run=lambda source: THERE + (0 if source.prompt is None else source.prompt),
        mean_of=lambda run, positional: MEAN * (2 if positional else 1),
    )


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (Replace(torch.tensor([1.0, 1, 2])), [[1, 1, 2], [1, 1, 2]]),
        (Replace(THERE), THERE.tolist()),
        (Replace(THERE.flip(0)), THERE.flip(0).tolist()),
        (Replace(FromRun("x", prompt=1)), [[10, 9, 8], [7, 6, 5]]),
        (Add(torch.tensor([1.0, 0, 0]), -2), [[-1, 2, 3], [-3, 0.5, 4]]),
        (Add(FromRun("x")), [[10, 10, 10], [5, 5.5, 8]]),
        (Scale(3), [[3, 6, 9], [-3, 1.5, 12]]),
        (Zero(), [[0, 0, 0], [0, 0, 0]]),
        # Along (1, 0, 1)/√2 the components are 2·(1, 0, 1) and 1.5·(1, 0, 1).
        (ProjectOut(ALONG), [[-1, 2, 1], [-2.5, 0.5, 2.5]]),
        (ProjectOut(torch.stack((ALONG, -2 * ALONG))), [[-1, 2, 1], [-2.5, 0.5, 2.5]]),
        (ProjectOut(torch.eye(3)), [[0, 0, 0], [0, 0, 0]]),
        (SubspaceSet(ALONG, torch.zeros(3)), [[-1, 2, 1], [-2.5, 0.5, 2.5]]),
        (SubspaceSet(ALONG, FromRun("x")), [[7, 2, 9], [2.5, 0.5, 7.5]]),
        (Mean("x"), MEAN.tolist()),
        (Mean("x", positional=True), (2 * MEAN).tolist()),
        (Freeze("x"), THERE.tolist()),
        (Custom(lambda live, c: live * c.positions[:, None]), [[0, 0, 0], [-1, 0.5, 4]]),
    ],
)
def test_operations_by_hand(operation: Operation, expected: list[list[float]]) -> None:
    before = LIVE.clone()
    assert torch.allclose(
        operation.apply(LIVE, context()), torch.tensor(expected, dtype=torch.float32), atol=1e-5
    )
    assert torch.equal(before, LIVE), "the live vectors are not changed in place"


def test_over_keys_values_are_fitted_and_stop_at_the_query() -> None:
    """Widths that differ between batches are cut or filled; keys past a query hold nothing."""
    for n in (2, 3, 9):
        out = Replace(torch.arange(1.0, n + 1)).apply(LIVE, context("pattern.0"))
        assert out.tolist() == [[1, 0, 0], [1, 2, 0]]
    # The direction's part past the width still counts in its length.
    long = torch.tensor([3.0, 0.0, 0.0, 4.0])
    out = ProjectOut(long).apply(LIVE, context("attn_scores.0"))
    assert torch.allclose(out[:, 0], LIVE[:, 0] * (1 - 9 / 25))


@pytest.mark.parametrize("device_type", [torch.float64, torch.float16, torch.bfloat16])
def test_results_keep_the_type_of_the_model(device_type: torch.dtype) -> None:
    live = LIVE.to(device_type)
    for operation in (
        Replace(THERE),
        Add(THERE),
        Zero(),
        ProjectOut(ALONG),
        Noise(1.0),
        Mean("x"),
        Freeze("x"),
    ):
        assert operation.apply(live, context()).dtype is device_type


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Intervention("z.0", Zero(), heads=()), "heads= is empty"),
        (lambda: Intervention("z.0", Zero(), positions=[]), "positions= is empty"),
        (lambda: Intervention("z.0", Zero(), prompts=[]), "prompts= is empty"),
        (lambda: Intervention("z.0", Zero(), positions=[1.5]), "no list of whole numbers"),
        (lambda: Intervention("z.0", Zero(), positions="ab"), "no list of whole numbers"),
        (lambda: Intervention("z.0.1", Zero(), heads=1), "already names a head"),
        (lambda: Intervention("resid_pre.0", Zero(), heads=1), "has no heads"),
        (lambda: Intervention("z.0", Zero(), phase="later"), "no phase 'later'"),
        (lambda: Intervention("z.0", torch.zeros(3)), "is no operation"),
        (lambda: Intervention("z.0", Zero), "is no operation"),
        (lambda: Intervention("nowhere.0", Zero()), "names no site"),
        (lambda: FromRun("x", prompt=-1), "no prompt -1"),
        (lambda: FromRun("x", site="nowhere"), "names no site"),
    ],
)
def test_bad_interventions(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_indices_come_in_many_forms() -> None:
    for given_as in ([1, -2], (1, -2), np.array([1, -2]), torch.tensor([1, -2]), range(1, -3, -3)):
        assert Intervention("z.0", Zero(), positions=given_as).positions == (1, -2)
    for one in (3, np.int64(3), torch.tensor(3), [3]):
        edit = Intervention("z.0", Zero(), heads=one, positions=one, prompts=one)
        assert edit.heads == edit.positions == edit.prompts == (3,)
    edit = Intervention("z.0[3]", Zero())
    assert (edit.site, edit.heads) == (Site("z", 0), (3,))
    assert FromRun("x", site="z.1").site == Site("z", 1)


# Digests.

OFFSET = 1.0


def shift(live: Tensor, context: EditContext) -> Tensor:
    return live + OFFSET


def make_shift(amount: Any) -> Callable[..., Tensor]:
    return lambda live, context: live + amount


class Bend:
    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, live: Tensor, context: EditContext) -> Tensor:
        return live * self.strength


@dataclass(frozen=True, eq=False)
class Halve(Operation):
    """A user's own operation."""

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        return live / 2


def with_default(live: Tensor, context: EditContext, amount: float = 2.0) -> Tensor:
    return live * amount


V = torch.linspace(0, 1, 5000)


def nudged(at: int) -> Tensor:
    value = V.clone()
    value[at] += 1e-6
    return value


DISTINCT: list[Callable[[], Operation]] = [
    Zero,
    lambda: Scale(1.0),
    lambda: Scale(1.0000001),
    lambda: Mean(),
    lambda: Mean(positional=True),
    lambda: Mean("other"),
    lambda: Freeze(),
    lambda: Freeze("other"),
    lambda: Noise(1.0),
    lambda: Noise(1.0, seed=1),
    lambda: Noise(1.5),
    lambda: Replace(FromRun("base")),
    lambda: Replace(FromRun("base", prompt=0)),
    lambda: Replace(FromRun("base", site="z.0")),
    lambda: Replace(V),
    # One element among five thousand, beyond where a printed tensor is shortened.
    lambda: Replace(nudged(2500)),
    lambda: Replace(nudged(2501)),
    lambda: Replace(V.double()),
    lambda: Replace(V.reshape(50, 100)),
    lambda: Add(V),
    lambda: Add(V, 2.0),
    lambda: ProjectOut(V),
    lambda: SubspaceSet(V, V),
    lambda: SubspaceSet(V, nudged(7)),
    lambda: SubspaceSet(V, FromRun("base")),
    # Two functions on one line differ only in a constant.
    *(lambda f=f: Custom(f) for f in (lambda x, c: x * 2, lambda x, c: x * 3)),  # type: ignore[misc]
    lambda: Custom(lambda x, c: x * 2, uses_gradient=False),
    lambda: Custom(make_shift(1)),
    lambda: Custom(make_shift(1.0)),
    lambda: Custom(make_shift(V)),
    lambda: Custom(make_shift(nudged(2500))),
    lambda: Custom(make_shift([V, V])),
    lambda: Custom(make_shift([V, nudged(2500)])),
    lambda: Custom(make_shift({"a": 1, "b": V})),
    lambda: Custom(make_shift(np.arange(3))),
    lambda: Custom(make_shift(shift)),
    lambda: Custom(make_shift(with_default)),
    lambda: Custom(shift),
    lambda: Custom(with_default),
    lambda: Custom(functools.partial(with_default, amount=2.0)),
    lambda: Custom(functools.partial(with_default, amount=3.0)),
    lambda: Custom(Bend(1.0)),
    lambda: Custom(Bend(2.0)),
    Halve,
]


def test_every_value_enters_the_digest() -> None:
    digests = [make().digest() for make in DISTINCT]
    for (i, one), (j, two) in itertools.combinations(enumerate(digests), 2):
        assert one != two, (i, j)
    assert [make().digest() for make in DISTINCT] == digests
    assert all(len(digest) == 16 for digest in digests)


def test_a_global_that_a_function_reads_enters_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Custom(shift).digest()
    monkeypatch.setitem(shift.__globals__, "OFFSET", 2.0)
    assert Custom(shift).digest() != before


def test_state_that_refers_to_itself_has_a_digest() -> None:
    bend = Bend(1.0)
    bend.me = bend  # type: ignore[attr-defined]
    assert Custom(bend).digest() == Custom(bend).digest() != Custom(Bend(1.0)).digest()


def test_where_enters_the_digest_of_an_intervention() -> None:
    zero = Zero()
    made = [
        Intervention("z.0", zero),
        Intervention("z.1", zero),
        Intervention("v.0", zero),
        Intervention("z.0", zero, positions=0),
        Intervention("z.0", zero, positions=(0, 1)),
        Intervention("z.0", zero, heads=0),
        Intervention("z.0", zero, heads=1),
        Intervention("z.0", zero, prompts=0),
        Intervention("z.0", zero, phase="prompt"),
        Intervention("z.0", Scale(0.0)),
    ]
    assert len({edit.digest() for edit in made}) == len(made)
    assert (
        Intervention("z.0.1", zero).digest() == Intervention("blocks.0.attn.hook_z", Zero(), heads=1).digest()
    )


def test_digests_are_the_same_in_every_process() -> None:
    script = textwrap.dedent(
        """
        import torch
        from mech_interp.interventions import *
        class Holder:
            def __init__(self):
                self.words, self.inner = {"b", "a", "c"}, make(2)
        def make(x):
            return lambda live, context: live * x
        holder = Holder()
        V = torch.linspace(0, 1, 99)
        for operation in (Replace(V), Replace(FromRun("base", site="z.1")), Noise(1.0), Custom(make(V)),
                          Custom(make({"x": V, "y": {1, 2}})), Custom(make(holder)), Custom(make(make)),
                          Custom(lambda live, context: torch.tanh(live) if live in {"p", "q"} else V)):
            print(operation.digest(), Intervention("z.0", operation, positions=-1).digest())
        """
    )
    source = str(Path(__file__).resolve().parent.parent / "src")
    found = []
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": source}
        found.append(
            subprocess.run(
                [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
            ).stdout
        )
    assert found[0] == found[1]
    assert len(set(found[0].split())) == 16


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def _key(value: Any) -> str:
    """Equal exactly when values have equal types and contents, whatever a mapping's order."""
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{k!r}:{_key(v)}" for k, v in value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_key, value)) + "]"
    return f"{type(value).__name__}({value!r})"


@settings(deadline=None)
@given(plain, plain)
def test_digests_differ_exactly_where_values_do(one: Any, two: Any) -> None:
    assert (digest_of(one) == digest_of(two)) == (_key(one) == _key(two))


def test_neighbouring_values_do_not_run_together() -> None:
    pairs = [("ab", "c"), ("a", "bc"), (["a"], "b"), (["a", "b"],), ([["a"], "b"],), ("a", ["b"])]
    assert len({digest_of(*pair) for pair in pairs}) == len(pairs)
