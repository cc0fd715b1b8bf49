"""Edge and node attribution: identities, exact effects by hand and by rows, error measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mech_interp.backends.huggingface.backward_rules import relevance_rules
from mech_interp.backends.protocol import Row
from mech_interp.errors import CapabilityError, InputError
from mech_interp.interventions import FromRun, Intervention, Replace
from mech_interp.methods.circuits.approximation import Approximation, correlation, rank_correlation
from mech_interp.methods.circuits.attribution import edge_attribution, exact_edges
from mech_interp.methods.circuits.common import CircuitTask
from mech_interp.methods.circuits.node_attribution import gradients_at, node_attribution
from mech_interp.rendering.figure import figure
from mech_interp.rendering.terminal import to_text
from mech_interp.sites import Site
from mech_interp.statistics import UnstableRatioError

MakeTask = Callable[..., CircuitTask]
QUICK: dict[str, Any] = {"check": 0, "claims": 0}


@pytest.fixture(scope="module")
def task(model: Any, make_task: MakeTask) -> CircuitTask:
    return make_task(model)


def test_edges_of_a_writer_sum_to_the_node_score(task: CircuitTask) -> None:
    """Σ over readers of EAP = AtP, to 1e-5 and here far better; nodes come from another gradient."""
    edges = edge_attribution(task, **QUICK)
    nodes = node_attribution(task, kinds=("z", "mlp_out", "resid_pre"), **QUICK)
    graph = task.graph
    sums = edges.per_edge.sum(2)
    for i, writer in enumerate(graph.writers):
        name = "resid_pre.0" if writer.kind == "input" else str(writer)
        assert np.allclose(sums[:, i], nodes.score_of(name), rtol=1e-7, atol=1e-9)
    assert float(np.abs(sums).max()) > 1e-3


def test_scores_predict_small_changes(task: CircuitTask) -> None:
    """An edge mixed one thousandth of the way moves the metric by that much of its score."""
    scores = edge_attribution(task, **QUICK)
    for item in scores.top(3):
        writer, reader = np.argwhere(task.graph.possible)[item]
        masks = np.repeat(task.graph.possible[None].astype(float), 2, 0)
        masks[:, writer, reader] += [-1e-5, 1e-5]
        ends = task.evaluate_masks(masks)
        assert np.allclose((ends[0] - ends[1]) / 2e-5, scores.scores[:, item], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_exact_effects_of_nodes_are_rows(task: CircuitTask, direction: Any) -> None:
    result = node_attribution(task, direction=direction, check=1000, check_prompts=None, claims=0)
    found = result.approximation
    assert found is not None
    assert len(found) == result.n_items
    ends = (task.clean, task.corrupt) if direction == "noising" else (task.corrupt, task.clean)
    base = task.full if direction == "noising" else task.empty
    edit = Intervention("mlp_out.1", Replace(FromRun("other")))
    runs = {"base": ends[0], "other": ends[1]}
    rows = [Row(i, (edit,)) for i in range(len(task))]
    values = np.zeros(len(task))
    for row in task.model.rows(runs, rows, task.metric):
        values[row.index] = float(row.value)
    column = result.labels.index("m1")
    assert np.allclose(found.effects[:, column], values - base, atol=1e-9)


def test_exact_effects_of_edges_into_the_logits_by_hand(task: CircuitTask) -> None:
    """An edge into the logits is cut by subtracting the writer's change from the final stream."""
    graph, model = task.graph, task.model
    name = f"resid_post.{model.info.n_layers - 1}"
    sites = [name, "mlp_out.0"]
    clean = model.forward(task.clean, capture=sites, logits="none").activations
    corrupt = model.forward(task.corrupt, capture=sites, logits="none").activations
    edge = np.array([graph.edge("m0->logits")])
    for direction, own, other, base in (
        ("noising", clean, corrupt, task.full),
        ("denoising", corrupt, clean, task.empty),
    ):
        final = own[name] + other["mlp_out.0"] - own["mlp_out.0"]
        logits = model.unembed(final[:, -1])
        rows = torch.arange(len(task))
        values = logits[rows, list(task.metric.correct)] - logits[rows, list(task.metric.wrong)]
        found = exact_edges(task, edge, direction, range(len(task)))
        assert np.allclose(found[:, 0], values.detach().numpy() - base, atol=1e-9)


def test_the_qk_fix_is_the_slope_along_the_exact_pattern(task: CircuitTask) -> None:
    """Moving the pattern a little towards the one that the patched queries make, by intervention."""
    result = node_attribution(task, kinds=("q", "k"), qk_fix=True, **QUICK)
    plain = node_attribution(task, kinds=("q", "k"), **QUICK)
    assert not np.allclose(result.scores, plain.scores, atol=1e-4)
    model, layer = task.model, 1
    site = Site("pattern", layer)
    before = model.forward(task.clean, capture=[site], logits="none").activations[site]
    for kind, heads in (("q", model.info.n_heads), ("k", model.info.n_kv_heads)):
        edit = Intervention(Site(kind, layer), Replace(FromRun("other")))
        after = model.forward(
            task.clean, capture=[site], interventions=[edit], runs={"other": task.corrupt}, logits="none"
        ).activations[site]
        shared = model.info.n_heads // heads
        for head in range(heads):
            own = slice(head * shared, (head + 1) * shared)
            ends = []
            for step in (1e-5, -1e-5):
                moved = before.clone()
                moved[:, own] += step * (after - before)[:, own]
                ends.append(with_patterns(task, site, moved))
            slope = (ends[0] - ends[1]) / 2e-5
            assert np.allclose(result.score_of(f"{kind}.{layer}.{head}"), slope, rtol=1e-4, atol=1e-7)


def with_patterns(task: CircuitTask, site: Site, patterns: torch.Tensor) -> np.ndarray:
    """The metric with a layer's patterns set, prompt by prompt."""
    values = []
    for prompt in range(len(task)):
        tokens = task.clean.select([prompt])
        edits = [
            Intervention(Site("pattern", site.layer, head), Replace(patterns[prompt, head]))
            for head in range(task.model.info.n_heads)
        ]
        logits = task.model.forward(tokens, interventions=edits, logits="last").logits[0]
        values.append(float(logits[task.metric.correct[prompt]] - logits[task.metric.wrong[prompt]]))
    return np.array(values)


def test_the_qk_fix_by_position(task: CircuitTask) -> None:
    """Queries sum over positions exactly; keys compete, and one key at a time is a softmax by hand."""
    pooled = node_attribution(task, kinds=("q", "k"), qk_fix=True, **QUICK)
    apart = node_attribution(task, kinds=("q", "k"), qk_fix=True, by_position=True, **QUICK)
    length = task.clean.lengths[0]
    total = sum(apart.score_of(f"q.1.0@{position}") for position in range(length))
    assert np.allclose(total, pooled.score_of("q.1.0"), atol=1e-9)
    position, model = 2, task.model
    runs = (task.clean, task.corrupt)
    seen = [
        model.forward(run, capture=["rot_k.1" if "rot_k" in model.info.site_kinds else "k.1"], logits="none")
        for run in runs
    ]
    keys = [next(iter(one.activations.values())) for one in seen]
    query_kind = "rot_q.1" if "rot_q" in model.info.site_kinds else "q.1"
    query = model.forward(task.clean, capture=[query_kind], logits="none").activations[query_kind]
    _, gradients = gradients_at(task, task.clean, [Site("pattern", 1)], list(range(len(task))))
    shared = model.info.n_heads // model.info.n_kv_heads
    expected = np.zeros(len(task))
    for head in range(shared):  # the query heads of key head 0
        patterns = []
        mixed = keys[0][:, :, 0].clone()
        mixed[:, position] = keys[1][:, position, 0]
        for key in (keys[0][:, :, 0], mixed):
            scores = query[:, :, head] @ key.mT * model.layout.blocks[1].scale
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            patterns.append(torch.softmax(scores.masked_fill(hidden, -torch.inf), -1))
        change = (patterns[1] - patterns[0]) * gradients[Site("pattern", 1)][:, head]
        expected += change.sum((1, 2)).detach().numpy()
    assert np.allclose(apart.score_of(f"k.1.0@{position}"), expected, rtol=1e-7, atol=1e-10)


def test_relevance_rules_keep_values_and_leave_no_trace(task: CircuitTask) -> None:
    before = task.model.forward(task.clean, logits="last").logits
    plain = node_attribution(task, **QUICK).scores
    with relevance_rules(task.model):
        inside = task.model.forward(task.clean, logits="last").logits
    assert torch.allclose(inside, before, atol=1e-10)
    found = node_attribution(task, rules="relp", **QUICK)
    assert found.method == "relp"
    assert not np.allclose(found.scores, plain, atol=1e-4)
    assert np.array_equal(node_attribution(task, **QUICK).scores, plain)


def test_relevance_rules_on_the_last_mlp_by_hand(task: CircuitTask) -> None:
    """The stream before the last MLP, its gradient written out with constants for scales and slopes."""
    model = task.model
    layout, last = model.layout, model.info.n_layers - 1
    block, weights = layout.blocks[last], layout.blocks[last].weights()
    kind = "resid_pre" if block.parallel else "resid_mid"
    if block.parallel:
        pytest.skip("attention reads the same stream")
    captured = [f"{kind}.{last}", f"resid_post.{last}", f"mlp_pre.{last}", f"mlp_post.{last}"]
    seen = model.forward(task.clean, capture=captured, logits="none").activations
    mid, final = seen[captured[0]][:, -1], seen[captured[1]][:, -1]
    pre, post = seen[captured[2]][:, -1], seen[captured[3]][:, -1]

    def backward(y: torch.Tensor, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        y = y * gain
        if layout.norm == "layer":
            y = y - y.mean(-1, keepdim=True)
            x = x - x.mean(-1, keepdim=True)
        return y / (x.pow(2).mean(-1, keepdim=True) + layout.norm_eps).sqrt()

    w_u = layout.unembedding.weight.detach()
    direction = w_u[list(task.metric.correct)] - w_u[list(task.metric.wrong)]
    at_end = backward(direction, final, layout.weights()["ln_final.w"].detach())
    into = at_end @ weights["W_out"].detach().T  # at the hidden activation
    if "W_gate" in weights:
        linear = model.forward(task.clean, capture=[f"mlp_pre_linear.{last}"], logits="none").activations
        gate = linear[f"mlp_pre_linear.{last}"][:, -1]
        parts = 0.5 * (into * post / pre) @ weights["W_gate"].detach().T
        parts = parts + 0.5 * (into * post / gate) @ weights["W_in"].detach().T
    else:
        parts = (into * post / pre) @ weights["W_in"].detach().T
    gradient = at_end + backward(parts, mid, weights["ln2.w"].detach())
    with relevance_rules(model):
        _, found = gradients_at(task, task.clean, [Site(kind, last)], list(range(len(task))))
    assert torch.allclose(found[Site(kind, last)][:, -1], gradient.detach(), rtol=1e-6, atol=1e-9)


def test_batches_do_not_matter(task: CircuitTask) -> None:
    whole = edge_attribution(task, **QUICK)
    small = edge_attribution(task, memory_budget=1, **QUICK)
    assert small.at_once == 1 < whole.at_once
    assert np.allclose(whole.scores, small.scores, atol=1e-12)
    nodes = node_attribution(task, **QUICK)
    assert np.allclose(nodes.scores, node_attribution(task, memory_budget=1, **QUICK).scores, atol=1e-12)


def test_the_error_of_the_scores_is_reported(task: CircuitTask) -> None:
    result = edge_attribution(task, check=20, claims=4, seed=3)
    found = result.approximation
    assert found is not None
    assert len(found) == 20
    assert len(set(found.items)) == 20
    places = np.argwhere(task.graph.possible)[found.items]
    assert np.allclose(found.effects, exact_edges(task, places, "noising", found.prompts), atol=1e-12)
    assert np.allclose(found.scores, result.scores[:, found.items])
    expected = np.corrcoef(found.estimated, found.exact)[0, 1]
    assert found.pearson.value == pytest.approx(expected)
    assert found.slope == pytest.approx(np.polyfit(found.estimated, found.exact, 1)[0])
    assert found.mean_absolute_error.value == pytest.approx(np.abs(found.estimated - found.exact).mean())
    again = edge_attribution(task, check=20, claims=4, seed=3)
    assert (again.approximation.items == found.items).all()
    other = edge_attribution(task, check=20, claims=0, seed=4).approximation
    assert (other.items != found.items).any()


def test_correlations_of_ties_and_constants() -> None:
    left, right = np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 4.0, 9.0, 100.0])
    assert rank_correlation(left, right) == pytest.approx(1.0)
    assert rank_correlation(np.array([1.0, 1.0, 2.0]), np.array([3.0, 1.0, 5.0])) == pytest.approx(0.8660254)
    assert np.isnan(correlation(left, np.ones(4)))
    rounded = 5 + 1e-6 * left
    assert np.isnan(correlation(left, rounded))
    assert np.isnan(rank_correlation(left, rounded))
    flat = Approximation(np.arange(3), (0,), np.zeros((1, 3)), np.zeros((1, 3)))
    assert flat.pearson.interval is None
    assert "all equal" in flat.pearson.reason
    assert flat.to_dict()["slope"] is None
    assert flat.to_dict()["pearson"]["value"] is None


def test_denoising_is_noising_with_the_runs_exchanged(task: CircuitTask) -> None:
    found = edge_attribution(task, direction="denoising", check=15, claims=3)
    other = edge_attribution(task.exchanged, check=15, claims=3)
    assert np.allclose(found.scores, other.scores, atol=1e-10)
    assert np.allclose(found.approximation.effects, other.approximation.effects, atol=1e-10)
    assert np.abs(found.claims.effects).max() > 1e-3
    with pytest.raises(InputError, match="Denoising patches into the corrupt run"):
        edge_attribution(replace(task, ablation="zero"), direction="denoising")


def test_claims_are_chosen_and_tested_on_different_groups(task: CircuitTask) -> None:
    result = edge_attribution(task, check=0, claims=5)
    claims = result.claims
    assert claims is not None
    assert claims.effects.shape == (5, 5)
    others = [i for i in range(len(task)) if i not in claims.prompts]
    assert {task.groups[i] for i in others}.isdisjoint(claims.groups)
    order = np.argsort(-np.abs(result.scores[others].mean(0)), kind="stable")[:5]
    assert (claims.items == order).all()
    places = np.argwhere(task.graph.possible)[claims.items]
    assert np.allclose(claims.effects, exact_edges(task, places, "noising", claims.prompts), atol=1e-12)
    assert claims.test.smallest_p == 2 / 2**5
    assert claims.estimates.at(0).interval is None  # five groups are too few


def test_null_claims_are_rare(gpt2: Any, make_task: MakeTask) -> None:
    """Effects of random sign: about one family in twenty may show a claim."""
    found = 0
    generator = np.random.default_rng(0)
    task = make_task(gpt2, 24)
    from mech_interp.methods.circuits.attribution import make_claims

    for seed in range(200):
        scores = generator.normal(size=(24, 30))

        def exact(items: Any, prompts: Any, scores: np.ndarray = scores) -> np.ndarray:
            return scores[np.ix_(list(prompts), list(items))]

        claims = make_claims(task, scores, exact, 8, seed)
        found += bool(claims.discovered)
    assert found / 200 <= 0.1


def test_weak_prompts_are_flagged_and_vanishing_differences_refused(gpt2: Any, make_task: MakeTask) -> None:
    task = make_task(gpt2)
    same = task.corrupt.ids.clone()
    same[3] = task.clean.ids[3]
    weak = replace(task, corrupt=type(task.corrupt)(same, task.corrupt.lengths))
    assert 3 in edge_attribution(weak, **QUICK).weak_prompts
    none = replace(task, corrupt=task.clean)
    for run in (edge_attribution, node_attribution):
        with pytest.raises(UnstableRatioError, match="do not differ in logit_difference"):
            run(none, **QUICK)


def test_other_ablations(gpt2: Any, make_task: MakeTask) -> None:
    for ablation in ("zero", "mean", "positional-mean"):
        task = make_task(gpt2, 40, ablation=ablation)
        result = edge_attribution(task, check=10, claims=0)
        everything = np.zeros((2, *task.graph.possible.shape))
        everything[0] = task.graph.possible
        ends = task.evaluate_masks(everything)
        assert np.allclose(ends, [task.full, task.empty], atol=1e-9)
        assert result.ablation == ablation
    with pytest.raises(InputError, match="Did you mean mean"):
        make_task(gpt2, ablation="means")
    with pytest.raises(InputError, match="patched with the corrupt run"):
        node_attribution(make_task(gpt2, ablation="zero"))


def test_choices_are_checked(gpt2: Any, make_task: MakeTask) -> None:
    task = make_task(gpt2)
    with pytest.raises(InputError, match="no variant 'eap-ig'"):
        edge_attribution(task, variant="eap-ig")
    with pytest.raises(InputError, match="no direction"):
        node_attribution(task, direction="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="kind 'zz'"):
        node_attribution(task, kinds=("zz",))
    with pytest.raises(InputError, match="groups for"):
        replace(task, groups=("a",))

    class Other:
        info = task.model.info

    with pytest.raises(CapabilityError, match="no edge-level graph"):
        _ = replace(task, model=Other()).engine


def test_results_read_and_draw(task: CircuitTask) -> None:
    import json

    for result in (edge_attribution(task, check=12, claims=3), node_attribution(task, check=12, claims=3)):
        data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert data["n"] == 10
        assert len(data["claims"]) == 3
        for view in result.views():
            assert result.label(result.top(1)[0]) in to_text(result.view(), 120)
            figure(view)
