"""The TransformerLens backend against the default engine: the same numbers at every site it offers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import tiny_architectures as ta
import torch
from cases import combinations, one_of_each
from tiny_models import largest_gap
from torch import Tensor

from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.metrics import Logits
from mech_interp.backends.protocol import Capability, Row
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.errors import InputError, NotFiredError
from mech_interp.interventions import Add, FromRun, Intervention, Replace, Scale, Zero
from mech_interp.sites import Site

pytest.importorskip("transformer_lens")

from bridge_cases import LOST, WRAPPED, loaded, pair

from mech_interp.backends import transformerlens as tl

BOUND = 2e-5


def whole(model: Any) -> list[Site]:
    return ta.every_site(model)


def check_rows(name: str, rows: Sequence[Row], runs: Any, positions: tuple[int, ...] = (-1, 1)) -> None:
    engine, model = pair(name)
    found = {result.index: result.value for result in model.rows(runs, rows, Logits(positions))}
    slow = list(naive_rows(engine, runs, rows, Logits(positions)))
    scale = max(1.0, max(float(result.value.abs().max()) for result in slow))
    assert sorted(found) == list(range(len(rows)))
    for row, result in zip(rows, slow, strict=True):
        assert largest_gap(found[result.index], result.value) <= BOUND * scale, row


@pytest.mark.parametrize("name", WRAPPED)
def test_what_is_offered_and_what_is_refused(name: str) -> None:
    engine, model = pair(name)
    lost = engine.info.site_kinds - model.info.site_kinds
    assert lost == LOST.get(name, set())
    assert model.info.missing_sites.keys() <= engine.info.missing_sites.keys()
    for kind in lost:
        with pytest.raises(InputError, match=r"TransformerLens' bridge.*use the backend huggingface"):
            model.forward([[1, 2]], capture=[Site(kind, 0)])
    for kind, why in engine.info.missing_kinds.items():
        assert model.info.missing_kinds[kind] == why
    assert model.info.backend == "transformerlens"
    assert model.info.attention == "eager"
    assert model.info.capabilities == frozenset(Capability) - {Capability.EDGES}


@pytest.mark.parametrize("name", WRAPPED)
def test_captures_and_logits_equal_the_default_engine(name: str) -> None:
    engine, model = pair(name)
    prompts = ta.prompts(name)
    sites = whole(model)
    right = engine.forward(prompts, capture=sites)
    found = model.forward(prompts, capture=sites)
    for row, prompt in enumerate(prompts):
        n = len(prompt)
        assert largest_gap(found.logits[row, :n], right.logits[row, :n]) <= BOUND * 30
    for site in sites:
        left, true = found.activations[site], right.activations[site]
        for row, prompt in enumerate(prompts):
            real = [
                slice(len(prompt)) if axis in ("position", "key") else slice(None) for axis in site.spec.axes
            ]
            a, b = left[row][tuple(real)], true[row][tuple(real)]
            if site.kind == "attn_scores":
                assert torch.equal(a < -1e30, b < -1e30)
                a, b = a.clamp(min=-1e4), b.clamp(min=-1e4)
            assert largest_gap(a, b) <= BOUND * max(1.0, float(b.abs().max())), site


@pytest.mark.parametrize("name", WRAPPED)
def test_rows_at_every_site_equal_the_default_engine(name: str) -> None:
    _, model = pair(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the bridge warns of edits that it discards
        check_rows(name, ta.rows_everywhere(model), ta.three_runs(name))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_operation_at_every_site(name: str) -> None:
    _, model = pair(name)
    rows = one_of_each(model, seed=12)
    assert len(rows) > 350
    check_rows(name, rows, ta.three_runs(name))
    check_rows(name, combinations(model, 60, seed=9), ta.three_runs(name), (-2,))


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_unembedding_and_directions(name: str) -> None:
    engine, model = pair(name)
    for layer in (None, *range(engine.info.n_layers)):
        plain = engine.layout.weights() if layer is None else engine.layout.blocks[layer].weights()
        for kind in plain:
            right = engine.weights(kind, layer)
            assert largest_gap(model.weights(kind, layer), right) <= 1e-6, (kind, layer)
            if kind in ("W_Q", "W_K", "W_V", "W_O"):
                last = right.shape[0] - 1
                assert torch.equal(model.weights(kind, layer, last), model.weights(kind, layer)[last])
    resid = torch.randn(2, 3, engine.info.d_model, generator=torch.Generator().manual_seed(1))
    right = engine.unembed(resid)
    assert largest_gap(model.unembed(resid), right) <= BOUND * float(right.abs().max())
    ids = torch.tensor([5, 60])
    assert largest_gap(model.unembed(resid, ids), right[..., ids]) <= BOUND * float(right.abs().max())
    u = torch.randn(engine.info.d_model, generator=torch.Generator().manual_seed(2))
    assert largest_gap(model.final_norm_direction(resid, u), engine.final_norm_direction(resid, u)) <= 1e-5


def test_weights_that_are_not_there_are_refused() -> None:
    _, model = pair("llama")
    for arguments, match in (
        (("W_pos",), "no weight 'W_pos' outside"),
        (("b_Q", 0), "no weight 'b_Q' in layer 0"),
        (("W_in", 0, 1), "not divided into heads"),
        (("W_K", 0, 2), "no head 2"),
        (("W_K", 3), "no layer 3"),
    ):
        with pytest.raises(InputError, match=match):
            model.weights(*arguments)


def test_the_bridges_own_weights_are_what_is_read() -> None:
    """Not the layout's: a changed weight of the bridge alone shows."""
    model = tl.open_loaded(loaded(ta.library_model("gpt2")))
    attention = model.bridge.blocks[1].attn
    before = model.weights("W_Q", 1)
    attention.q.original_component.weight = torch.nn.Parameter(attention.q.original_component.weight * 2)
    assert largest_gap(model.weights("W_Q", 1), 2 * before) == 0
    assert torch.equal(model.layout.blocks[1].weights()["W_Q"], before)


def gradients(model: Any, prompts: Any, sites: Sequence[Site], edits: Any) -> list[Tensor]:
    result = model.forward(prompts, capture=sites, interventions=edits, logits="last", grad=True)
    loss = (result.logits * torch.linspace(-1, 1, result.logits.shape[-1])).sum()
    return list(
        torch.autograd.grad(loss, [result.activations[site] for site in sites], materialize_grads=True)
    )


@pytest.mark.parametrize("name", WRAPPED)
def test_gradients_at_every_site_equal_the_default_engine(name: str) -> None:
    engine, model = pair(name)
    prompts = [row for row in ta.prompts(name) if len(row) > 1]
    sites = [site for site in whole(model) if site.kind not in ("logits", "expert_indices")]
    edits = [
        Intervention(
            "resid_mid.1" if "resid_mid" in model.info.site_kinds else "attn_out.1", Scale(0.5), positions=1
        )
    ]
    for some in ([], edits):
        right, found = (gradients(one, prompts, sites, some) for one in (engine, model))
        alive = 0
        for site, a, b in zip(sites, found, right, strict=True):
            for row, prompt in enumerate(prompts):
                real = [
                    slice(len(prompt)) if axis in ("position", "key") else slice(None)
                    for axis in site.spec.axes
                ]
                one, other = a[row][tuple(real)], b[row][tuple(real)]
                scale = float(other.abs().max())
                alive += scale > 0
                assert largest_gap(one, other) <= 2e-4 * max(scale, 1e-2), site
        assert alive > 0.8 * len(sites) * len(prompts)


@pytest.mark.parametrize("name", WRAPPED)
def test_generation_token_for_token(name: str) -> None:
    engine, model = pair(name)
    prompts = [row[:9] for row in ta.prompts(name)]
    options: dict[str, Any] = {"max_new_tokens": 5, "stop_ids": ()}
    free = engine.generate(prompts, **options)
    assert model.generate(prompts, **options) == free
    push = torch.randn(engine.info.d_model, generator=torch.Generator().manual_seed(4)) * 3
    edits = [
        Intervention("resid_post.1", Add(push)),
        Intervention("z.0", Zero(), phase="generated", heads=(1,)),
    ]
    steered = engine.generate(prompts, interventions=edits, **options)
    assert steered.ids != free.ids
    assert model.generate(prompts, interventions=edits, **options) == steered


def test_the_checkpoints_stop_tokens_are_the_default() -> None:
    engine, model = pair("gpt2")
    token = engine.generate([[1, 2, 3]], max_new_tokens=4, stop_ids=()).ids[0][1]
    model.layout.module.generation_config.eos_token_id = token
    try:
        assert model.generate([[1, 2, 3]], max_new_tokens=4) == engine.generate([[1, 2, 3]], max_new_tokens=4)
        assert model.generate([[1, 2, 3]], max_new_tokens=4).finished == ("stop",)
    finally:
        model.layout.module.generation_config.eos_token_id = None


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_forward_reads_other_runs_and_refuses_what_never_fires(name: str) -> None:
    engine, model = pair(name)
    runs = ta.three_runs(name)
    edit = Intervention("v.1", Replace(FromRun("other")), positions=2)
    options: dict[str, Any] = {"interventions": [edit], "runs": runs, "logits": "last"}
    assert (
        largest_gap(
            model.forward(runs["base"], **options).logits, engine.forward(runs["base"], **options).logits
        )
        < 1e-4
    )
    with pytest.raises(NotFiredError):
        model.forward(runs["base"], capture=["z.2"], stop_after=1)
    with pytest.raises(InputError, match="head"):
        model.forward(runs["base"], interventions=[Intervention("z.0", Zero(), heads=(9,))])


def test_half_precision_and_double() -> None:
    for dtype, bound in ((torch.bfloat16, 6e-2), (torch.float64, 1e-9)):
        module = ta.library_model("gpt2").to(dtype)
        engine, model = open_module(module), tl.open_loaded(loaded(module))
        assert model.info.site_kinds == engine.info.site_kinds
        prompts = ta.prompts("gpt2")[:1]
        right = engine.forward(prompts).logits
        assert largest_gap(model.forward(prompts).logits, right) <= bound * float(right.abs().max())


def test_a_bundled_checkpoint(tmp_path: Any) -> None:
    import mech_interp
    from mech_interp.backends.loading import find_folder

    engine = mech_interp.load_model("tinyworld")
    model = tl.open_folder(find_folder("tinyworld"), name="tinyworld", source="bundled")
    assert (model.info.weights_hash, model.info.tokenizer_hash) == (
        engine.info.weights_hash,
        engine.info.tokenizer_hash,
    )
    assert model.info.site_kinds == engine.info.site_kinds
    text = ["The cat sat on the", "Once there was"]
    tokens = engine.tokens(text)
    assert model.tokens(text).convention == tokens.convention
    right, found = (one.forward(text, logits="last").logits.log_softmax(-1) for one in (engine, model))
    assert float((right.exp() * (right - found)).sum(-1).max()) <= 1e-6
    options: dict[str, Any] = {"max_new_tokens": 8}
    assert model.generate(text, **options) == engine.generate(text, **options)
    rows = [
        Row(i, (Intervention(Site(kind, 1), Scale(0.5), positions=-1),))
        for i in (0, 1)
        for kind in ("z", "mlp_out", "resid_mid")
    ]
    left = {r.index: r.value for r in model.rows(tokens, rows, Logits((-1,)))}
    for result in engine.rows(tokens, rows, Logits((-1,))):
        assert largest_gap(left[result.index], result.value) <= 1e-4
