"""The truths that planted models state, measured: exact effects of every edge, and of the circuit alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_edges import cut_each, engine_of, opened

from mech_interp import planted
from mech_interp.backends.huggingface.edge_gradients import edge_scores
from mech_interp.backends.huggingface.edge_pruning import prune_edges
from mech_interp.backends.metrics import LogitDifference
from mech_interp.errors import InputError

ZERO = ("previous-token-copy", "induction", "duplicate-token", "reverse", "proportion")
CASES = [
    (name, gap, ablation)
    for name in planted.models("circuit")
    for gap in planted.GAPS
    for ablation in (("corrupt", "zero") if name in ZERO else ("corrupt",))
]
# Soft attention leaves a little to the start of the prompt, where it rests when nothing matches; without
# that (zero ablation alone takes it away) the answer is a little surer. Everything else is exact.
LEAK = {6.0: 0.03, 50.0: 1e-6}


def n_pairs(name: str) -> int:
    return 3 if name == "ioi" else 12


@pytest.mark.parametrize("name", planted.models())
def test_every_stated_truth_is_tested_here(name: str) -> None:
    made = planted.build(name)
    expected = {ablation for case, _, ablation in CASES if case == name}
    assert set(made.truths) == ({"corrupt"} if made.kind == "gate" else expected)
    assert made.kind == "null" or made.ablation in made.truths


@pytest.mark.parametrize(("name", "gap", "ablation"), CASES)
def test_true_edges_matter_and_no_others(name: str, gap: float, ablation: str) -> None:
    made, _ = opened(name, gap)
    pairs = made.pairs(n_pairs(name), seed=7)
    cuts = cut_each(made, engine_of(name, gap, pairs, ablation), pairs, ablation)
    assert int(cuts.true.sum()) == len(made.truths[ablation])  # type: ignore[index]
    assert float(cuts.effects[cuts.true].mean(1).max()) < -1.0  # nats, each cut on its own
    assert float(cuts.effects[cuts.true].max()) < 0
    bound = LEAK[gap] if ablation == "zero" else 1e-9
    assert float(cuts.effects[~cuts.true].abs().max()) < bound


@pytest.mark.parametrize(("name", "gap", "ablation"), CASES)
def test_the_true_circuit_alone_is_the_model(name: str, gap: float, ablation: str) -> None:
    made, _ = opened(name, gap)
    pairs = made.pairs(n_pairs(name), seed=8)
    full = torch.tensor(made.graph.possible, dtype=torch.float64)
    true = torch.tensor(made.truth(ablation).edges, dtype=torch.float64)  # type: ignore[arg-type]
    masks = torch.stack([full, true, torch.zeros_like(full)])
    whole, circuit, nothing = engine_of(name, gap, pairs, ablation).evaluate(masks, pairs.metric)
    faithfulness = float((circuit.mean() - nothing.mean()) / (whole.mean() - nothing.mean()))
    assert faithfulness == pytest.approx(1.0, abs=0.005 if ablation == "zero" and gap < 10 else 1e-9)
    assert float((whole - nothing).mean()) > 7
    assert len(made.truth()) < made.graph.n_edges / 5


@pytest.mark.parametrize("name", ["reverse", "proportion"])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_acdc_with_zero_ablation_finds_the_compiled_tasks(name: str, tau: float) -> None:
    made, _ = opened(name, 6.0)
    pairs = made.pairs(8)
    loss = LogitDifference(pairs.wrong, pairs.answer)
    decisions = prune_edges(engine_of(name, 6.0, pairs, made.ablation), loss, tau)
    assert made.ablation == "zero"
    found = {made.graph.edge_name(writer, one.reader) for one in decisions for writer in one.kept}
    assert found == set(made.edges)


@pytest.mark.parametrize(("name", "gap", "ablation"), [case for case in CASES if case[2] == "corrupt"])
def test_distractors_are_there(name: str, gap: float, ablation: str) -> None:
    """Heads and MLPs beside the circuit write, differently on clean and corrupt, and even move logits."""
    made, model = opened(name, gap)
    engine = engine_of(name, gap, made.pairs(4))
    true = set(made.nodes) | {edge.partition("->")[0] for edges in made.truths.values() for edge in edges}
    others = [writer for writer in made.graph.writers if str(writer) not in true]
    assert len(others) >= made.graph.n_layers + 2
    unembed = made.module.unembed.weight
    for writer in others:
        clean, corrupt = (
            run.mlps[writer.layer] if writer.kind == "mlp" else _written(model, run, writer)
            for run in (engine.clean, engine.baseline)
        )
        assert float((clean - corrupt).norm(dim=-1).max()) > 0.2
        moved = (clean - corrupt) @ unembed.T
        assert float(moved.abs().max()) > 0.01
        assert float((moved - moved[..., :1]).abs().max()) < 1e-9  # all logits alike


def _written(model: object, run: object, writer: object) -> torch.Tensor:
    w_o = model.weights("W_O", writer.layer)[writer.head]  # type: ignore[attr-defined]
    return run.heads[writer.layer][:, :, writer.head] @ w_o  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("name", planted.models("circuit"))
def test_integrated_gradients_rank_true_edges_first_when_attention_is_soft(name: str) -> None:
    made, _ = opened(name, 6.0)
    pairs = made.pairs(n_pairs(name))
    scores = edge_scores(engine_of(name, 6.0, pairs), pairs.metric, variant="ig-inputs").mean(0).abs()
    true = made.truth("corrupt").edges
    assert float(scores[true].min()) > 1e6 * float(scores[made.graph.possible & ~true].max())


@pytest.mark.parametrize("name", ["reverse", "or-gate", "induction"])
def test_plain_attribution_is_the_derivative_along_each_edge(name: str) -> None:
    """Without norms too: the gradient of the edge engine's exact value with respect to every mask."""
    made, _ = opened(name, 6.0)
    pairs = made.pairs(3)
    full = torch.tensor(made.graph.possible, dtype=torch.float64, requires_grad=True)
    engine = engine_of(name, 6.0, pairs)
    engine.evaluate(full[None], pairs.metric).sum().backward()
    assert full.grad is not None
    found = edge_scores(engine_of(name, 6.0, pairs), pairs.metric).sum(0)
    assert torch.allclose(found, -full.grad, atol=1e-9)
    assert float(found.abs().max()) > 1


def test_basis_and_order_are_drawn_from_the_seed() -> None:
    weights = [planted.build("induction", seed=seed).module.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["embed.weight"], weights[2]["embed.weight"])
    assert len({planted.build("induction", seed=seed).edges for seed in range(6)}) > 1
    tokens = weights[0]["embed.weight"].double()
    assert torch.allclose(tokens @ tokens.T, torch.eye(len(tokens), dtype=torch.float64), atol=1e-6)
    assert float((tokens.abs() < 0.02).float().mean()) < 0.5  # no token has a coordinate of its own


def test_nodes_and_groups() -> None:
    made = planted.build("ioi")
    assert made.nodes[0] == "input"
    heads = {head for group in made.groups.values() for head in group}
    assert set(made.nodes) == {"input"} | heads
    assert sorted(made.groups) == [
        "duplicate token",
        "induction",
        "name mover",
        "previous token",
        "s-inhibition",
    ]
    assert np.array_equal(made.truth().edges, made.truth("corrupt").edges)
    with pytest.raises(InputError, match="no stated truth under zero ablation"):
        made.truth("zero")
