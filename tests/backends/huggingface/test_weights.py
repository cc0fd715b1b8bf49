"""`weights`, `unembed` and `final_norm_direction`: a model rebuilt by hand from what they give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import hf_gpt2, hf_llama, in_float64, largest_gap
from torch import Tensor

from mech_interp.backends.huggingface.opening import open_module
from mech_interp.errors import InputError
from mech_interp.sites import KINDS, Site

IDS = [[4, 50, 7, 31, 7, 96]]


@pytest.fixture(scope="module", params=["gpt2", "llama", "llama with biases"])
def rebuilt(request: pytest.FixtureRequest) -> Any:
    make = {
        "gpt2": hf_gpt2,
        "llama": hf_llama,
        "llama with biases": lambda: hf_llama(attention_bias=True, mlp_bias=True, head_dim=10),
    }[request.param]
    return open_module(in_float64(make()))


def bias(model: Any, kind: str, layer: int) -> Tensor | float:
    try:
        return model.weights(kind, layer)
    except InputError:
        return 0.0


@pytest.mark.parametrize("layer", [0, 2])
def test_a_block_rebuilt_from_its_weights(rebuilt: Any, layer: int) -> None:
    kinds = [kind for kind in rebuilt.info.site_kinds if KINDS[kind].in_block]
    seen = rebuilt.forward(IDS, capture=[Site(kind, layer) for kind in kinds]).activations

    def at(kind: str) -> Tensor:
        return seen[Site(kind, layer)][0]

    def weight(kind: str, head: int | None = None) -> Tensor:
        return rebuilt.weights(kind, layer, head)

    for kind, letter in (("q", "Q"), ("k", "K"), ("v", "V")):
        heads = rebuilt.info.heads(kind)
        added = bias(rebuilt, f"b_{letter}", layer)
        for head in range(heads):
            offset = added[head] if isinstance(added, Tensor) else added
            assert largest_gap(at("ln1") @ weight(f"W_{letter}", head) + offset, at(kind)[:, head]) < 1e-12
        assert weight(f"W_{letter}").shape == (heads, rebuilt.info.d_model, rebuilt.info.d_head)
    for head in range(rebuilt.info.n_heads):
        assert largest_gap(at("z")[:, head] @ weight("W_O", head), at("result")[:, head]) < 1e-12
    assert largest_gap(at("result").sum(1) + bias(rebuilt, "b_O", layer), at("attn_out")) < 1e-12
    pre = at("ln2") @ weight("W_gate" if "mlp_pre_linear" in kinds else "W_in")
    pre = pre + bias(rebuilt, "b_gate" if "mlp_pre_linear" in kinds else "b_in", layer)
    assert largest_gap(pre, at("mlp_pre")) < 1e-12
    if "mlp_pre_linear" in kinds:
        assert (
            largest_gap(at("ln2") @ weight("W_in") + bias(rebuilt, "b_in", layer), at("mlp_pre_linear"))
            < 1e-12
        )
    assert (
        largest_gap(at("mlp_post") @ weight("W_out") + bias(rebuilt, "b_out", layer), at("mlp_out")) < 1e-12
    )
    for name, source, norm in (("ln1", "resid_pre", "ln1"), ("ln2", "resid_mid", "ln2")):
        x = at(source) - (
            at(source).mean(-1, keepdim=True) if rebuilt.module.config.model_type == "gpt2" else 0
        )
        eps = rebuilt.layout.final_norm
        eps = getattr(eps, "eps", None) or eps.variance_epsilon
        normed = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight(f"{norm}.w")
        assert largest_gap(normed + bias(rebuilt, f"{norm}.b", layer), at(name)) < 1e-12


def test_embeddings_rebuilt_from_their_weights(rebuilt: Any) -> None:
    ids = torch.tensor(IDS)
    total = rebuilt.weights("W_E")[ids]
    if "pos_embed" in rebuilt.info.site_kinds:
        total = total + rebuilt.weights("W_pos")[: ids.shape[1]]
    assert (
        largest_gap(rebuilt.forward(IDS, capture=["resid_pre.0"]).activations["resid_pre.0"], total) < 1e-12
    )


def test_unembed_gives_the_models_own_logits(rebuilt: Any) -> None:
    result = rebuilt.forward(IDS, capture=["resid_post.2", "ln_final"])
    resid, logits = result.activations["resid_post.2"], result.logits
    assert largest_gap(rebuilt.unembed(resid), logits) < 1e-12
    assert largest_gap(result.activations["ln_final"] @ rebuilt.weights("W_U"), logits) < 1e-12
    assert largest_gap(rebuilt.unembed(resid[0, -1]), logits[0, -1]) < 1e-12
    some = torch.tensor([5, 0, 96])
    assert largest_gap(rebuilt.unembed(resid, some), logits[..., some]) < 1e-12
    each = torch.arange(12).reshape(1, 6, 2) * 7
    assert largest_gap(rebuilt.unembed(resid, each), logits.gather(2, each)) < 1e-12


def test_contributions_along_a_logit_direction_sum_to_the_logit(rebuilt: Any) -> None:
    """Σ <component, direction> (+ the norm's own bias) is the logit difference, for every position."""
    sites = [
        *(Site(kind, layer) for kind in ("attn_out", "mlp_out") for layer in range(3)),
        Site("resid_pre", 0),
    ]
    result = rebuilt.forward(IDS, capture=[*sites, "resid_post.2"])
    resid = result.activations["resid_post.2"]
    unembedding = rebuilt.weights("W_U")
    u = unembedding[:, 3] - unembedding[:, 8]
    direction = rebuilt.final_norm_direction(resid, u)
    assert direction.shape == resid.shape
    total = sum((result.activations[site] * direction).sum(-1) for site in sites)
    if rebuilt.module.config.model_type == "gpt2":
        total = total + rebuilt.weights("ln_final.b") @ u
    assert largest_gap(total, result.logits[..., 3] - result.logits[..., 8]) < 1e-11
    # A different direction at every position is taken position by position.
    many = torch.stack([unembedding[:, i] for i in range(6)])[None]
    assert (
        largest_gap(
            rebuilt.final_norm_direction(resid, many)[0, 4],
            rebuilt.final_norm_direction(resid, many[0, 4])[0, 4],
        )
        < 1e-12
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("W_q", 0), "no weight 'W_q' in layer 0. Did you mean .*W_Q"),
        (("W_Q",), "no weight 'W_Q' outside the blocks"),
        (("W_Q", 3), "There is no layer 3"),
        (("W_Q", -1), "There is no layer -1"),
        (("W_Q", 0, 4), "W_Q has no head 4"),
        (("W_K", 0, -1), "W_K has no head -1"),
        (("W_out", 0, 0), "not divided into heads"),
    ],
)
def test_weights_that_are_not_there(model: Any, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.weights(*arguments)


def test_weights_carry_no_gradient(model: Any) -> None:
    assert not model.weights("W_O", 1).requires_grad
