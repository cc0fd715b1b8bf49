"""Nulls: no edge has an effect of its own sign, although effects are large."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_edges import cut_each, engine_of, opened

from mech_interp import planted
from mech_interp.statistics import max_t_test, wilson

N_PAIRS = 8
NOISE = 1e-6  # nats; exact zeros are rounding errors here


REPLICATES = 40


@pytest.mark.parametrize("name", planted.models("null"))
def test_claims_are_as_rare_as_stated(name: str) -> None:
    """Replicates in which some edge has a sign-flip max-T adjusted p of at most 0.05."""
    made, _ = opened(name, 6.0)
    pairs = made.pairs(REPLICATES * N_PAIRS)
    effects = cut_each(made, engine_of(name, 6.0, pairs), pairs).effects.T.numpy()
    tests = [max_t_test(part, noise_floor=NOISE) for part in np.split(effects, REPLICATES)]
    rate = wilson(sum(bool(test.significant().any()) for test in tests), REPLICATES)
    assert rate.interval is not None
    assert rate.interval[0] <= 0.05


def test_the_same_test_finds_a_circuit_where_there_is_one() -> None:
    made, _ = opened("induction", 6.0)
    pairs = made.pairs(N_PAIRS)
    cuts = cut_each(made, engine_of("induction", 6.0, pairs), pairs)
    found = torch.tensor(max_t_test(cuts.effects.T.numpy(), noise_floor=NOISE).significant())
    assert torch.equal(found, cuts.true)


def test_shuffled_pairs_differ_as_much_as_ever() -> None:
    made, model = opened("null-shuffled-pairing", 6.0)
    pairs = made.pairs(40)
    values = []
    for tokens in (pairs.clean, pairs.corrupt):
        logits = model.forward(tokens, logits="last").logits.reshape(len(pairs), -1)  # type: ignore[attr-defined]
        row = torch.arange(len(pairs))
        values.append(logits[row, list(pairs.answer)] - logits[row, list(pairs.wrong)])
    change = values[0] - values[1]
    assert float(change.abs().min()) > 15
    assert 8 <= int((change > 0).sum()) <= 32


def test_effects_of_random_weights_are_large_and_of_both_signs() -> None:
    made, _ = opened("null-random-weights", 6.0)
    pairs = made.pairs(20)
    effects = cut_each(made, engine_of("null-random-weights", 6.0, pairs), pairs).effects
    signs = (effects > 0).double().mean(1)
    assert float(effects.abs().mean(1).median()) > 0.01
    assert float(signs.min()) > 0
    assert float(signs.max()) < 1


def test_nulls_state_no_truth() -> None:
    for name in planted.models("null"):
        made = planted.build(name)
        assert made.edges == ()
        assert made.nodes == ()
        assert len(made.truth("corrupt")) == 0
        assert made.function is None
