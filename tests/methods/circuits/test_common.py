"""Batches that shrink when memory runs out, and the task's own refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mech_interp.errors import OutOfMemoryError
from mech_interp.methods.circuits.common import CircuitTask, chosen_prompts, circuit_task, shrinking
from mech_interp.methods.common import SanityError

MakeTask = Callable[..., CircuitTask]


def test_batches_halve_when_memory_runs_out() -> None:
    tried: list[int] = []

    def run(part: Sequence[int]) -> list[int]:
        tried.append(len(part))
        if len(part) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return list(part)

    seen: list[tuple[int, int]] = []
    parts, size = shrinking(range(8), 8, run, lambda done, total: seen.append((done, total)))
    assert [i for part in parts for i in part] == list(range(8))
    assert (tried, size) == ([8, 4, 2, 2, 2, 2], 2)
    assert seen[-1] == (8, 8)


def test_one_item_that_does_not_fit_is_said_and_other_errors_pass() -> None:
    def full(part: Sequence[int]) -> None:
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match="Not even one item"):
        shrinking(range(4), 4, full)

    def broken(part: Sequence[int]) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        shrinking(range(4), 4, broken)


def test_circuits_run_on_after_memory_ran_out(
    gpt2: Any, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(gpt2)
    masks = np.repeat(task.graph.possible[None], 3, 0)
    masks[1:, 0] = False
    expected = task.evaluate_masks(masks)
    plain, budgets = task.engine.evaluate, []

    def evaluate(*args: Any, memory_budget: int, **options: Any) -> Any:
        budgets.append(memory_budget)
        if memory_budget > 1 << 28:
            raise MemoryError
        return plain(*args, memory_budget=memory_budget, **options)

    monkeypatch.setattr(task.engine, "evaluate", evaluate)
    assert np.array_equal(task.evaluate_masks(masks, memory_budget=1 << 30), expected)
    assert budgets == [1 << 30, 1 << 29, 1 << 28]


def test_prompts_are_drawn_in_order_and_by_seed() -> None:
    assert chosen_prompts(5, None, 0) == chosen_prompts(5, 9, 0) == [0, 1, 2, 3, 4]
    some = chosen_prompts(50, 10, 1)
    assert some == sorted(set(some)) == chosen_prompts(50, 10, 1)
    assert some != chosen_prompts(50, 10, 2)


def test_a_metric_that_is_no_number_voids_the_call(gpt2: Any, make_task: MakeTask) -> None:
    task = make_task(gpt2)
    masks = np.full((1, *task.graph.possible.shape), np.nan)
    with pytest.raises(SanityError, match="not a number"):
        task.evaluate_masks(masks)


def test_a_task_from_text_pairs() -> None:
    """The metric and groups of the pairs, on both ends."""
    from mech_interp.backends.loading import load_model
    from mech_interp.datasets.tasks import task as make_pairs

    model = load_model("tinyworld")
    pairs = make_pairs("ioi", model.tokenizer, n=3, split="train")
    task = circuit_task(model, pairs)
    assert task.groups == tuple(pair.group for pair in pairs)
    assert task.name == "ioi"
    assert task.metric_name == "logit_difference"
    for tokens, found in ((task.clean, task.full), (task.corrupt, task.empty)):
        logits = model.forward(tokens, logits="last").logits
        expected = [
            float(logits[i, task.metric.correct[i]] - logits[i, task.metric.wrong[i]]) for i in range(3)
        ]
        assert found == pytest.approx(expected, abs=1e-4)
