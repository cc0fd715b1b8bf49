"""Path patching against the three passes written with plain interventions, and against the edge engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from edge_models import CLEAN, CORRUPT, HERE, METRIC, in_double
from torch import Tensor

from mech_interp.backends.huggingface.edges import EdgeEngine
from mech_interp.backends.metrics import KLDivergence, LogitDifference
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, InputError
from mech_interp.graph import CircuitGraph, Reader, Writer
from mech_interp.interventions import Freeze, FromRun, Intervention, Replace
from mech_interp.methods.circuits import path_sweep
from mech_interp.methods.circuits.common import CircuitTask
from mech_interp.methods.circuits.paths import path_patching
from mech_interp.methods.common import SanityError
from mech_interp.sites import Site
from mech_interp.statistics import UnstableRatioError
from mech_interp.views import HeatMap, Table, view_from_dict

# Three passes need no edges: architectures that the edge engine refuses are followed too.
OTHERS = ("gptj", "olmo2", "bloom", "mixtral")
RAW: dict[str, Any] = {"normalise": False, "control_cells": 0}


def task_of(model: Any, **changes: Any) -> CircuitTask:
    task = CircuitTask(
        model,
        Tokens.from_lists(CLEAN),
        Tokens.from_lists(CORRUPT),
        METRIC,
        ("one", "two"),
        "logit_difference",
    )
    return replace(task, **changes)


@pytest.fixture(scope="module", params=HERE)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    with in_double(request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def gpt2() -> Iterator[Any]:
    with in_double("gpt2") as opened:
        yield opened


def difference(logits: Tensor, prompt: int) -> float:
    return float(logits[METRIC.correct[prompt]] - logits[METRIC.wrong[prompt]])


def slow_three_pass(
    model: Any,
    prompt: int,
    sender: str,
    receivers: list[str],
    columns: list[int] | None,
    ends: list[list[list[int]]],
) -> float:
    """Wang et al. 2023 with plain interventions on one prompt: freeze, record, replace."""
    ids, other = ends[0][prompt], ends[1][prompt]
    runs = {"base": Tokens.from_lists([ids]), "other": Tokens.from_lists([other])}
    graph = graph_of(model)
    writer = graph.writers[graph.writer(sender)]
    readers = [graph.readers[graph.reader(name)] for name in receivers]
    heads = range(model.info.n_heads)
    edits = []
    for layer in range(model.info.n_layers):
        frozen = [head for head in heads if Writer("head", layer, head) != writer]
        edits.append(Intervention(Site("z", layer), Freeze("base"), heads=frozen))
    site = Site("resid_pre", 0)
    if writer.kind == "head":
        site = Site("z", writer.layer, writer.head)
    elif writer.kind == "mlp":
        site = Site("mlp_out", writer.layer)
    edits.append(Intervention(site, Replace(FromRun("other")), positions=columns))
    kinds = {"mlp": "mlp_out", "logits": "resid_post"}
    places = [
        Site(kinds.get(r.kind, r.kind), model.info.n_layers - 1 if r.kind == "logits" else r.layer)
        for r in readers
    ]
    seen = model.forward([ids], interventions=edits, runs=runs, capture=places, logits="none").activations
    last = []
    for reader, place in zip(readers, places, strict=True):
        if writer_after(graph, writer, reader):
            continue
        value = seen[place][0] if reader.head < 0 else seen[place][0, :, reader.head]
        head = None if reader.head < 0 else [reader.head]
        last.append(Intervention(place, Replace(value[: len(ids)]), heads=head))
    return difference(model.forward([ids], interventions=last, logits="last").logits[0], prompt)


def graph_of(model: Any) -> CircuitGraph:
    info = model.info
    parallel, mlps = "resid_mid" in info.missing_kinds, "mlp_out" in info.site_kinds
    return CircuitGraph(info.n_layers, info.n_heads, info.n_kv_heads, parallel and mlps, mlps)


def writer_after(graph: CircuitGraph, writer: Writer, reader: Reader) -> bool:
    return not graph.possible[graph.writer_index[writer], graph.reader_index[reader]]


def some_names(model: Any) -> tuple[list[str], list[str]]:
    senders = ["input", "a0.h1", "a1.h0", "a1.h3"]
    receivers = ["a1.h1<q>", "a2.h0<q>", "a2.h1<k>", "a1.h1<v>", "logits"]
    if "mlp_out" in model.info.site_kinds:
        return [*senders, "m0"], [*receivers, "m1", "m2"]
    return senders, receivers


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_three_passes_equal_plain_interventions(model: Any, direction: Any) -> None:
    senders, receivers = some_names(model)
    result = path_patching(task_of(model), receivers, senders, direction=direction, **RAW)
    check_three_pass(model, result, senders, receivers, direction)


@pytest.mark.parametrize("name", OTHERS)
def test_three_passes_on_architectures_without_edges(name: str) -> None:
    with in_double(name) as model:
        senders, receivers = some_names(model)
        receivers = [r for r in receivers if r.endswith("<q>") or "<" not in r]
        result = path_patching(task_of(model), receivers, senders, **RAW)
        check_three_pass(model, result, senders, receivers, "noising")
        with pytest.raises(CapabilityError, match="no edge-level graph"):
            path_patching(task_of(model), receivers, senders, variant="direct_edge")


def check_three_pass(
    model: Any, result: Any, senders: list[str], receivers: list[str], direction: str
) -> None:
    ends = [CLEAN, CORRUPT] if direction == "noising" else [CORRUPT, CLEAN]
    graph = graph_of(model)
    moved = 0
    for prompt in range(len(CLEAN)):
        base = difference(model.forward([ends[0][prompt]], logits="last").logits[0], prompt)
        assert result.base[prompt] == pytest.approx(base, abs=1e-9)
        for s, sender in enumerate(senders):
            for r, receiver in enumerate(receivers):
                found = result.differences[prompt, s, r]
                if not graph.possible[graph.writer(sender), graph.reader(receiver)]:
                    assert np.isnan(found)
                    continue
                expected = slow_three_pass(model, prompt, sender, [receiver], None, ends) - base
                assert found == pytest.approx(expected, abs=1e-9)
                moved += abs(expected) > 1e-4
    assert moved > 20


def engine_cut(
    model: Any, edges: list[tuple[str, str]], columns: list[int] | None = None, swap: bool = False
) -> Tensor:
    """Metric of the circuit without these edges, less that of the whole, [prompt]."""
    ends = [Tokens.from_lists(CLEAN), Tokens.from_lists(CORRUPT)]
    engine = EdgeEngine(model, *(ends[::-1] if swap else ends))
    graph = engine.graph
    mask = torch.tensor(graph.possible, dtype=torch.float64)[..., None].repeat(1, 1, len(CLEAN[0]))
    whole = mask.clone()
    for sender, receiver in edges:
        at = slice(None) if columns is None else columns
        mask[graph.writer(sender), graph.reader(receiver), at] = 0
    found = engine.evaluate(torch.stack([mask, whole]), METRIC)
    return found[0] - found[1]


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_direct_edges_equal_the_edge_engine(model: Any, direction: Any) -> None:
    senders, receivers = some_names(model)
    result = path_patching(
        task_of(model), receivers, senders, variant="direct_edge", direction=direction, **RAW
    )
    graph = graph_of(model)
    for s, sender in enumerate(senders):
        for r, receiver in enumerate(receivers):
            if not graph.possible[graph.writer(sender), graph.reader(receiver)]:
                assert np.isnan(result.differences[:, s, r]).all()
                continue
            expected = engine_cut(model, [(sender, receiver)], swap=direction == "denoising")
            assert result.differences[:, s, r] == pytest.approx(expected.numpy(), abs=1e-9)
    assert (np.abs(result.differences[:, result.possible]) > 1e-4).mean() > 0.3


def test_the_variants_differ_where_an_mlp_carries_the_message(gpt2: Any) -> None:
    task = task_of(gpt2)
    three, direct = (
        path_patching(task, ["logits", "m0"], ["a0.h1"], variant=variant, **RAW).differences
        for variant in ("three_pass", "direct_edge")
    )
    assert np.abs(three[..., 0] - direct[..., 0]).min() > 1e-3
    # Nothing lies between a head and the MLP of its own layer.
    assert three[..., 1] == pytest.approx(direct[..., 1], abs=1e-9)


@pytest.mark.parametrize("variant", ["three_pass", "direct_edge"])
def test_positions(model: Any, variant: Any) -> None:
    senders, receivers = ["a0.h1", "input"], ["a1.h1<q>", "a1.h0<k>", "logits"]
    result = path_patching(task_of(model), receivers, senders, variant=variant, positions=[1, -1], **RAW)
    assert result.positions == ("1", "-1")
    for p, position in enumerate((1, -1)):
        for s, sender in enumerate(senders):
            for r, receiver in enumerate(receivers):
                for prompt, ids in enumerate(CLEAN):
                    columns = [position % len(ids)]
                    if variant == "direct_edge":
                        expected = float(engine_cut(model, [(sender, receiver)], columns)[prompt])
                    else:
                        slow = slow_three_pass(model, prompt, sender, [receiver], columns, [CLEAN, CORRUPT])
                        expected = slow - result.base[prompt]
                    assert result.differences[prompt, s, r, p] == pytest.approx(expected, abs=1e-9)
    assert isinstance(result.view(), HeatMap)


def test_named_positions_may_differ_by_prompt(gpt2: Any) -> None:
    split = path_patching(task_of(gpt2), ["a2.h0<v>"], ["a0.h1"], positions=[1, 3], **RAW)
    named = path_patching(task_of(gpt2), ["a2.h0<v>"], ["a0.h1"], positions={"x": [(1,), (3,)]}, **RAW)
    assert named.positions == ("x",)
    assert named.differences[0, 0, 0, 0] == pytest.approx(split.differences[0, 0, 0, 0], abs=1e-12)
    assert named.differences[1, 0, 0, 0] == pytest.approx(split.differences[1, 0, 0, 1], abs=1e-12)


def test_receivers_in_groups(model: Any) -> None:
    members = ["a1.h1<q>", "a2.h0<q>", "a2.h1<v>"]
    three = path_patching(task_of(model), {"three": members}, ["a0.h1"], **RAW)
    direct = path_patching(task_of(model), {"three": members}, ["a0.h1"], variant="direct_edge", **RAW)
    edges = [("a0.h1", one) for one in members]
    assert direct.differences[:, 0, 0] == pytest.approx(engine_cut(model, edges).numpy(), abs=1e-9)
    for prompt in range(len(CLEAN)):
        slow = slow_three_pass(model, prompt, "a0.h1", members, None, [CLEAN, CORRUPT])
        assert three.differences[prompt, 0, 0] == pytest.approx(slow - three.base[prompt], abs=1e-9)
    assert three.members == (tuple(members),)


def test_batches_and_blocks_do_not_matter(gpt2: Any) -> None:
    receivers = ["a2.h0<q>", "m2", "logits"]
    for variant in ("three_pass", "direct_edge"):
        options: dict[str, Any] = {"variant": variant, **RAW}
        whole = path_patching(task_of(gpt2), receivers, "all", **options)
        steps: list[int] = []
        options |= {"memory_budget": 1, "progress": lambda done, total, seen=steps: seen.append(done / total)}
        small = path_patching(task_of(gpt2), receivers, "all", **options)
        np.testing.assert_allclose(small.differences, whole.differences, atol=1e-10)
        assert len(steps) > 10
        assert steps[-1] == 1


def test_a_metric_over_the_vocabulary(gpt2: Any) -> None:
    kl = KLDivergence(gpt2.forward(CLEAN, logits="last").logits)
    result = path_patching(
        task_of(gpt2, metric=kl, metric_name="kl"), ["logits", "a2.h1<q>"], ["a1.h0"], **RAW
    )
    assert result.base == pytest.approx([0, 0], abs=1e-9)
    assert (result.differences > 0).all()


def wide_task(model: Any, n: int = 12) -> CircuitTask:
    generator = torch.Generator().manual_seed(5)
    clean = torch.randint(1, 97, (n, 6), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 1] = torch.randint(1, 97, (n,), generator=generator)
    logits = [model.forward(ids, logits="last").logits for ids in (clean.tolist(), corrupt.tolist())]
    change = logits[0] - logits[1]
    metric = LogitDifference(tuple(change.argmax(1).tolist()), tuple(change.argmin(1).tolist()))
    groups = tuple(f"g{i}" for i in range(n))
    return CircuitTask(
        model,
        Tokens.from_lists(clean.tolist()),
        Tokens.from_lists(corrupt.tolist()),
        metric,
        groups,
        "logit_difference",
    )


def test_the_result(gpt2: Any) -> None:
    result = path_patching(wide_task(gpt2), ["a2.h0<q>", "logits"], control_cells=4)
    mean = (result.other - result.base).mean()
    np.testing.assert_allclose(result.effects, result.differences / mean)
    assert result.sanity.keys() == {"self_patch", "everything"}
    assert result.control_estimates is not None
    assert int((~np.isnan(result.control_differences)).any(0).sum()) == 4
    best = result.top(1)[0]
    assert abs(result.estimates.value[best]) == np.nanmax(np.abs(result.estimates.value))
    name = result.label(best)
    sender, receiver = name.split(" to ")
    np.testing.assert_array_equal(result.effect_of(sender, receiver), result.effects[(slice(None), *best)])
    assert result.top_path is not None
    assert result.possible[result.top_path.site]
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert told["definition"].startswith("three passes (Wang et al. 2023)")
    assert len(told["cells"]) == int(result.possible.sum()) == 12 + 8
    view, table = result.views()
    assert isinstance(view, HeatMap)
    assert isinstance(table, Table)
    assert view_from_dict(view.to_dict()) == view
    assert "Wang" in view.note
    layers = path_patching(wide_task(gpt2), ["logits"], variant="direct_edge", control_cells=0).view()
    assert isinstance(layers, HeatMap)
    assert (len(layers.row_labels), len(layers.column_labels)) == (3, 4)
    with pytest.raises(InputError, match=r"no sender 'a9\.h9'"):
        result.effect_of("a9.h9", "logits")


def test_an_unrelated_pair_is_what_the_control_carries(gpt2: Any) -> None:
    task = wide_task(gpt2)
    result = path_patching(task, ["a2.h0<q>"], ["a0.h1"], normalise=False, control_cells=None, seed=3)
    from mech_interp.methods.circuits.paths import _donors

    chosen = [i for i in _donors(task, None, 3) if i is not None]
    assert all(i != donor for i, donor in enumerate(chosen))
    swapped = replace(task, corrupt=task.corrupt.select(chosen))
    expected = path_patching(swapped, ["a2.h0<q>"], ["a0.h1"], **RAW)
    np.testing.assert_allclose(result.control_differences, expected.differences, atol=1e-12)


def test_a_wrong_record_is_noticed(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The identities of every call fail when what is put in is not what was recorded."""
    right = path_sweep.SetRecorded.apply
    monkeypatch.setattr(
        path_sweep.SetRecorded, "apply", lambda self, live, context: 1.1 * right(self, live, context)
    )
    with pytest.raises(SanityError, match="self_patch"):
        path_patching(task_of(gpt2), ["a2.h0<v>"], ["a0.h1"], **RAW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"receivers": ["a9.h0<q>"]}, "no reader 'a9.h0<q>'"),
        ({"senders": ["a0.h9"]}, "no writer 'a0.h9'"),
        ({"senders": "mlps"}, "no senders 'mlps'"),
        ({"senders": ["a2.h0"], "receivers": ["a1.h0<q>"]}, "No sender comes before the receiver a1.h0<q>"),
        ({"receivers": []}, "no senders or no receivers"),
        ({"variant": "direct"}, "no variant 'direct'"),
        ({"direction": "up"}, "no direction 'up'"),
        ({"positions": "all"}, "do not line up"),
        ({"positions": "last"}, "no positions 'last'"),
        ({"positions": [5]}, "Position 5 does not exist in prompt 1"),
        ({"positions": {"x": [(1,)]}}, "not given for all 2"),
        ({"receivers": {"both": ["logits", "a2.h0<q>"]}}, "name the logits beside others"),
    ],
)
def test_bad_input(gpt2: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        path_patching(task_of(gpt2), **{"receivers": ["logits"], **RAW, **options})


def test_refusals(gpt2: Any) -> None:
    with pytest.raises(InputError, match="ablates by zero"):
        path_patching(task_of(gpt2, ablation="zero"))
    with pytest.raises(UnstableRatioError):
        path_patching(task_of(gpt2, corrupt=Tokens.from_lists(CLEAN)))
    with pytest.raises(InputError, match="Pair 1 has 4 clean and 3 corrupt tokens"):
        path_patching(task_of(gpt2, corrupt=Tokens.from_lists([CORRUPT[0], [1, 2, 3]])))
