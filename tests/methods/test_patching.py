from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mech_interp.backends.metrics import LogitDifference
from mech_interp.backends.protocol import RowResult
from mech_interp.datasets.pairs import PromptPair, TaskSet
from mech_interp.errors import InputError
from mech_interp.methods import activation_patching
from mech_interp.methods.common import SanityError
from mech_interp.methods.paired import donors
from mech_interp.statistics import UnstableRatioError

Pairs = list[PromptPair]
LENGTH = 10
EVERYWHERE = list(range(LENGTH))


def place(tiny: Any, kind: str, layer: int) -> tuple[Any, str]:
    """The library's module, and its side, where a kind of activation can be seen and set."""
    if kind == "resid_pre":
        return tiny.blocks[layer], "input"
    if kind == "z":
        return tiny.part(layer, "attention_out"), "input"
    return tiny.part(layer, "mlp" if kind == "mlp_out" else "attention"), "output"


def slow_patch(
    tiny: Any, into: str, source: str, kind: str, layer: int, columns: list[int], features: slice
) -> Tensor:
    """Last-token logits of `into` with `source`'s activation, by hooks, one full run each."""
    module, side = place(tiny, kind, layer)
    seen: dict[str, Tensor] = {}
    tiny.logits(tiny.ids(source), tiny.edit(module, tiny.record(seen, "x"), side))

    def put(x: Tensor) -> None:
        for column in columns:
            x[column, features] = seen["x"][column, features]

    return tiny.logits(tiny.ids(into), tiny.edit(module, put, side))[-1]


def difference(tiny: Any, pair: PromptPair, logits: Tensor) -> float:
    correct, wrong = (tiny.ids(pair.clean + text)[-1] for text in (pair.answer, pair.wrong))
    return float(logits[correct] - logits[wrong])


def ends(pair: PromptPair, direction: str) -> tuple[str, str]:
    clean, corrupt = pair.clean, str(pair.corrupt)
    return (corrupt, clean) if direction == "denoising" else (clean, corrupt)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", ["resid_pre", "z", "mlp_out", "attn_out"])
def test_equals_hooks_on_the_library(tiny: Any, pairs: Pairs, kind: str, direction: Any) -> None:
    some = pairs[:3]
    result = activation_patching(tiny.model, some, kind=kind, direction=direction, normalise=False)
    assert result.shape == ((3, 4) if kind == "z" else (3, LENGTH))
    for i, pair in enumerate(some):
        into, source = ends(pair, direction)
        base = difference(tiny, pair, tiny.logits(tiny.ids(into))[-1])
        assert result.base[i] == pytest.approx(base, abs=1e-5)
        for layer in range(3):
            for second in range(result.shape[1]):
                columns = EVERYWHERE if kind == "z" else [second]
                features = slice(8 * second, 8 * second + 8) if kind == "z" else slice(None)
                logits = slow_patch(tiny, into, source, kind, layer, columns, features)
                expected = difference(tiny, pair, logits) - base
                assert result.effects[i, layer, second] == pytest.approx(expected, abs=2e-5)


def test_normalised_effect_is_a_ratio_of_means(tiny: Any, more_pairs: Callable[..., Pairs]) -> None:
    pairs = separated(tiny, more_pairs(40, seed=1))
    raw = activation_patching(tiny.model, pairs, kind="z", normalise=False)
    shares = activation_patching(tiny.model, pairs, kind="z")
    mean = (raw.other - raw.base).mean()
    np.testing.assert_allclose(shares.effects, raw.effects / mean, rtol=1e-9)
    np.testing.assert_allclose(shares.estimates.value, raw.differences.mean(0) / mean, rtol=1e-9)
    own = (raw.other - raw.base) / mean
    assert shares.weak_pairs == [i for i in range(len(pairs)) if own[i] < 0.25]
    assert shares.weak_pairs


def separated(tiny: Any, pairs: Pairs) -> Pairs:
    """Pairs turned so that the clean run prefers the answer more than the corrupt one does."""
    turned = []
    for pair in pairs:
        clean, corrupt = (tiny.logits(tiny.ids(str(text)))[-1] for text in (pair.clean, pair.corrupt))
        if difference(tiny, pair, clean) < difference(tiny, pair, corrupt):
            pair = replace(pair, answer=pair.wrong, wrong=pair.answer, answers=(), wrongs=())
        turned.append(pair)
    return turned


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_whole_input_restores_everything(tiny: Any, pairs: Pairs, direction: Any) -> None:
    result = activation_patching(
        tiny.model,
        separated(tiny, pairs),
        sites=["resid_pre.0", "blocks.2.attn.hook_z[1]"],
        direction=direction,
    )
    np.testing.assert_allclose(result.effect_of(site="blocks.0.hook_resid_pre").mean(), 1, atol=1e-5)
    np.testing.assert_allclose(result.differences[:, 0], result.denominators, atol=1e-5)
    assert result.sanity["restore_all"] <= 1e-5
    assert result.sanity["self_patch"] <= 1e-5


def only_head(tiny: Any, layer: int, head: int, gain: float) -> None:
    """Silence everything but one head's output."""
    with torch.no_grad():
        for i, block in enumerate(tiny.blocks):
            part = slice(8 * head, 8 * head + 8)
            keep = block.attn.c_proj.weight[part].clone()
            for linear in (block.attn.c_proj, block.mlp.c_proj):
                linear.weight.zero_()
                linear.bias.zero_()
            if i == layer:
                block.attn.c_proj.weight[part] = gain * keep


def test_a_single_working_head_carries_the_whole_effect(make_tiny: Any, more_pairs: Any) -> None:
    tiny = make_tiny("gpt2")
    only_head(tiny, 1, 2, 8.0)
    pairs = separated(tiny, more_pairs(48))
    result = activation_patching(tiny.model, pairs, kind="z", positions=["last"])
    expected = np.zeros((3, 4))
    expected[1, 2] = 1
    np.testing.assert_allclose(result.estimates.value, expected, atol=1e-5)
    assert result.top_site is not None
    assert result.top_site.site == (1, 2)
    assert result.top_site.estimate.value == pytest.approx(1, abs=1e-5)
    assert result.test.adjusted_p[1, 2] <= 0.01
    assert (result.test.adjusted_p < 0.05).sum() == 1
    control = result.control_estimates
    assert control is not None
    assert abs(control.value[1, 2]) < 0.7


def test_random_weights_and_answers_show_no_significant_head(make_tiny: Any, more_pairs: Any) -> None:
    """Under the null, P(any adjusted p <= 0.05) is at most 0.05 a run; 3 or more of 10 has p < 0.012."""
    false_alarms = 0
    models = [make_tiny("gpt2", seed=seed) for seed in range(2)]
    for seed in range(10):
        tiny = models[seed % 2]
        pairs = more_pairs(10, seed=100 + seed)
        result = activation_patching(tiny.model, pairs, kind="z", normalise=False, control_cells=0)
        false_alarms += bool((result.test.adjusted_p <= 0.05).any())
    assert false_alarms <= 2


def test_control_patches_from_an_unrelated_pair(tiny: Any, pairs: Pairs) -> None:
    some = pairs[:4]
    result = activation_patching(tiny.model, some, kind="z", normalise=False, control_cells=None)
    for i, donor in enumerate(result.donors):
        assert donor is not None
        assert some[donor].group != some[i].group
        into = str(some[i].corrupt)
        base = difference(tiny, some[i], tiny.logits(tiny.ids(into))[-1])
        logits = slow_patch(tiny, into, some[donor].clean, "z", 1, EVERYWHERE, slice(16, 24))
        expected = difference(tiny, some[i], logits) - base
        assert result.control_effects[i, 1, 2] == pytest.approx(expected, abs=2e-5)


def test_only_the_largest_cells_get_a_control(tiny: Any, pairs: Pairs) -> None:
    result = activation_patching(tiny.model, pairs, kind="z", normalise=False, control_cells=3)
    measured = ~np.isnan(result.control_effects).any(0)
    means = np.abs(result.effects.mean(0))
    assert measured.sum() == 3
    assert means[measured].min() >= means[~measured].max()


def test_donors_need_equal_length_and_another_group(pairs: Pairs) -> None:
    items = [replace(pairs[0], group="a"), replace(pairs[1], group="a"), replace(pairs[2], group="b")]
    assert donors(items, [9, 9, 9], 0) == [2, 2, 0] or donors(items, [9, 9, 9], 0) == [2, 2, 1]
    assert donors(items, [9, 9, 8], 0) == [None, None, None]


def test_without_partners_there_is_no_control(tiny: Any, pairs: Pairs) -> None:
    result = activation_patching(tiny.model, pairs[:1], kind="z", normalise=False)
    assert result.control_estimates is None
    assert result.table()[0]["control"] is None
    assert result.top_site is None


@pytest.mark.parametrize("metric", ["probability", "probability_difference", "kl"])
def test_metrics_by_name(tiny: Any, pairs: Pairs, metric: str) -> None:
    some = [replace(pair, answers=(pair.answer, " home")) for pair in pairs[:2]]
    result = activation_patching(tiny.model, some, sites=["z.1.2"], metric=metric, normalise=False)
    for i, pair in enumerate(some):
        runs = [tiny.logits(tiny.ids(str(text)))[-1] for text in (pair.clean, pair.corrupt)]
        patched = slow_patch(tiny, str(pair.corrupt), pair.clean, "z", 1, EVERYWHERE, slice(16, 24))
        answer, wrong, home = (tiny.ids("a" + text)[-1] for text in (pair.answer, pair.wrong, " home"))

        def value(logits: Tensor, clean: Tensor = runs[0], ids: Any = (answer, wrong, home)) -> float:
            p, reference = logits.double().softmax(-1), clean.double().softmax(-1)
            if metric == "probability":
                return float(p[ids[0]])
            if metric == "probability_difference":
                return float(p[ids[0]] + p[ids[2]] - p[ids[1]])
            return float((reference * (reference / p).log()).sum())

        assert result.base[i] == pytest.approx(value(runs[1]), abs=1e-5)
        assert result.other[i] == pytest.approx(value(runs[0]), abs=1e-5)
        assert result.effects[i, 0] == pytest.approx(value(patched) - value(runs[1]), abs=1e-5)


def test_a_task_brings_its_metric_and_a_metric_may_be_given(tiny: Any, pairs: Pairs) -> None:
    task = TaskSet("names", tuple(pairs[:2]), metric="probability_difference")
    assert activation_patching(tiny.model, task, sites=["z.1.2"], normalise=False).metric == task.metric
    ids = [[tiny.ids(pair.clean + text)[-1] for pair in pairs[:2]] for text in (" Ann", " Bob")]
    own = LogitDifference(tuple(ids[0]), tuple(ids[1]), position=-2)
    result = activation_patching(tiny.model, pairs[:2], sites=["resid_pre.0"], metric=own, normalise=False)
    logits = tiny.logits(tiny.ids(pairs[0].clean))[-2]
    assert result.metric == "LogitDifference"
    assert result.other[0] == pytest.approx(float(logits[ids[0][0]] - logits[ids[1][0]]), abs=1e-5)


def test_axes_left_out_are_patched_jointly(tiny: Any, pairs: Pairs) -> None:
    some = pairs[:2]
    whole = activation_patching(tiny.model, some, kind="z", by=("layer",), normalise=False)
    assert whole.shape == (3,)
    two = activation_patching(tiny.model, some, kind="z", by=("layer",), heads=[0, 3], normalise=False)
    for i, pair in enumerate(some):
        base = difference(tiny, pair, tiny.logits(tiny.ids(str(pair.corrupt)))[-1])
        args = (tiny, str(pair.corrupt), pair.clean, "z", 1, EVERYWHERE)
        assert whole.effects[i, 1] == pytest.approx(
            difference(tiny, pair, slow_patch(*args, slice(None))) - base, abs=2e-5
        )
        ends_only = torch.tensor([*range(8), *range(24, 32)])
        assert two.effects[i, 1] == pytest.approx(
            difference(tiny, pair, slow_patch(*args, ends_only)) - base,
            abs=2e-5,  # type: ignore[arg-type]
        )


def test_positions_by_name_from_the_end_and_by_function(tiny: Any, pairs: Pairs) -> None:
    some = [*pairs[:2], shifted(pairs[2])]
    options: dict[str, Any] = {"kind": "resid_pre", "layers": [0, 1], "normalise": False}
    named = activation_patching(
        tiny.model, some, positions=["subject", "subject_first", "subject_last", "last", -2], **options
    )
    assert named.labels[1] == ("subject", "subject_first", "subject_last", "last", "-2")
    start = [2, 2, 3]
    by_function = activation_patching(
        tiny.model,
        some,
        positions=lambda pair, tokens: {"it": [start[some.index(pair)], start[some.index(pair)] + 1]},
        **options,
    )
    np.testing.assert_allclose(named.effects[:, :, 0], by_function.effects[:, :, 0], atol=1e-5)
    for i, pair in enumerate(some):
        base = difference(tiny, pair, tiny.logits(tiny.ids(str(pair.corrupt)))[-1])
        for label, columns in (
            ("subject", [start[i], start[i] + 1]),
            ("subject_first", [start[i]]),
            ("subject_last", [start[i] + 1]),
        ):
            args = (tiny, str(pair.corrupt), pair.clean, "resid_pre", 1, columns, slice(None))
            expected = difference(tiny, pair, slow_patch(*args)) - base
            assert named.effect_of(layer=1, position=label)[i] == pytest.approx(expected, abs=2e-5)


def shifted(pair: PromptPair) -> PromptPair:
    """The same pair one word longer, so that lengths differ between pairs."""
    move = {name: (low + 5, high + 5) for name, (low, high) in pair.spans.items()}
    other = {name: (low + 5, high + 5) for name, (low, high) in pair.corrupt_spans.items()}
    return replace(
        pair, clean="then " + pair.clean, corrupt=f"then {pair.corrupt}", spans=move, corrupt_spans=other
    )


@pytest.mark.parametrize("kind", ["pattern", "attn_scores", "k", "mlp_post"])
@pytest.mark.parametrize("budget", [None, 20_000])
def test_ragged_pairs_at_every_shape_of_site(tiny: Any, pairs: Pairs, kind: str, budget: int | None) -> None:
    """Lengths that differ between pairs, and chunks of any size, leave each pair's effects as they are."""
    some = [shifted(pairs[0]), pairs[1], shifted(pairs[2]), pairs[3]]
    options: dict[str, Any] = {"kind": kind, "by": ("layer",), "normalise": False, "control_cells": 0}
    result = activation_patching(tiny.model, some, memory_budget=budget, **options)
    for i, pair in enumerate(some):
        alone = activation_patching(tiny.model, [pair], **options)
        np.testing.assert_allclose(result.effects[i], alone.effects[0], atol=1e-5)
    assert np.abs(result.effects).max() > 1e-2


def test_indistinguishable_prompts_are_refused_before_the_sweep(
    tiny: Any, pairs: Pairs, delegate: Any
) -> None:
    asked: list[int] = []

    def rows(runs: Any, rows: Any, metric: Any, **options: Any) -> Any:
        asked.append(len(rows))
        return tiny.model.rows(runs, rows, metric, **options)

    # Each pair beside its mirror image: the mean difference is zero.
    both = [*pairs, *(replace(p, answer=p.wrong, wrong=p.answer, answers=(), wrongs=()) for p in pairs)]
    with pytest.raises(UnstableRatioError, match="three standard errors"):
        activation_patching(delegate(tiny.model, rows=rows), both, kind="z")
    assert asked == [2 * len(both)]


def test_wrong_rows_void_the_call(tiny: Any, pairs: Pairs, delegate: Any) -> None:
    def off(runs: Any, rows: Any, metric: Any, **options: Any) -> Any:
        for result in tiny.model.rows(runs, rows, metric, **options):
            edited = bool(rows[result.index].interventions)
            yield RowResult(result.index, result.value + (0.01 if edited else 0), True)

    with pytest.raises(SanityError, match=r"Patching resid_pre\.0 everywhere missed"):
        activation_patching(delegate(tiny.model, rows=off), pairs, kind="z", normalise=False)


def test_results_are_serialisable_and_drawn(tiny: Any, pairs: Pairs) -> None:
    from matplotlib.figure import Figure

    calls: list[tuple[int, int]] = []
    result = activation_patching(
        tiny.model, pairs, normalise=False, progress=lambda done, total: calls.append((done, total))
    )
    assert calls[-1] == (12 * 3 * LENGTH, 12 * 3 * LENGTH)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert len(data["cells"]) == 3 * LENGTH
    assert data["cells"][1]["position"].startswith("1 ")
    assert data["top_site"]["chosen_on"] == 6
    assert isinstance(result.plot(), Figure)
    bars = activation_patching(tiny.model, pairs, sites=["z.0.1", "z.1.1"], normalise=False)
    assert bars.view().to_dict()["kind"] == "bars"
    assert bars.table_view().to_dict()["kind"] == "table"
    cube = activation_patching(
        tiny.model, pairs[:2], kind="z", by=("layer", "position", "head"), normalise=False
    )
    assert cube.shape == (3, LENGTH, 4)
    assert len(cube.view().to_dict()["row_labels"]) == 3 * LENGTH


def test_bad_input(tiny: Any, pairs: Pairs) -> None:
    def refused(message: str, items: Any = None, **options: Any) -> None:
        with pytest.raises(InputError, match=message):
            activation_patching(tiny.model, pairs[:2] if items is None else items, **options)

    longer = replace(pairs[0], corrupt=f"{pairs[0].corrupt} book", corrupt_spans={})
    refused("clean prompt has 10 tokens and its corrupt one 11", [longer])
    refused("has no corrupt prompt", [replace(pairs[0], corrupt=None, corrupt_spans={})])
    refused("There are no prompt pairs", [])
    refused("There is no direction 'forwards'", direction="forwards")
    refused("There is no metric 'logit_diff'", metric="logit_diff")
    refused("There is no site kind 'residual'", kind="residual")
    refused("does not fit resid_pre", by=("layer", "head"))
    refused("names layer 3, and there are 3", layers=[3])
    refused("names head 4, and there are 4", kind="z", heads=[4])
    refused("resid_pre has no heads", heads=[0])
    refused("has no position named 'subjet'", positions=["subjet"])
    refused("Position -12 does not exist", positions=[-12])
    refused("do not align", [pairs[0], shifted(pairs[1])])
    refused("No sites were given", sites=[])
    refused("without a layer axis needs one layer", by=("position",))
