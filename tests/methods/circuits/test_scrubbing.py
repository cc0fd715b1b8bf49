"""Causal scrubbing against the published recursion, one input at a time, on models written out by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from edge_models import HERE, in_double
from slow_scrubbing import (
    HYPOTHESES,
    LABELS,
    LENGTHS,
    METRIC,
    SAMPLES,
    SEED,
    N,
    Recursion,
    Written,
    graph_of,
    prompts,
)

from mech_interp.backends.metrics import LogitDifference
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, InputError
from mech_interp.methods.circuits import scrubbing_rows
from mech_interp.methods.circuits.scrubbing import AnswerLoss, causal_scrubbing
from mech_interp.methods.circuits.scrubbing_hypothesis import Hypothesis, Node
from mech_interp.methods.circuits.scrubbing_tree import Draws, Inputs, unroll
from mech_interp.methods.common import SanityError
from mech_interp.statistics import UnstableRatioError
from mech_interp.views import Bars, Table, view_from_dict


@pytest.fixture(scope="module", params=HERE)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    with in_double(request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def gpt2() -> Iterator[Any]:
    with in_double("gpt2") as opened:
        yield opened


@pytest.mark.parametrize("unimportant", ["shared", "separate"])
@pytest.mark.parametrize("name", HYPOTHESES)
def test_equals_the_published_recursion(model: Any, name: str, unimportant: Any) -> None:
    ids = prompts()
    options: dict[str, Any] = {"samples": SAMPLES, "seed": SEED, "unimportant": unimportant, "control": False}
    found = causal_scrubbing(model, Tokens.from_lists(ids), METRIC, HYPOTHESES[name], LABELS, **options)
    recursion = Recursion(Written(model, ids), HYPOTHESES[name], LABELS, SEED, unimportant == "separate")
    for prompt in range(N):
        for sample in range(SAMPLES):
            assert found.scrubbed[prompt, sample] == pytest.approx(recursion.run(sample, prompt), abs=1e-9)
    assert found.recursive == recursion.evaluated
    assert 0 < found.computed <= found.recursive
    assert found.computed < found.recursive or unimportant == "separate"
    assert np.abs(found.scrubbed - found.plain[:, None]).max() > 0.05


def test_the_same_node_in_two_places_draws_twice(gpt2: Any) -> None:
    """`source` feeds both the mover (through three readers) and the late MLP."""
    tokens = Tokens.from_lists(prompts())
    root = unroll(HYPOTHESES["deep"], graph_of(gpt2))
    paths = [use.path for use in root.walk() if use.part.name == "source"]
    assert sorted(paths) == sorted(
        ["logits/late@logits/source@m2", *(f"logits/mover@logits/source@a2.h1<{x}>" for x in "qkv")]
    )
    draws = Draws(Inputs.of(tokens.lengths, LABELS), 50, SEED)
    drawn = [draws.agreeing(path, ("first",), draws.references) for path in paths]
    assert all((a != b).any() for i, a in enumerate(drawn) for b in drawn[:i])


def test_draws_are_uniform_over_agreeing_inputs_of_the_same_length() -> None:
    inputs = Inputs.of(LENGTHS, LABELS)
    draws = Draws(inputs, 6000, 0)
    drawn = draws.agreeing("here", ("first",), draws.references)[:, 0]
    assert sorted(set(drawn)) == [0, 2, 5]  # as long as prompt 0, first "a", itself included
    counts = np.bincount(drawn)[[0, 2, 5]]
    assert ((counts - 2000) ** 2 / 2000).sum() < 13.8  # chi-square, two degrees of freedom, p = 0.001
    anything = draws.random("here")[:, 3]
    assert sorted(set(anything)) == [3, 6, 8]
    np.testing.assert_array_equal(draws.agreeing("here", ("first",), draws.references)[:, 0], drawn)
    within = Draws(Inputs.of(LENGTHS, LABELS, ("last",)), 500, 0)
    assert sorted(set(within.random("here")[:, 0])) == [0, 4, 5]


def dataset(model: Any, n: int = 24) -> dict[str, Any]:
    """Prompts whose metric the model does better on than on unrelated ones: the answer is its own."""
    ids = prompts([6] * n, seed=8)
    logits = model.forward(ids, logits="last").logits
    change = logits - logits.mean(0)
    metric = LogitDifference(tuple(change.argmax(1).tolist()), tuple(change.argmin(1).tolist()))
    features = {"first": [row[0] % 3 for row in ids], "last": [row[-1] % 2 for row in ids]}
    return {"prompts": Tokens.from_lists(ids), "metric": metric, "features": features}


def everything(model: Any) -> Hypothesis:
    """A tree of whole layers over everything before them: each input its own class."""
    last = model.info.n_layers - 1
    layers = [f"layer {i}" for i in range(last + 1)]
    nodes = {"embedding": Node(("input",), ("prompt",))}
    for i, name in enumerate(layers):
        nodes[name] = Node((f"a{i}.h*", f"m{i}"), ("prompt",), ("embedding", *layers[:i]))
    return Hypothesis(("embedding", *layers), nodes)


@pytest.mark.parametrize("unimportant", ["shared", "separate"])
def test_identities(model: Any, unimportant: Any) -> None:
    data = dataset(model)
    all_of_it = causal_scrubbing(model, hypothesis=everything(model), unimportant=unimportant, **data)
    assert all_of_it.recovered.value == pytest.approx(1.0, abs=1e-9)
    assert all_of_it.vacuous == list(everything(model).nodes)
    nothing = causal_scrubbing(model, hypothesis=Hypothesis(()), **data)
    assert nothing.recovered.value == 0.0
    assert np.array_equal(nothing.scrubbed, nothing.random)


def test_a_node_that_depends_on_nothing_is_not_the_model(gpt2: Any) -> None:
    """Everything important but any input agreeing: one unrelated input for the whole model."""
    hypothesis = Hypothesis(("all",), {"all": Node(("input", "a*.h*", "m*"))})
    data = dataset(gpt2, 40)
    found = causal_scrubbing(gpt2, hypothesis=hypothesis, samples=20, **data)
    assert abs(found.recovered.value) < 0.1
    # What was computed once for an input serves all draws of it.
    assert (found.computed, found.recursive) == (80, 1600)


def test_batches_do_not_matter(gpt2: Any) -> None:
    data = dataset(gpt2, 10)
    hypothesis = HYPOTHESES["edges and readers"]
    data["features"]["both"] = [(a, b) for a, b in zip(*data["features"].values(), strict=True)]
    whole = causal_scrubbing(gpt2, hypothesis=hypothesis, **data)
    seen: list[tuple[int, int]] = []
    small = causal_scrubbing(
        gpt2, hypothesis=hypothesis, memory_budget=1, progress=lambda *at: seen.append(at), **data
    )
    np.testing.assert_allclose(small.scrubbed, whole.scrubbed, atol=1e-10)
    assert seen[-1] == (40, 40)
    assert len(seen) == 40


def induction(gap: float) -> tuple[Any, dict[str, Any], dict[str, Hypothesis]]:
    """The planted induction model, its prompts, the true hypothesis and wrong ones."""
    planted = pytest.importorskip("mech_interp.planted.registry").build("induction", gap)
    pairs = planted.pairs(600)
    ids = [pairs.clean.row(i) for i in range(len(pairs))]
    before, head = planted.groups["previous token"][0], planted.groups["induction"][0]
    features = {
        "last": [row[-1] for row in ids],
        "where": [row.index(row[-1]) for row in ids],
        "answer": list(pairs.answer),
    }
    true = {
        "induction": Node((head,), ("answer",), ("query", "keys", "values")),
        "query": Node((f"input->{head}<q>",), ("last",)),
        "keys": Node((f"{before}->{head}<k>",), ("last", "where"), ("token",)),
        "token": Node((f"input->{before}<v>",), ("last", "where")),
        "values": Node((f"input->{head}<v>",), ("answer", "where")),
    }
    no_keys = {name: node for name, node in true.items() if name not in ("keys", "token")}
    nodes = {
        "true": true,
        "the answer does not matter": true
        | {"induction": Node((head,), ("where",), true["induction"].inputs)},
        "another head": {"other": Node((f"{head[:-1]}{(int(head[-1]) + 1) % 3}",), ("answer",))},
        "no keys": no_keys | {"induction": Node((head,), ("answer",), ("query", "values"))},
    }
    data = {"prompts": pairs.clean, "metric": pairs.metric, "features": features, "samples": 2}
    return (
        planted.open(check=False),
        data,
        {name: Hypothesis((next(iter(own)),), own, name) for name, own in nodes.items()},
    )


@pytest.mark.parametrize("gap", [6.0, 50.0])
def test_a_planted_mechanism(gap: float) -> None:
    model, data, hypotheses = induction(gap)
    found = {name: causal_scrubbing(model, hypothesis=h, **data) for name, h in hypotheses.items()}
    true = found.pop("true")
    assert true.recovered.value == pytest.approx(1.0, abs=0.005)
    assert not true.vacuous
    assert all(node.agreeing > 5 for node in true.nodes)
    assert true.control is not None
    assert abs(true.control.value) < 0.05
    for name, wrong in found.items():
        assert abs(wrong.recovered.value) <= 0.05, name


def test_a_planted_mechanism_up_to_chance() -> None:
    """Keys that need not know where the letter stood are right in one of six places."""
    model, data, hypotheses = induction(6.0)
    nodes = dict(hypotheses["true"].nodes)
    keys = nodes["keys"]
    nodes["keys"] = Node(keys.sites, ("last",), keys.inputs)
    found = causal_scrubbing(model, hypothesis=Hypothesis(("induction",), nodes), **data)
    assert found.recovered.interval is not None
    low, high = found.recovered.interval
    assert low < 1 / 6 < high


def test_the_result(gpt2: Any) -> None:
    data = dataset(gpt2)
    nodes = {
        "late": Node(("a2.h*", "m2", "m1"), ("first",), ()),
        "own": Node(("input",), ("prompt",)),
    }
    groups = [f"g{i // 2}" for i in range(24)]
    result = causal_scrubbing(
        gpt2, hypothesis=Hypothesis(("late", "own"), nodes, "mine"), groups=groups, samples=3, **data
    )
    expected = (result.scrubbed.mean() - result.random.mean()) / (result.plain.mean() - result.random.mean())
    assert result.recovered.value == pytest.approx(expected)
    assert result.recovered.interval is not None
    assert (result.recovered.n, result.recovered.n_groups) == (24, 12)
    assert result.scrubbed.shape == result.random.shape == (24, 3)
    assert result.vacuous == ["own"]
    sizes = [data["features"]["first"].count(label) for label in data["features"]["first"]]
    assert result.nodes[0].agreeing == pytest.approx(np.mean(sizes))
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert told["hypothesis"]["nodes"]["late"]["sites"] == ["a2.h*", "m2", "m1"]
    assert told["vacuous"] == ["own"]
    bars, table = result.views()
    assert isinstance(bars, Bars)
    assert isinstance(table, Table)
    assert view_from_dict(bars.to_dict()) == bars
    assert "test nothing: own" in bars.note
    loss = AnswerLoss(data["metric"].correct)
    measured = causal_scrubbing(gpt2, hypothesis=Hypothesis(()), **{**data, "metric": loss})
    logits = gpt2.forward(data["prompts"], logits="last").logits
    expected_loss = torch.nn.functional.cross_entropy(logits, torch.tensor(loss.token), reduction="none")
    np.testing.assert_allclose(measured.plain, expected_loss.numpy(), atol=1e-9)


def test_a_wrong_value_is_noticed(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity of every call fails when a node's own computation is not the model's."""
    right = scrubbing_rows.Scrubber.live
    monkeypatch.setattr(scrubbing_rows.Scrubber, "live", lambda *given: 1.1 * right(*given))
    with pytest.raises(SanityError, match="own reference"):
        causal_scrubbing(gpt2, hypothesis=everything(gpt2), **dataset(gpt2))


YAML = """
name: copying
logits: [mover]
nodes:
  mover:
    sites: ["blocks.2.attn.hook_z[1]", m2]
    depends_on: last
    inputs: [keys, query]
  keys: {sites: "a1.h* -> a2.h1<k>", depends_on: [first, last]}
  query: {sites: [q.2.1]}
"""


def test_hypotheses_are_written_in_yaml(gpt2: Any) -> None:
    hypothesis = Hypothesis.from_yaml(YAML)
    assert hypothesis.features == ("last", "first")
    assert hypothesis.order == ("keys", "query", "mover")
    assert Hypothesis.from_dict(hypothesis.to_dict()) == hypothesis
    found = causal_scrubbing(gpt2, hypothesis=hypothesis, **dataset(gpt2))
    assert [node.parts for node in found.nodes] == [
        ("a2.h1", "m2"),
        ("a1.h0->a2.h1<k>", "a1.h1->a2.h1<k>", "a1.h2->a2.h1<k>", "a1.h3->a2.h1<k>"),
        ("a2.h1<q>",),
    ]


def with_nodes(*inputs: str, **nodes: Node) -> Hypothesis:
    return Hypothesis(inputs, nodes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: with_nodes("x", x=Node(("a7.h0",))),
            r"The node 'x' matches no site of this model: 'a7\.h0'",
        ),
        (lambda: with_nodes("x", x=Node(("a2.h1->a1.h0<q>",))), "The node 'x' matches no site"),
        (lambda: with_nodes("x", x=Node(("resid_mid.1",))), "The node 'x' matches no site"),
        (lambda: with_nodes("x", x=Node(("a1.h0", "a2.h0<q>"))), "'x' joins a reader"),
        (lambda: with_nodes("x", x=Node(("m1",), ("colour",))), "no feature 'colour'"),
        (lambda: with_nodes("y"), "'y', which is no node"),
        (lambda: with_nodes("x", x=Node(("m1",)), y=Node(("m0",))), "The node 'y' feeds nothing"),
        (lambda: with_nodes("x", x=Node(("m1",), (), ("x",))), "The node 'x' feeds itself"),
        (
            lambda: with_nodes("x", x=Node(("m1",), (), ("y",)), y=Node(("m2",))),
            "'y' is given as an input of 'x'",
        ),
        (lambda: with_nodes("x", "y", x=Node(("m1",)), y=Node(("m*",))), "both stand for m1->logits"),
        (lambda: with_nodes("logits", logits=Node(("m1",))), "A node is named 'logits'"),
        (lambda: Hypothesis.from_yaml("nodes: {x: {site: m1}}"), "unknown field 'site'"),
        (lambda: Hypothesis.from_yaml("nodes: {x: {depends_on: a}}"), "'x' matches no site: it names none"),
        (lambda: Hypothesis.from_yaml("- 1"), "no mapping"),
        (lambda: Hypothesis.from_yaml("a: ["), "no YAML"),
    ],
)
def test_bad_hypotheses(gpt2: Any, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        causal_scrubbing(gpt2, hypothesis=make(), **dataset(gpt2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "0 samples"),
        ({"unimportant": "none"}, "no way 'none'"),
        ({"groups": ["a"]}, "1 groups for 24 prompts"),
        ({"within": ["colour"]}, "no feature 'colour'"),
        ({"features": {"first": [1]}}, "1 labels for 24 prompts"),
        ({"prompts": [[1, 2, 3]]}, "one prompt"),
    ],
)
def test_bad_input(gpt2: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        causal_scrubbing(gpt2, hypothesis=Hypothesis(()), **{**dataset(gpt2), **changes})


def test_refusals(gpt2: Any) -> None:
    data = dataset(gpt2)
    same = {**data, "metric": LogitDifference((3,) * 24, (4,) * 24)}
    result = causal_scrubbing(gpt2, hypothesis=Hypothesis(()), samples=1, **same)
    with pytest.raises(UnstableRatioError):
        _ = result.recovered
    assert "no recovered share" in str(result.table_view().note)
    with in_double("olmo2") as model, pytest.raises(CapabilityError, match="no edge-level graph"):
        causal_scrubbing(model, hypothesis=Hypothesis(()), **dataset(model))
