"""Gates behave as gates: which cuts matter depends on the end that one starts from."""

from __future__ import annotations

import pytest
import torch
from planted_edges import cut_each, engine_of, opened

from mech_interp import planted
from mech_interp.backends.huggingface.edge_pruning import prune_edges
from mech_interp.backends.metrics import LogitDifference
from mech_interp.planted import Planted


def branch_edges(made: Planted) -> list[set[str]]:
    heads = [made.groups[side][0] for side in ("left", "right")]
    return [{f"input->{head}<v>", f"{head}->m1"} for head in heads]


@pytest.mark.parametrize("gap", planted.GAPS)
@pytest.mark.parametrize(
    ("name", "ablation", "each_branch_matters"),
    [
        ("or-gate", "corrupt", False),
        ("or-gate", "swapped", True),
        ("and-gate", "corrupt", True),
        ("and-gate", "swapped", False),
    ],
)
def test_single_branches(name: str, gap: float, ablation: str, each_branch_matters: bool) -> None:
    made, _ = opened(name, gap)
    pairs = made.pairs(6)
    cuts = cut_each(made, engine_of(name, gap, pairs, ablation), pairs)
    effects = dict(zip(cuts.names, cuts.effects.abs(), strict=True))
    branches = set.union(*branch_edges(made))
    assert set(made.edges) == branches | {"m1->logits"}
    for edge in branches:
        if each_branch_matters:
            assert float(effects[edge].min()) > 14
        else:
            assert float(effects[edge].max()) < 1e-9
    assert float(effects["m1->logits"].min()) > 14
    assert max(float(effects[edge].max()) for edge in effects if edge not in made.edges) < 1e-9


@pytest.mark.parametrize("gap", planted.GAPS)
@pytest.mark.parametrize("name", planted.models("gate"))
def test_both_branches_together_are_the_whole(name: str, gap: float) -> None:
    made, _ = opened(name, gap)
    pairs = made.pairs(6)
    full = torch.tensor(made.graph.possible, dtype=torch.float64)
    true = torch.tensor(made.truth().edges, dtype=torch.float64)
    without = full.clone()
    for edge in set.union(*branch_edges(made)):
        without[made.graph.edge(edge)] = 0
    masks = torch.stack([full, true, without, 0 * full])
    values = engine_of(name, gap, pairs).evaluate(masks, pairs.metric).mean(1)
    assert values.tolist() == pytest.approx([8, 8, -8, -8], abs=1e-9)


@pytest.mark.parametrize("gap", planted.GAPS)
@pytest.mark.parametrize(
    ("name", "ablation", "branches_kept"),
    [
        ("or-gate", "corrupt", 1),
        ("or-gate", "swapped", 2),
        ("and-gate", "corrupt", 2),
        ("and-gate", "swapped", 1),
    ],
)
def test_greedy_pruning_keeps_one_branch_or_both(
    name: str, gap: float, ablation: str, branches_kept: int
) -> None:
    made, _ = opened(name, gap)
    pairs = made.pairs(6)
    swapped = ablation == "swapped"
    loss = (
        LogitDifference(pairs.answer, pairs.wrong) if swapped else LogitDifference(pairs.wrong, pairs.answer)
    )
    decisions = list(prune_edges(engine_of(name, gap, pairs, ablation), loss, 0.1))
    kept = {made.graph.edge_name(writer, one.reader) for one in decisions for writer in one.kept}
    whole = [branch for branch in branch_edges(made) if branch <= kept]
    assert len(whole) == branches_kept
    assert kept == set.union({"m1->logits"}, *whole)
