"""Edge attribution against the mask gradient of the exact engine, and its known identities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from edge_models import CLEAN, CORRUPT, HERE, METRIC, full, in_double
from torch import Tensor

from mech_interp.backends.huggingface.backward_rules import relevance_rules
from mech_interp.backends.huggingface.edge_gradients import edge_scores
from mech_interp.backends.huggingface.edges import EdgeEngine
from mech_interp.backends.metrics import KLDivergence
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError


@pytest.fixture(scope="module", params=HERE)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    with in_double(request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def engine(model: Any) -> EdgeEngine:
    return EdgeEngine(model, Tokens.from_lists(CLEAN), Tokens.from_lists(CORRUPT))


def mask_gradient(engine: EdgeEngine, level: float, prompt: int) -> Tensor:
    """d metric / d mask with every mask at `level`, [writer, reader]."""
    masks = (level * full(engine.graph))[None].requires_grad_()
    (found,) = torch.autograd.grad(engine.evaluate(masks, METRIC, prompts=[prompt]).sum(), masks)
    return found[0] * full(engine.graph)


def test_scores_are_the_mask_gradient(engine: EdgeEngine) -> None:
    """With all masks at 1, the derivative towards 0 is the score of noising (Miller et al. 2024)."""
    found = edge_scores(engine, METRIC)
    for prompt in range(len(CLEAN)):
        expected = -mask_gradient(engine, 1.0, prompt)
        assert torch.allclose(found[prompt], expected, rtol=1e-6, atol=1e-9)
    assert float(found.abs().max()) > 1e-3


@pytest.mark.parametrize("variant", ["eap", "ig-inputs", "ig-activations"])
def test_relevance_scores_are_the_mask_gradient_under_the_rules(
    model: Any, engine: EdgeEngine, variant: Any
) -> None:
    """The exact engine differentiated through held norms and secants; one step of IG is the clean run."""
    found = edge_scores(engine, METRIC, variant=variant, steps=1, rules="relp")
    with relevance_rules(model):
        for prompt in range(len(CLEAN)):
            expected = -mask_gradient(engine, 1.0, prompt)
            assert torch.allclose(found[prompt], expected, rtol=1e-6, atol=1e-9)
    plain = edge_scores(engine, METRIC, variant=variant, steps=1)
    assert float((found - plain).abs().max()) > 1e-3 * float(plain.abs().max())


def test_relevance_scores_are_the_same_when_the_runs_are_not_known_yet(
    model: Any, engine: EdgeEngine
) -> None:
    fresh = EdgeEngine(model, Tokens.from_lists(CLEAN), Tokens.from_lists(CORRUPT))
    _ = engine.clean
    expected = edge_scores(engine, METRIC, rules="relp")
    assert torch.allclose(edge_scores(fresh, METRIC, rules="relp"), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", ["eap", "ig-inputs", "ig-activations", "clean-corrupt"])
@pytest.mark.parametrize("rules", ["none", "relp"])
def test_positions_sum_to_the_pooled_scores(engine: EdgeEngine, variant: Any, rules: Any) -> None:
    pooled = edge_scores(engine, METRIC, variant=variant, steps=2, rules=rules)
    found = edge_scores(engine, METRIC, variant=variant, steps=2, rules=rules, by_position=True)
    assert torch.allclose(found.sum(1), pooled, rtol=1e-9, atol=1e-12)


def test_scores_by_position_are_the_gradient_of_masks_by_position(model: Any, engine: EdgeEngine) -> None:
    fresh = EdgeEngine(model, Tokens.from_lists(CLEAN), Tokens.from_lists(CORRUPT))
    for known in (engine, fresh):  # the second begins behind the common first token
        found = edge_scores(known, METRIC, by_position=True)
        for prompt in range(len(CLEAN)):
            masks = full(engine.graph)[None, :, :, None].repeat(1, 1, 1, found.shape[1]).requires_grad_()
            (slope,) = torch.autograd.grad(engine.evaluate(masks, METRIC, prompts=[prompt]).sum(), masks)
            expected = -(slope[0] * full(engine.graph)[..., None]).permute(2, 0, 1)
            assert torch.allclose(found[prompt], expected, rtol=1e-6, atol=1e-9)


class Several:
    """A metric of several positions, two of which are the same one in the shorter prompt."""

    positions = (1, -1, 3)

    def token_ids(self, prompts: Sequence[int]) -> Tensor:
        return torch.tensor([[7, 9]] * len(prompts))

    def __call__(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        weights = torch.tensor([1.0, 2.0, 3.0], dtype=logits.dtype)
        return (logits[:, :, 0] * weights).sum(1) - logits[:, 1, 1]


def test_metrics_may_read_several_positions(model: Any) -> None:
    engine = EdgeEngine(model, Tokens.from_lists(CLEAN), Tokens.from_lists(CORRUPT))
    found, everything = edge_scores(engine, Several()), full(engine.graph)
    for prompt in range(len(CLEAN)):
        masks = everything[None].clone().requires_grad_()
        (slope,) = torch.autograd.grad(engine.evaluate(masks, Several(), prompts=[prompt]).sum(), masks)
        assert torch.allclose(found[prompt], -slope[0] * everything, rtol=1e-6, atol=1e-9)


def test_common_beginnings_are_left_out_exactly(model: Any) -> None:
    """Prompts alike up to position 3: a pass over the rest equals one that knows both runs in full."""
    pairs = [[5, 17, 3, 88, 41, 9], [2, 60, 33, 7, 1]], [[5, 17, 3, 12, 41, 9], [2, 60, 33, 8, 1]]
    clean, corrupt = (Tokens.from_lists(one) for one in pairs)
    found = edge_scores(EdgeEngine(model, clean, corrupt), METRIC)
    knowing = EdgeEngine(model, clean, corrupt)
    _ = knowing.clean, knowing.baseline
    assert torch.allclose(found, edge_scores(knowing, METRIC), rtol=1e-7, atol=1e-10)
    some = edge_scores(EdgeEngine(model, clean, corrupt), METRIC, prompts=[1])
    assert torch.allclose(some[0], found[1], rtol=1e-7, atol=1e-10)


def test_few_changes_in_flight_make_no_difference(
    engine: EdgeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = edge_scores(engine, METRIC)
    monkeypatch.setattr("mech_interp.backends.huggingface.edge_contraction.IN_FLIGHT", 1)
    assert torch.allclose(edge_scores(engine, METRIC), whole, rtol=1e-9, atol=1e-12)


def test_denoising_is_noising_with_the_runs_exchanged(model: Any, engine: EdgeEngine) -> None:
    if any(block.post_attention is not None for block in model.layout.blocks):
        pytest.skip("each engine holds the scales of its own clean run")
    exchanged = EdgeEngine(model, Tokens.from_lists(CORRUPT), Tokens.from_lists(CLEAN))
    found = edge_scores(engine, METRIC, direction="denoising")
    assert torch.allclose(found, edge_scores(exchanged, METRIC), rtol=1e-9, atol=1e-12)


def test_edges_of_a_writer_sum_to_its_node_score(model: Any, engine: EdgeEngine) -> None:
    """The sum over readers is the first-order effect of patching the writer as a whole."""
    scores = edge_scores(engine, METRIC)
    result = model.forward(CLEAN, capture=[f"mlp_out.{i}" for i in range(3)], grad=True, logits="last")
    rows = torch.arange(len(CLEAN))
    value = (result.logits[rows, list(METRIC.correct)] - result.logits[rows, list(METRIC.wrong)]).sum()
    sites = [f"mlp_out.{i}" for i in range(3)]
    gradients = torch.autograd.grad(value, [result.activations[site] for site in sites])
    if any(block.post_attention is not None for block in model.layout.blocks):
        gradients, sites = gradients[2:], sites[2:]  # earlier ones pass through scales that are held here
    for site, gradient in zip(sites, gradients, strict=True):
        layer = int(site[-1])
        change = engine.baseline.mlps[layer] - engine.clean.mlps[layer]
        for prompt, ids in enumerate(CLEAN):
            n = len(ids)
            expected = float((change[prompt, :n] * gradient[prompt, :n]).sum())
            total = float(scores[prompt, engine.graph.writer(f"m{layer}")].sum())
            assert total == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_edges_into_the_logits_sum_to_the_direct_effect(model: Any, engine: EdgeEngine) -> None:
    scores = edge_scores(engine, METRIC)
    last = f"resid_post.{model.info.n_layers - 1}"
    result = model.forward(CLEAN, capture=[last], grad=True, logits="last")
    rows = torch.arange(len(CLEAN))
    value = (result.logits[rows, list(METRIC.correct)] - result.logits[rows, list(METRIC.wrong)]).sum()
    (gradient,) = torch.autograd.grad(value, [result.activations[last]])
    other = model.forward(CORRUPT, capture=[last], logits="none").activations[last]
    for prompt, ids in enumerate(CLEAN):
        at = len(ids) - 1
        change = other[prompt, at] - result.activations[last][prompt, at]
        expected = float(change.detach() @ gradient[prompt, at])
        assert float(scores[prompt, :, -1].sum()) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_all_edges_sum_to_the_slope_of_a_common_mask(engine: EdgeEngine) -> None:
    """With every mask equal to 1 - t, the slope at t = 0 is the sum over all edges."""
    total = edge_scores(engine, METRIC).sum((1, 2))
    everything = full(engine.graph)
    steps = torch.stack([everything * (1 - t) for t in (1e-5, -1e-5)])
    ends = engine.evaluate(steps, METRIC)
    assert torch.allclose((ends[0] - ends[1]) / 2e-5, total, rtol=1e-5, atol=1e-7)


def test_integrated_inputs_average_over_the_embeddings(engine: EdgeEngine) -> None:
    """Each point is the plain score of an engine whose clean embedding lies on the way."""
    if any(block.post_attention is not None for block in engine.model.layout.blocks):
        pytest.skip("the scale behind attention is that of the clean run at every point")
    from dataclasses import replace

    parts = []
    plain = edge_scores(engine, METRIC, variant="ig-inputs", steps=1)
    assert torch.allclose(plain, edge_scores(engine, METRIC), atol=1e-12)
    low, high = engine.baseline.embed, engine.clean.embed
    for k in (1, 2, 3):
        moved = EdgeEngine(engine.model, Tokens.from_lists(CLEAN), Tokens.from_lists(CORRUPT))
        moved.baseline = replace(moved.baseline, embed=low + k / 3 * (high - low))
        parts.append(gradient_at(moved))
    change = changes(engine)
    expected = torch.stack([contract(change, part) for part in parts]).mean(0)
    found = edge_scores(engine, METRIC, variant="ig-inputs", steps=3)[:, :, -1]
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-10)


def gradient_at(engine: EdgeEngine) -> Tensor:
    """d metric / d final stream for a run that starts from the baseline's embedding."""
    from mech_interp.interventions import Intervention, Replace

    rows = []
    last = f"resid_post.{engine.model.info.n_layers - 1}"
    for prompt, ids in enumerate(CLEAN):
        value = engine.baseline.embed[prompt, : len(ids)].clone().requires_grad_()
        edit = Intervention("resid_pre.0", Replace(value))
        result = engine.model.forward([ids], capture=[last], interventions=[edit], grad=True, logits="last")
        metric = result.logits[0, METRIC.correct[prompt]] - result.logits[0, METRIC.wrong[prompt]]
        (gradient,) = torch.autograd.grad(metric, [result.activations[last]])
        rows.append(torch.nn.functional.pad(gradient[0], (0, 0, 0, len(CLEAN[0]) - len(ids))))
    return torch.stack(rows)


def changes(engine: EdgeEngine) -> Tensor:
    """What every writer changes by, written out, [prompt, writer, position, d_model]."""
    found = [engine.baseline.embed - engine.clean.embed]
    for layer, block in enumerate(engine.model.layout.blocks):
        w_o = block.weights()["W_O"]
        for head in range(engine.graph.n_heads):
            gap = engine.baseline.heads[layer][:, :, head] - engine.clean.heads[layer][:, :, head]
            found.append(gap @ w_o[head])
        if engine.graph.mlps:
            found.append(engine.baseline.mlps[layer] - engine.clean.mlps[layer])
    return torch.stack(found, 1)


def contract(change: Tensor, gradient: Tensor) -> Tensor:
    return (change * gradient[:, None]).sum((2, 3))


def test_integrated_activations_of_the_last_group(engine: EdgeEngine) -> None:
    """For the last MLP only the logits follow: its average gradient is that along its own output."""
    found = edge_scores(engine, METRIC, variant="ig-activations", steps=4)
    assert found.shape == (len(CLEAN), *engine.graph.possible.shape)
    assert not bool(found[:, ~torch.tensor(engine.graph.possible)].any())
    layout, writer = engine.model.layout, engine.graph.writer("m2")
    last = engine.model.forward(CLEAN, capture=["resid_post.2"], logits="none").activations["resid_post.2"]
    for prompt, ids in enumerate(CLEAN):
        at = len(ids) - 1
        change = (engine.baseline.mlps[2] - engine.clean.mlps[2])[prompt, at]
        total = 0.0
        for k in range(1, 5):
            x = (last[prompt, at] + (1 - k / 4) * change).detach().requires_grad_()
            logits = layout.softcap(layout.unembedding(layout.final_norm(x)))
            (logits[METRIC.correct[prompt]] - logits[METRIC.wrong[prompt]]).backward()
            total += float(change @ x.grad) / 4
        assert float(found[prompt, writer, -1]) == pytest.approx(total, rel=1e-7, abs=1e-10)


def test_integrated_activations_with_one_step_are_the_plain_scores(engine: EdgeEngine) -> None:
    one = edge_scores(engine, METRIC, variant="ig-activations", steps=1)
    assert torch.allclose(one, edge_scores(engine, METRIC), rtol=1e-7, atol=1e-10)


def test_clean_and_corrupt_ends_are_averaged(engine: EdgeEngine) -> None:
    if any(block.post_attention is not None for block in engine.model.layout.blocks):
        pytest.skip("denoising at the corrupt run uses the clean run's scale")
    both = edge_scores(engine, METRIC, variant="clean-corrupt")
    noising = edge_scores(engine, METRIC)
    denoising = edge_scores(engine, METRIC, direction="denoising")
    assert torch.allclose(both, (noising - denoising) / 2, rtol=1e-7, atol=1e-10)


def test_some_prompts_are_the_same_as_all(engine: EdgeEngine) -> None:
    whole = edge_scores(engine, METRIC)
    assert torch.allclose(edge_scores(engine, METRIC, prompts=[1])[0], whole[1], atol=1e-12)


def test_the_divergence_from_the_clean_run_has_no_gradient_there(model: Any, engine: EdgeEngine) -> None:
    kl = KLDivergence(model.forward(CLEAN, logits="last").logits)
    with pytest.raises(InputError, match="use variant ig-inputs"):
        edge_scores(engine, kl)
    assert float(edge_scores(engine, kl, variant="ig-inputs", steps=3).abs().max()) > 1e-6
