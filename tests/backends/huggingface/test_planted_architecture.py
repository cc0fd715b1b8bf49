"""HookedTransformer-style models: any mix of norms, MLPs and directions, against weights written out."""

from __future__ import annotations

from typing import Any

import planted_reference
import pytest
import torch
from cases import Oracle, combinations, one_of_each
from tiny_models import largest_gap, random_ids, randomise, three_runs
from torch import Tensor

from mech_interp.backends.checks import measure_identities
from mech_interp.backends.huggingface.edges import graph_of
from mech_interp.backends.huggingface.hooked import PlantedConfig, PlantedForCausalLM
from mech_interp.backends.huggingface.opening import library_logits, open_module
from mech_interp.backends.metrics import LogitDifference, Logits
from mech_interp.backends.protocol import Capability, Row
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, InputError
from mech_interp.interventions import FromRun, Intervention, Noise, Replace, Zero
from mech_interp.sites import KINDS, Site

BARE = {"causal": False}
FORMS: dict[str, dict[str, Any]] = {
    "attention-only, bidirectional": BARE,
    "attention-only, causal": {},
    "everything, bidirectional": {**BARE, "intermediate_size": 20, "hidden_act": "gelu", "norm": "layer"},
    "relu, causal": {"intermediate_size": 20, "hidden_act": "relu"},
    "solu, rms": {"intermediate_size": 20, "hidden_act": "solu", "norm": "rms", "causal": False},
    "gelu_new, two norms": {
        "intermediate_size": 20,
        "hidden_act": "gelu_new",
        "norm": "layer",
        "final_norm": "rms",
        "attention_scales": [1.0, 0.3, 0.1],
    },
}
IDS = random_ids((7, 1, 4), seed=5)


def library(form: str, attention: str = "sdpa", **changes: Any) -> PlantedForCausalLM:
    """A generic model of a form, with five features a head."""
    options = {
        "vocab_size": 97,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 5,
        "max_position_embeddings": 24,
    }
    config = PlantedConfig(**{**options, **FORMS[form], **changes})
    config._attn_implementation = attention
    module: PlantedForCausalLM = randomise(PlantedForCausalLM(config), seed=3)
    return module


def exact(form: str, attention: str = "sdpa", **changes: Any) -> Any:
    return open_module(library(form, attention, **changes).double(), name="toy")


def every_site(model: Any) -> list[Site]:
    return [
        Site(kind, layer)
        for kind in sorted(model.info.site_kinds)
        for layer in (range(3) if KINDS[kind].in_block else (None,))
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("form", FORMS)
def test_every_site_equals_the_weights_written_out(form: str, attention: str) -> None:
    model = exact(form, attention)
    sites = every_site(model)
    found = model.forward(IDS, capture=sites)
    for i, ids in enumerate(IDS):
        seen: dict[Site, Tensor] = {}

        def keep(kind: str, layer: int | None, value: Tensor, seen: dict[Site, Tensor] = seen) -> Tensor:
            seen[Site(kind, layer)] = value
            return value

        logits = planted_reference.run(model.module, ids, keep)
        assert largest_gap(found.logits[i, : len(ids)], logits) < 1e-12
        assert largest_gap(model.module(torch.tensor([ids])).logits[0], logits) < 1e-12
        assert set(seen) == set(sites)
        for site in sites:
            ours = found.activations[site][i]
            ours = ours[:, : len(ids), : len(ids)] if site.spec.over_keys else ours[: len(ids)]
            hidden = seen[site] < -1e29
            assert largest_gap(ours.masked_fill(hidden, 0), seen[site].masked_fill(hidden, 0)) < 1e-12, site


@pytest.mark.parametrize("form", FORMS)
def test_identities(form: str) -> None:
    model = exact(form)
    found = measure_identities(model, lambda tokens: library_logits(model.module, tokens))
    assert all(identity.holds and identity.deviation < 1e-12 for identity in found)
    names = {identity.name for identity in found}
    with_mlp = "intermediate_size" in FORMS[form]
    assert ("resid_pre + attn_out = resid_post" in names) is not with_mlp
    assert ("mlp_post W_out + b_out = mlp.hook_out" in names) is with_mlp
    assert {"pattern · v = z", "sum over heads of z W_O + b_O = attn.hook_out"} <= names


def test_sites_that_do_not_exist_are_refused_with_the_reason() -> None:
    model = exact("attention-only, bidirectional")
    assert model.info.d_mlp == 0
    for site in ("resid_mid.1", "mlp_out.1", "mlp_post.0", "ln2.0", "router_logits.0"):
        with pytest.raises(InputError, match="attention-only"):
            model.forward(IDS, capture=[site])
    for site in ("ln1.1", "ln_final"):
        with pytest.raises(InputError, match=r"no .*norm"):
            model.forward(IDS, capture=[site])
    with pytest.raises(InputError, match="rotary"):
        model.forward(IDS, capture=["rot_q.0"])
    assert "attn_out" in model.info.site_kinds


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_bidirectional_prompt_sees_itself_and_nothing_else(attention: str) -> None:
    model = exact("everything, bidirectional", attention)
    ids = random_ids((6,), seed=8)[0]
    alone = model.forward([ids], capture=["pattern.1"])
    batch = Tokens.from_lists([ids, random_ids((11,), seed=9)[0]], fill=13)
    together = model.forward(batch, capture=["pattern.1"])
    assert largest_gap(together.logits[0, :6], alone.logits[0]) < 1e-12
    assert bool((together.activations["pattern.1"][0, :, :6, 6:] == 0).all())
    assert bool((alone.activations["pattern.1"] > 0).all())
    changed = model.forward([[*ids[:-1], (ids[-1] + 1) % 97]]).logits
    assert largest_gap(changed[0, 0], alone.logits[0, 0]) > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("form", FORMS)
def test_the_library_model_heeds_padding(form: str, attention: str) -> None:
    module = library(form, attention).double()
    batch = Tokens.from_lists(IDS, fill=13)
    found = module(batch.ids, attention_mask=batch.mask.long()).logits
    for i, ids in enumerate(IDS):
        assert largest_gap(found[i, : len(ids)], module(torch.tensor([ids])).logits[0]) < 1e-12


def rows_match(model: Any, rows: list[Row], metric: Any, budget: int | None = None) -> list[Any]:
    """Fast equals naive, row by row."""
    runs = three_runs()
    fast = {result.index: result for result in model.rows(runs, rows, metric, memory_budget=budget)}
    slow = list(naive_rows(model, runs, rows, metric))
    for result in slow:
        gap = largest_gap(fast[result.index].value, result.value)
        assert gap < 1e-9 * max(1.0, float(result.value.abs().max())), rows[result.index]
    return [fast[i] for i in range(len(rows))]


@pytest.mark.parametrize("form", ["attention-only, bidirectional", "everything, bidirectional", "solu, rms"])
def test_every_operation_at_every_site(form: str) -> None:
    """Rows equal the naive loop, and both the weights written out with the same edits."""
    model = exact(form)
    rows = one_of_each(model, seed=4)
    results = rows_match(model, rows, Logits((-1, 1)))
    computed = sum(result.computed for result in results)
    assert 0.8 * len(rows) < computed < len(rows)
    oracle = Oracle(model, three_runs(), planted_reference.run)
    for row, result in zip(rows, results, strict=True):
        if any(isinstance(i.operation, Noise) for i in row.interventions):
            continue
        expected = oracle.logits(row.run, row.prompt, row.interventions)[[-1, 1]]
        gap = largest_gap(result.value, expected)
        assert gap < 1e-9 * max(1.0, float(expected.abs().max())), row


@pytest.mark.parametrize("form", FORMS)
def test_several_interventions_in_one_row(form: str) -> None:
    model = exact(form, "eager" if "causal" in form else "sdpa")
    rows = combinations(model, 40, seed=6)
    rows_match(model, rows, Logits((2, -1)))
    rows_match(model, rows[:10], LogitDifference((1, 2, 3), (4, 5, 6)), budget=20_000)


def test_rows_of_a_bidirectional_model_reach_earlier_positions() -> None:
    model = exact("attention-only, bidirectional")
    late = Row(0, (Intervention("resid_pre.0", Zero(), positions=-1),))
    result = rows_match(model, [late], Logits((0,)))[0]
    plain = model.forward(three_runs()["base"].select([0]), logits=[0]).logits
    assert result.computed
    assert largest_gap(result.value, plain[0]) > 1e-3


def test_rows_skip_what_cannot_change_anything() -> None:
    """Equal prompts restore nothing; a token changed anywhere changes every position."""
    model, base = exact("attention-only, bidirectional"), FromRun("base")
    ahead = Intervention("resid_pre.1", Replace(FromRun("other")), positions=0)
    rows = [
        Row(0, (Intervention("resid_pre.1", Replace(base), positions=3),)),
        Row(0, (ahead,)),
        Row(0, (Intervention("z.2", Zero(), positions=1),)),
        Row(0, (Intervention("q.0", Replace(FromRun("other")), positions=0),)),
    ]
    results = rows_match(model, rows, Logits((-1,)))
    assert [result.computed for result in results] == [False, True, False, False]


def test_patterns_are_read_from_prompts_that_are_long_enough() -> None:
    model, runs = exact("attention-only, bidirectional"), three_runs()
    edit = Intervention("pattern.1", Replace(FromRun("far", prompt=1)), positions=0)
    with pytest.raises(InputError, match="which has 6 tokens"):
        model.forward(runs["base"].select([0]), interventions=[edit], runs=runs, prompt_ids=[0])
    with pytest.raises(InputError, match="which has 6 tokens"):
        list(model.rows(runs, [Row(0, (edit,))], Logits((-1,))))


def test_gradients_flow() -> None:
    model = exact("everything, bidirectional")
    found = model.forward([IDS[0]], capture=["z.0", "pattern.1"], grad=True)
    gradients = torch.autograd.grad(found.logits[0, 0, :5].square().sum(), list(found.activations.values()))
    assert all(float(gradient.abs().max()) > 1e-4 for gradient in gradients)
    site = Site("z", 0)
    step = torch.zeros(5, dtype=torch.float64)
    step[2] = 1e-6
    moved = [
        model.forward(
            [IDS[0]],
            interventions=[
                Intervention(site, Replace(found.activations[site][0, 6, 1].detach() + sign * step), 6, 1)
            ],
        )
        .logits[0, 0, :5]
        .square()
        .sum()
        for sign in (1, -1)
    ]
    slope = float(moved[0] - moved[1]) / 2e-6
    at = list(found.activations).index(site)
    assert float(gradients[at][0, 6, 1, 2]) == pytest.approx(slope, rel=1e-4)


def test_a_bidirectional_model_does_not_continue_text() -> None:
    model = exact("attention-only, bidirectional")
    assert not model.info.causal
    assert Capability.GENERATE not in model.info.capabilities
    assert "no predictions of a next token" in model.info.notice
    with pytest.raises(CapabilityError, match="sees the whole prompt"):
        model.generate(IDS, max_new_tokens=2)
    with pytest.raises(CapabilityError, match="cannot continue"):
        model.module.generate(torch.tensor([[1, 2]]))


def test_edges_of_a_bidirectional_model_are_refused() -> None:
    assert graph_of(exact("attention-only, causal")).n_layers == 3
    with pytest.raises(CapabilityError, match="bidirectional"):
        graph_of(exact("attention-only, bidirectional"))


def test_logits_need_not_be_over_tokens() -> None:
    model = exact("relu, causal", n_outputs=3)
    assert (model.info.vocabulary, model.info.n_outputs) == (97, 3)
    assert model.forward(IDS).logits.shape[-1] == 3
    rows_match(model, [Row(0, (Intervention("z.1", Zero()),))], Logits((-1,)))
    assert Capability.GENERATE not in model.info.capabilities
    with pytest.raises(CapabilityError, match="3 logits are not over its 97 tokens"):
        model.generate(IDS, max_new_tokens=2)


@pytest.mark.parametrize("form", ["attention-only, causal", "gelu_new, two norms"])
def test_generation_equals_the_library_and_an_uncached_loop(form: str) -> None:
    model = open_module(library(form))
    ids = IDS[0]
    ours = model.generate([ids], max_new_tokens=8).ids[0]
    theirs = model.module.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    grown = list(ids)
    for _ in range(8):
        grown.append(int(planted_reference.run(model.module, grown)[-1].argmax()))
    assert list(ours) == theirs[0, len(ids) :].tolist() == grown[len(ids) :]


def test_the_loss_is_the_mean_over_next_tokens() -> None:
    module = library("relu, causal").double()
    ids = torch.tensor([IDS[0]])
    out = module(ids, labels=ids)
    chosen = out.logits.detach()[0, :-1].log_softmax(-1)[range(6), IDS[0][1:]]
    assert float(out.loss.detach()) == pytest.approx(-float(chosen.mean()), rel=1e-12)
