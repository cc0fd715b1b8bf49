"""Readings of two models compared: what differs is found, where it lies, and by how much."""

from __future__ import annotations

import math

import pytest
import torch
from other_backends import Altered
from tiny_models import opened

from mech_interp.backends.tokens import Tokens
from mech_interp.methods import parity
from mech_interp.methods.parity import bound_for, compare, divergence, kl_bound_for, read, relative_gap
from mech_interp.sites import Site

PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8, 7]]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_model_beside_itself_differs_nowhere(name: str) -> None:
    model = opened(name)
    reading = read(model, PROMPTS)
    found = compare(reading, read(model, PROMPTS))
    assert {one.kind for one in found.sites} == set(model.info.site_kinds)
    assert all(one.gap == 0 for one in found.sites)
    assert all(one.n == (1 if one.layer is None else model.info.n_layers) for one in found.sites)
    assert found.kl == 0
    assert found.tokens_equal
    assert found.continuations_equal
    assert [len(ids) for ids in reading.continuations] == [parity.NEW_TOKENS] * 3


@pytest.mark.parametrize(("kind", "layer"), [("q", 0), ("mlp_post", 1), ("pattern", 2), ("ln_final", None)])
def test_a_site_that_is_off_is_found_with_its_layer_and_size(kind: str, layer: int | None) -> None:
    model = opened("gpt2")
    other = Altered(model, "other", Site(kind, layer), 1.001)
    found = compare(read(model, PROMPTS), read(other, PROMPTS))
    off = [one for one in found.sites if one.gap > 0]
    assert [(one.kind, one.layer) for one in off] == [(kind, layer)]
    assert off[0].gap == pytest.approx(1e-3, rel=1e-3)


def test_columns_past_a_prompt_and_keys_not_seen_do_not_count() -> None:
    model = opened("gpt2")
    tokens = Tokens.from_lists([[1, 2], [1, 2, 3]])
    site = Site("attn_scores", 0)
    scores = model.forward(tokens, capture=[site]).activations[site].clone()
    kept = parity.real_values(scores, site, tokens, model.info)
    unseen = ~torch.ones(3, 3, dtype=torch.bool).tril()
    scores[:, :, unseen] = -1e30
    scores[0, :, 2] = 77.0
    assert kept.shape == (5, model.info.n_heads, 3)
    assert torch.equal(kept, parity.real_values(scores, site, tokens, model.info))
    scores[0, :, 1, 0] += 1.0
    assert not torch.equal(kept, parity.real_values(scores, site, tokens, model.info))


def test_another_next_token_distribution_is_measured_in_nats() -> None:
    wanted = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).double()
    found = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]).double()
    expected = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert divergence(wanted.log(), found.log()) == pytest.approx(expected)
    assert divergence(wanted.log(), wanted.log()) == 0
    assert divergence(wanted.log(), (wanted * float("nan")).log()) == math.inf


def test_what_cannot_be_compared_is_infinitely_off() -> None:
    one = torch.tensor([1.0, 2.0])
    assert relative_gap(one, torch.tensor([1.0, 2.5])) == 0.25
    assert relative_gap(one, torch.tensor([1.0, float("nan")])) == math.inf
    assert relative_gap(one, torch.ones(3)) == math.inf
    assert relative_gap(torch.zeros(2), torch.full((2,), 1e-3)) == pytest.approx(1e-3)


def test_other_tokens_make_everything_differ() -> None:
    model = opened("gpt2")
    found = compare(read(model, PROMPTS), read(model, [[6], *PROMPTS[1:]]))
    assert not found.tokens_equal
    assert found.kl == math.inf
    assert all(one.gap == math.inf for one in found.sites)


def test_a_kind_that_the_other_does_not_show_is_named() -> None:
    model = opened("llama")
    other = Altered(model, "other")
    kinds = model.info.site_kinds - {"rot_q"}
    other.info = type(other.info)(
        **{**vars(other.info), "site_kinds": kinds, "missing_kinds": {"rot_q": "it is hidden"}}
    )
    found = compare(read(model, PROMPTS), read(other, PROMPTS))
    assert found.not_shown == {"rot_q": "it is hidden"}
    assert "rot_q" not in {one.kind for one in found.sites}


def test_narrow_formats_have_wider_bounds() -> None:
    assert bound_for("float32", 1e-4) == bound_for("float64", 1e-4) == 1e-4
    assert bound_for("bfloat16", 1e-3) > bound_for("float16", 1e-3) > 1e-3
    assert kl_bound_for("float32") == 1e-6
    assert kl_bound_for("bfloat16") > 1e-6
