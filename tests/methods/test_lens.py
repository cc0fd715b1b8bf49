from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from mech_interp.errors import InputError
from mech_interp.methods import logit_lens
from mech_interp.methods.common import SanityError
from mech_interp.methods.lens_result import TargetReading

PROMPTS = ["The capital of France is", "Ann and Bob went to", "The old red cat ran to that city and then"]
TARGETS = [" Paris", " Rome", " home"]


def slow_lens(tiny: Any, text: str, target: str, position: int) -> list[tuple[int, float, float]]:
    """(rank, probability, cross-entropy) of every stream, by hooks on the library's modules."""
    ids = tiny.ids(text)
    token = tiny.ids(text + target)[-1]
    streams: dict[int, torch.Tensor] = {}
    edits = [tiny.edit(block, tiny.record(streams, i), "input") for i, block in enumerate(tiny.blocks)]
    edits.append(tiny.edit(tiny.final_norm, tiny.record(streams, len(edits)), "input"))
    tiny.logits(ids, *edits)
    found = []
    for i in range(len(tiny.blocks) + 1):
        with torch.no_grad():
            logits = tiny.module.lm_head(tiny.final_norm(streams[i][position])).tolist()
        order = sorted(range(len(logits)), key=lambda j: (-logits[j], j))
        weights = np.exp(np.array(logits, dtype=np.float64) - max(logits))
        probability = float(weights[token] / weights.sum())
        found.append((order.index(token) + 1, probability, -float(np.log(probability))))
    return found


@pytest.mark.parametrize("positions", [-1, [1, 3, -2]])
def test_equals_hooks_on_the_library(tiny: Any, positions: Any) -> None:
    result = logit_lens(tiny.model, PROMPTS, TARGETS, positions=positions)
    for i, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        where = positions if isinstance(positions, int) else positions[i]
        slow = slow_lens(tiny, prompt, target, where)
        assert result.target.rank[i].tolist() == [rank for rank, _, _ in slow]
        np.testing.assert_allclose(result.target.probability[i], [p for _, p, _ in slow], atol=1e-5)
        np.testing.assert_allclose(result.target.cross_entropy[i], [h for _, _, h in slow], atol=1e-5)


def test_top_tokens_are_the_most_likely(tiny: Any) -> None:
    result = logit_lens(tiny.model, PROMPTS[0], TARGETS[0], top_k=3)
    logits = tiny.logits(tiny.ids(PROMPTS[0]))[-1]
    best = logits.topk(3).indices.tolist()
    assert list(result.top_texts[0][-1]) == [tiny.model.tokenizer.decode([i]) for i in best]
    np.testing.assert_allclose(
        result.top_probability[0, -1], logits.softmax(-1)[best].double().numpy(), atol=1e-6
    )


def test_a_layer_that_writes_the_answer_is_the_crossover(make_tiny: Any) -> None:
    tiny = make_tiny("gpt2")
    target = tiny.ids("The Paris")[1]
    with torch.no_grad():
        for block in tiny.blocks:
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
        tiny.final_norm.weight.fill_(1)
        tiny.final_norm.bias.zero_()
        tiny.blocks[1].mlp.c_proj.bias.copy_(30 * tiny.embedding.weight[target])
    result = logit_lens(tiny.model, PROMPTS, " Paris")
    assert result.crossover_layers == result.decision_layers == (1, 1, 1)
    assert result.crossover_layer == result.decision_layer == 1
    assert result.control.crossover == (None, None, None)


@pytest.mark.parametrize(
    ("ranks", "crossover", "decision"),
    [
        ([3, 2, 2, 2], None, None),
        ([1, 1, 1, 1], -1, -1),
        ([2, 1, 2, 1], 0, 2),
        ([2, 1, 1, 2], 0, None),
        ([5, 4, 3, 1], 2, 2),
    ],
)
def test_crossover_and_decision(ranks: list[int], crossover: int | None, decision: int | None) -> None:
    zeros = np.zeros((1, 4))
    reading = TargetReading((0,), ("x",), np.array([ranks]), zeros, zeros)
    assert reading.crossover == (crossover,)
    assert reading.decision == (decision,)


def test_median_counts_never_as_latest(tiny: Any) -> None:
    from dataclasses import replace

    result = logit_lens(tiny.model, PROMPTS, TARGETS)
    reading = replace(result.target, rank=np.array([[2, 1, 1, 1], [2, 2, 2, 1], [2, 2, 2, 2]]))
    result = replace(result, target=reading)
    assert result.crossover_layers == (0, 2, None)
    assert result.crossover_layer == 2
    assert result.crossover_estimate.value == pytest.approx((0 + 2 + 3) / 3)
    assert replace(result, target=replace(reading, rank=np.full((3, 4), 2))).crossover_layer is None


def test_equal_logits_rank_by_token(make_tiny: Any) -> None:
    tiny = make_tiny("gpt2")
    with torch.no_grad():
        tiny.final_norm.weight.zero_()
        tiny.final_norm.bias.zero_()
    result = logit_lens(tiny.model, PROMPTS[0], 4)
    assert result.target.rank.tolist() == [[5, 5, 5, 5]]


def test_control_targets_are_other_prompts_answers(tiny: Any) -> None:
    result = logit_lens(tiny.model, PROMPTS, TARGETS)
    assert result.control_kind == "answers of other prompts"
    assert all(a != b for a, b in zip(result.control.ids, result.target.ids, strict=True))
    assert set(result.control.ids) <= set(result.target.ids)
    swapped = logit_lens(tiny.model, PROMPTS, list(result.control.ids))
    np.testing.assert_allclose(result.control.probability, swapped.target.probability, atol=1e-7)
    alone = logit_lens(tiny.model, PROMPTS[0], TARGETS[0])
    assert alone.control_kind == "random vocabulary tokens"
    assert alone.control.ids != alone.target.ids


def test_results_are_serialisable_and_drawn(tiny: Any) -> None:
    from matplotlib.figure import Figure

    result = logit_lens(tiny.model, PROMPTS * 3, TARGETS * 3, groups=[f"g{i}" for i in range(9)])
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert len(data["layers"]) == 4
    assert data["layers"][0]["layer"] == "embed"
    assert data["layers"][2]["probability"]["interval"] is not None
    assert data["prompts"][1]["target"] == " Rome"
    assert isinstance(result.plot(), Figure)
    assert len(result.views()) == 3


def test_last_layer_must_be_the_models_own(tiny: Any, delegate: Any) -> None:
    wrong = delegate(tiny.model, unembed=lambda resid, ids=None: tiny.model.unembed(resid, ids) * 1.01)
    with pytest.raises(SanityError, match="differ from the model's own"):
        logit_lens(wrong, PROMPTS[0], TARGETS[0])


def test_half_precision_runs(make_tiny: Any) -> None:
    tiny = make_tiny("llama", dtype=torch.bfloat16)
    result = logit_lens(tiny.model, PROMPTS, TARGETS)
    assert np.isfinite(result.target.cross_entropy).all()


def test_bad_input(tiny: Any) -> None:
    with pytest.raises(InputError, match=r"2 tokens here: ' Paris' \| ' Rome'"):
        logit_lens(tiny.model, PROMPTS[0], " Paris Rome")
    with pytest.raises(InputError, match="Position 9 does not exist"):
        logit_lens(tiny.model, PROMPTS[0], TARGETS[0], positions=9)
    with pytest.raises(InputError, match="2 target answers for 3 prompts"):
        logit_lens(tiny.model, PROMPTS, TARGETS[:2])
    with pytest.raises(InputError, match="top_k=0"):
        logit_lens(tiny.model, PROMPTS, TARGETS, top_k=0)
    with pytest.raises(InputError, match="outside the vocabulary"):
        logit_lens(tiny.model, PROMPTS[0], 10_000)
    with pytest.raises(InputError, match="1 groups for 3 prompts"):
        logit_lens(tiny.model, PROMPTS, TARGETS, groups=["a"])
