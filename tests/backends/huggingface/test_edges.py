"""The edge engine against an oracle that builds every reader's input writer by writer, in plain loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from edge_models import CLEAN, CORRUPT, HERE, METRIC, full, in_double
from tiny_models import randomise
from torch import Tensor

from mech_interp.backends.huggingface.edges import EdgeEngine, graph_of
from mech_interp.backends.huggingface.layouts import supported, tiny_module
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.huggingface.writers import EDGE_LEVEL, averaged, run_writers, zeroed
from mech_interp.backends.metrics import KLDivergence, Logits
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, InputError
from mech_interp.graph import CircuitGraph, Reader
from mech_interp.interventions import FromRun, Intervention, Replace
from mech_interp.sites import Site


@pytest.fixture(scope="module", params=HERE)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    with in_double(request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def engine(model: Any) -> EdgeEngine:
    return EdgeEngine(model, Tokens.from_lists(CLEAN), Tokens.from_lists(CORRUPT))


def random_masks(graph: CircuitGraph, n: int, density: float, seed: int = 0) -> Tensor:
    draw = np.random.default_rng(seed).random((n, *graph.possible.shape)) < density
    return torch.tensor(graph.possible & draw, dtype=torch.float64)


def oracle(model: Any, prompt: int, mask: Tensor, clean: Any, base: Any) -> Tensor:
    """Logits [position, vocabulary] of one circuit on one prompt; `mask` is [writer, reader]."""
    graph, layout = graph_of(model), model.layout
    ids = CLEAN[prompt]
    n = len(ids)
    positions = torch.arange(n)[None]
    live: dict[str, Tensor] = {"input": clean.embed[prompt, :n]}
    dead: dict[str, Tensor] = {"input": base.embed[prompt, :n]}
    constant = torch.zeros(n, model.info.d_model, dtype=torch.float64)
    for layer, block in enumerate(layout.blocks):
        w_o = block.weights()["W_O"]
        gain = block.weights().get("ln1_post.w", torch.ones(model.info.d_model, dtype=torch.float64))
        for head in range(graph.n_heads):
            dead[f"a{layer}.h{head}"] = base.heads[layer][prompt, :n, head] @ w_o[head] * gain
        dead[f"m{layer}"] = base.mlps[layer][prompt, :n]

    def read(reader: Reader) -> Tensor:
        column = graph.reader_index[reader]
        total = constant.clone()
        for row in range(graph.before(reader)):
            name = str(graph.writers[row])
            total += live[name] if mask[row, column] else dead[name]
        return total

    rotary = layout.rotary(constant[None], positions)
    for layer, block in enumerate(layout.blocks):
        weights = block.weights()
        keys, values = [], []
        for kv in range(graph.n_kv_heads):
            for kind, kept in (("k", keys), ("v", values)):
                x = block.norm1(read(Reader(kind, layer, kv))) @ weights[f"W_{kind.upper()}"][kv]
                bias = weights.get(f"b_{kind.upper()}")
                kept.append(x if bias is None else x + bias[kv])
        queries = []
        for head in range(graph.n_heads):
            x = block.norm1(read(Reader("q", layer, head))) @ weights["W_Q"][head]
            queries.append(x if "b_Q" not in weights else x + weights["b_Q"][head])
        q, k = block.norm_qk(torch.stack(queries, 1)[None], torch.stack(keys, 1)[None])
        if block.rotary_kind is not None:
            q, k = block.rotate(q, k, rotary)
        scale = (
            clean.scales[layer]
            if isinstance(clean.scales[layer], float)
            else clean.scales[layer][prompt, :n, 0]
        )
        for head in range(graph.n_heads):
            kv = head * graph.n_kv_heads // graph.n_heads
            scores = q[0, :, head] @ k[0, :, kv].T * block.scale
            if block.score_cap is not None:
                scores = block.score_cap * torch.tanh(scores / block.score_cap)
            distance = torch.arange(n)[:, None] - torch.arange(n)[None]
            seen = (distance >= 0) & (distance < (block.window or n + 1))
            pattern = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            gain = weights.get("ln1_post.w", torch.ones(model.info.d_model, dtype=torch.float64))
            live[f"a{layer}.h{head}"] = (pattern @ values[kv] / scale) @ weights["W_O"][head] * gain
        if "b_O" in weights and not block.parallel:
            constant = constant + weights["b_O"]
        out = block.norm2(read(Reader("mlp", layer)))
        pre, linear = block.mlp_in(out[None])
        out = block.mlp_out(block.mlp_activation(pre, linear))[0]
        live[f"m{layer}"] = out if block.post_mlp is None else block.post_mlp(out)
        if "b_O" in weights and block.parallel:
            constant = constant + weights["b_O"]
    final = read(Reader("logits"))
    return layout.softcap(layout.unembedding(layout.final_norm(final)))


def test_random_circuits_equal_the_oracle(model: Any, engine: EdgeEngine) -> None:
    masks = random_masks(engine.graph, 4, 0.6)
    found = engine.evaluate(masks, Logits((0, -1)))
    for circuit in range(len(masks)):
        for prompt in range(len(CLEAN)):
            expected = oracle(model, prompt, masks[circuit], engine.clean, engine.baseline)[[0, -1]]
            assert float((found[circuit, prompt] - expected).abs().max()) < 1e-9


def test_all_edges_are_the_model_and_none_the_corrupt_run(model: Any, engine: EdgeEngine) -> None:
    everything = full(engine.graph)
    found = engine.evaluate(torch.stack([everything, 0 * everything]), Logits())[:, :, 0]
    for tokens, row in ((CLEAN, 0), (CORRUPT, 1)):
        assert float((found[row] - model.forward(tokens, logits="last").logits).abs().max()) < 1e-9
    assert float((found[0] - found[1]).abs().max()) > 0.1


def test_one_edge_cut_is_the_direct_path_patch(model: Any, engine: EdgeEngine) -> None:
    """The reader's input with one writer's part exchanged, written by hand as an intervention."""
    graph, info = engine.graph, model.info
    writer, reader = graph.edge("m0->m2")
    mask = full(graph)
    mask[writer, reader] = 0
    found = engine.evaluate(mask[None], METRIC)[0]
    runs = {"clean": Tokens.from_lists(CLEAN), "corrupt": Tokens.from_lists(CORRUPT)}
    kinds = ["resid_pre.2"] if "resid_mid" in info.missing_kinds else ["resid_mid.2"]
    seen = {
        run: model.forward(tokens, capture=[*kinds, "mlp_out.0"]).activations for run, tokens in runs.items()
    }
    mixed = seen["clean"][kinds[0]] + seen["corrupt"]["mlp_out.0"] - seen["clean"]["mlp_out.0"]
    block = model.layout.blocks[2]
    out = block.mlp_out(block.mlp_activation(*block.mlp_in(block.norm2(mixed))))
    out = out if block.post_mlp is None else block.post_mlp(out)
    for prompt, ids in enumerate(CLEAN):
        edit = Intervention("mlp_out.2", Replace(out[prompt, : len(ids)]))
        logits = model.forward([ids], interventions=[edit], logits="last").logits[0]
        assert float(found[prompt]) == pytest.approx(
            float(logits[METRIC.correct[prompt]] - logits[METRIC.wrong[prompt]]), abs=1e-9
        )


def test_all_edges_of_a_writer_cut_are_activation_patching(model: Any, engine: EdgeEngine) -> None:
    """A head whose every edge carries the corrupt value is a head patched with it."""
    if any(block.post_attention is not None for block in model.layout.blocks):
        pytest.skip("the scale behind attention is frozen here and live there")
    graph = engine.graph
    mask = full(graph)
    mask[graph.writer("a1.h2")] = 0
    found = engine.evaluate(mask[None], METRIC)[0]
    runs = {"corrupt": Tokens.from_lists(CORRUPT)}
    edit = Intervention(Site("z", 1, 2), Replace(FromRun("corrupt")))
    logits = model.forward(CLEAN, interventions=[edit], runs=runs, logits="last").logits
    for prompt in range(len(CLEAN)):
        expected = logits[prompt, METRIC.correct[prompt]] - logits[prompt, METRIC.wrong[prompt]]
        assert float(found[prompt]) == pytest.approx(float(expected), abs=1e-9)


def test_circuits_by_position(model: Any, engine: EdgeEngine) -> None:
    """A mask that is the same at every position is the pooled one; a late cut leaves early logits alone."""
    masks = random_masks(engine.graph, 2, 0.7, seed=5)
    spread = masks[..., None].repeat(1, 1, 1, len(CLEAN[0]))
    pooled = engine.evaluate(masks, Logits((0, 2, -1)))
    assert torch.allclose(engine.evaluate(spread, Logits((0, 2, -1))), pooled, atol=1e-12)
    spread[..., 3] = 0
    cut = engine.evaluate(spread, Logits((0, 2, -1)))
    assert torch.allclose(cut[:, :, :2], pooled[:, :, :2], atol=1e-12)
    assert not torch.allclose(cut[:, :, 2], pooled[:, :, 2], atol=1e-3)


@pytest.mark.parametrize("kind", ["zero", "mean", "positional mean"])
def test_other_ablations_equal_the_oracle(model: Any, kind: str) -> None:
    tokens = Tokens.from_lists(CLEAN)
    own = run_writers(model, tokens)
    base = zeroed(own) if kind == "zero" else averaged(own, tokens.mask, positional="position" in kind)
    engine = EdgeEngine(model, tokens, base)
    masks = torch.cat([random_masks(engine.graph, 1, 0.5, seed=9), full(engine.graph)[None]])
    found = engine.evaluate(masks, Logits())
    for prompt in range(len(CLEAN)):
        expected = oracle(model, prompt, masks[0], engine.clean, base)[-1]
        assert float((found[0, prompt, 0] - expected).abs().max()) < 1e-9
    assert float((found[1, :, 0] - model.forward(CLEAN, logits="last").logits).abs().max()) < 1e-9


def test_means_are_over_real_tokens(model: Any) -> None:
    tokens = Tokens.from_lists(CLEAN)
    own = run_writers(model, tokens)
    held = torch.cat([own.mlps[1][i, : len(ids)] for i, ids in enumerate(CLEAN)])
    mean = averaged(own, tokens.mask, positional=False).mlps[1]
    assert torch.allclose(mean[0, 0], held.mean(0))
    by_position = averaged(own, tokens.mask, positional=True).mlps[1]
    assert torch.allclose(by_position[1, 2], (own.mlps[1][0, 2] + own.mlps[1][1, 2]) / 2)
    assert torch.allclose(by_position[0, 5], own.mlps[1][0, 5])


def test_batches_do_not_matter(model: Any, engine: EdgeEngine) -> None:
    masks = random_masks(engine.graph, 5, 0.5, seed=2)
    kl = KLDivergence(model.forward(CLEAN, logits="last").logits)
    whole = engine.evaluate(masks, kl)
    assert torch.allclose(engine.evaluate(masks, kl, memory_budget=1), whole, atol=1e-12)
    assert torch.allclose(engine.evaluate(masks, kl, prompts=[1])[:, 0], whole[:, 1], atol=1e-12)


def test_the_mask_gradient_is_that_of_finite_differences(engine: EdgeEngine) -> None:
    masks = 0.5 * full(engine.graph)[None]
    masks.requires_grad_()
    (gradient,) = torch.autograd.grad(engine.evaluate(masks, METRIC).sum(), masks)
    random = np.random.default_rng(1)
    edges = np.argwhere(engine.graph.possible)
    for writer, reader in edges[random.choice(len(edges), 12, replace=False)]:
        ends = []
        for step in (1e-5, -1e-5):
            moved = masks.detach().clone()
            moved[0, writer, reader] += step
            ends.append(float(engine.evaluate(moved, METRIC).sum()))
        measured = (ends[0] - ends[1]) / 2e-5
        assert float(gradient[0, writer, reader]) == pytest.approx(measured, rel=1e-4, abs=1e-7)


def test_pairs_of_unequal_length_are_refused(model: Any) -> None:
    with pytest.raises(InputError, match="Pair 1 has 4 clean and 3 corrupt tokens"):
        EdgeEngine(model, Tokens.from_lists(CLEAN), Tokens.from_lists([CORRUPT[0], [1, 2, 3]]))
    with pytest.raises(InputError, match="2 clean and 1 corrupt"):
        EdgeEngine(model, Tokens.from_lists(CLEAN), Tokens.from_lists(CORRUPT[:1]))


def test_blocks_normed_otherwise_than_the_end_are_refused() -> None:
    module = randomise(tiny_module("mech-planted", norm="layer", final_norm="none"), seed=0)
    with pytest.raises(CapabilityError, match="of different kinds"):
        EdgeEngine(open_module(module), Tokens.from_lists(CLEAN), Tokens.from_lists(CORRUPT))


@pytest.mark.parametrize("name", sorted(set(supported()) - set(EDGE_LEVEL)))
def test_unchecked_architectures_are_refused(name: str) -> None:
    model = open_module(randomise(tiny_module(name), seed=0), name=name, check=False)
    with pytest.raises(CapabilityError, match="no edge-level graph"):
        run_writers(model, Tokens.from_lists(CLEAN))
