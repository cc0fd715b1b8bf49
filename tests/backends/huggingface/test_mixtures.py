"""Mixtures of experts: what the router decides, seen and changed, against experts written out one by one.

Patches are compared with the library's own forward whose router has its outputs changed by a plain hook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny_architectures as ta
import torch
from tiny_models import largest_gap
from torch import Tensor

from mech_interp.backends.checks import measure_identities
from mech_interp.backends.huggingface.layouts import tiny_module
from mech_interp.backends.huggingface.layouts.experts import RoutedExperts
from mech_interp.backends.huggingface.opening import library_logits, open_module
from mech_interp.backends.metrics import Logits
from mech_interp.backends.protocol import Row
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.errors import IdentityError, InputError
from mech_interp.interventions import (
    Add,
    Custom,
    Freeze,
    FromRun,
    Intervention,
    Mean,
    Noise,
    Operation,
    ProjectOut,
    Replace,
    Scale,
    SubspaceSet,
    Zero,
)
from mech_interp.sites import Site

KINDS = ("router_logits", "expert_indices", "expert_weights")
# Architecture and options; whether the weights of the chosen experts are made to sum to 1.
FORMS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "mixtral": ("mixtral", {}, True),
    "qwen3_moe": ("qwen3_moe", {}, True),
    "qwen3_moe plain": ("qwen3_moe", {"norm_topk_prob": False}, False),
    "qwen3_moe dense in 1": ("qwen3_moe", {"mlp_only_layers": [1]}, True),
    "qwen3_moe every second": ("qwen3_moe", {"decoder_sparse_step": 2}, True),
    "olmoe": ("olmoe", {}, False),
    "olmoe normalised": ("olmoe", {"norm_topk_prob": True}, True),
    "olmoe clipped": ("olmoe", {"clip_qkv": 0.5}, False),
}
SPARSE = {"qwen3_moe dense in 1": (0, 2), "qwen3_moe every second": (1,)}
IDS = [3, 14, 15, 92, 65, 35, 8]


def library(form: str, dtype: torch.dtype = torch.float32) -> Any:
    model_type, changes, _ = FORMS[form]
    return ta.randomise(tiny_module(model_type, **changes), seed=1).to(dtype)


@pytest.fixture(scope="module", params=FORMS)
def exact(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """A form and its model, in float64 throughout."""
    module = library(request.param, torch.float64)
    with ta.all_double(module):
        yield request.param, open_module(module, name="tiny")


def layers(form: str) -> tuple[int, ...]:
    return SPARSE.get(form, (0, 1, 2))


def written_out(model: Any, layer: int, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """The mixture's output at each position, one position and one expert at a time."""
    block = model.module.model.layers[layer].mlp.experts
    hidden = block.down_proj.shape[-1]
    out = torch.zeros_like(x)
    for position in range(len(x)):
        for slot in range(chosen.shape[1]):
            expert = int(chosen[position, slot])
            gate = block.gate_up_proj[expert, :hidden] @ x[position]
            linear = block.gate_up_proj[expert, hidden:] @ x[position]
            inner = gate / (1 + (-gate).exp()) * linear
            out[position] += weights[position, slot] * (block.down_proj[expert] @ inner)
    return out


def decided(logits: Tensor, n: int, normalised: bool) -> tuple[Tensor, Tensor]:
    """The n most probable experts of each position and their weights, by sorting."""
    odds = logits.exp() / logits.exp().sum(-1, keepdim=True)
    chosen = odds.argsort(-1, descending=True)[:, :n]
    weights = torch.stack([odds[i, row] for i, row in enumerate(chosen)])
    return chosen, weights / weights.sum(-1, keepdim=True) if normalised else weights


def with_router(model: Any, layer: int, change: Callable[[Tensor, Tensor, Tensor], Any]) -> Tensor:
    """The library's logits when a router's (logits, weights, indices) are replaced by `change` of them."""
    gate = model.module.model.layers[layer].mlp.gate
    handle = gate.register_forward_hook(lambda _, __, out: change(*(part.clone() for part in out)))
    try:
        with torch.no_grad():
            logits: Tensor = model.module(torch.tensor([IDS]), use_cache=False).logits[0]
        return logits
    finally:
        handle.remove()


def edited(model: Any, site: Site, operation: Operation, position: int | None = None) -> Tensor:
    edit = Intervention(site, operation, positions=position)
    logits: Tensor = model.forward([IDS], interventions=[edit]).logits[0]
    return logits


def test_logits_and_identities(exact: Any) -> None:
    _, model = exact
    found = measure_identities(model, lambda tokens: library_logits(model.module, tokens))
    assert all(identity.deviation < 1e-9 for identity in found)


def test_captures_equal_the_experts_written_out(exact: Any) -> None:
    form, model = exact
    for layer in layers(form):
        sites = [Site(kind, layer) for kind in (*KINDS, "ln2", "mlp_out_own")]
        seen = model.forward([IDS], capture=sites).activations
        logits, chosen, weights, x, out = (seen[site][0] for site in sites)
        router = model.module.model.layers[layer].mlp.gate.weight
        assert largest_gap(logits, torch.stack([router @ row for row in x])) < 1e-12
        experts, shares = decided(logits, chosen.shape[1], FORMS[form][2])
        assert not chosen.is_floating_point()
        assert torch.equal(chosen, experts)
        assert largest_gap(weights, shares) < 1e-12
        assert largest_gap(out, written_out(model, layer, x, chosen, weights)) < 1e-12


def test_weights_are_the_experts(exact: Any) -> None:
    form, model = exact
    for layer in layers(form):
        seen = model.forward([IDS], capture=[f"ln2.{layer}", f"router_logits.{layer}"]).activations
        x = seen[f"ln2.{layer}"][0]
        assert largest_gap(x @ model.weights("W_router", layer), seen[f"router_logits.{layer}"][0]) < 1e-12
        one, experts = (
            torch.tensor([[4]] * len(x)),
            (model.weights(n, layer)[4] for n in ("W_gate", "W_in", "W_out")),
        )
        gate, linear, out = experts
        inner = torch.nn.functional.silu(x @ gate) * (x @ linear)
        assert largest_gap(inner @ out, written_out(model, layer, x, one, torch.ones(len(x), 1))) < 1e-12


def test_dense_layers_have_an_mlp_and_the_others_experts(exact: Any) -> None:
    form, model = exact
    for layer in range(3):
        has, lacks = (KINDS, ("mlp_pre", "mlp_pre_linear", "mlp_post"))
        why = "mixture of experts, each with activations of its own"
        if layer not in layers(form):
            has, lacks, why = lacks, has, "is not a mixture of experts"
        model.forward([IDS], capture=[Site(kind, layer) for kind in has])
        for kind in lacks:
            with pytest.raises(InputError, match=why):
                model.forward([IDS], capture=[Site(kind, layer)])
    if form in SPARSE:
        assert model.weights("W_out", 0 if 0 not in layers(form) else 1).shape == (40, 32)


def test_swapped_experts(exact: Any) -> None:
    """The two strongest experts trade places, and so their weights, at one position."""
    form, model = exact
    layer = layers(form)[-1]
    site = Site("expert_indices", layer)
    chosen = model.forward([IDS], capture=[site]).activations[site][0]
    swapped = chosen.clone()
    swapped[4, :2] = chosen[4, :2].flip(0)
    expected = with_router(model, layer, lambda logits, weights, _: (logits, weights, swapped))
    plain = model.forward([IDS]).logits[0]
    assert largest_gap(plain, expected) > 1e-3
    for value in (swapped[4], swapped[4].double(), swapped[4:5]):
        assert largest_gap(edited(model, site, Replace(value), 4), expected) < 1e-9
    own = Custom(lambda live, context: live[:, [1, 0, *range(2, live.shape[1])]])
    assert largest_gap(edited(model, site, own, 4), expected) < 1e-9


def test_one_expert_in_every_slot_counts_for_each(exact: Any) -> None:
    form, model = exact
    layer = layers(form)[0]
    n = model.layout.blocks[layer].mixture.n_chosen
    found = edited(model, Site("expert_indices", layer), Replace(torch.full((n,), 2)))
    expected = with_router(model, layer, lambda a, b, c: (a, b, torch.full_like(c, 2)))
    assert largest_gap(found, expected) < 1e-9


def test_edited_weights_are_not_normalised_again(exact: Any) -> None:
    form, model = exact
    layer = layers(form)[-1]
    site = Site("expert_weights", layer)
    expected = with_router(model, layer, lambda a, weights, c: (a, 3 * weights, c))
    assert largest_gap(edited(model, site, Scale(3.0)), expected) < 1e-9
    seen = model.forward([IDS], capture=[site], interventions=[Intervention(site, Scale(3.0))])
    plain = model.forward([IDS], capture=[site]).activations[site]
    assert largest_gap(seen.activations[site], 3 * plain) < 1e-12


def test_edited_router_logits_change_the_choice(exact: Any) -> None:
    form, model = exact
    layer = layers(form)[0]
    site, n = Site("router_logits", layer), model.layout.blocks[layer].mixture.n_chosen

    def reverse(logits: Tensor, weights: Tensor, chosen: Tensor) -> Any:
        logits[5] = -logits[5]
        experts, shares = decided(logits, n, FORMS[form][2])
        return logits, shares, experts

    expected = with_router(model, layer, reverse)
    assert largest_gap(edited(model, site, Scale(-1.0), 5), expected) < 1e-9
    where = [site, Site("expert_indices", layer)]
    edit = Intervention(site, Scale(-1.0), positions=5)
    after = model.forward([IDS], capture=where, interventions=[edit]).activations[where[1]]
    before = model.forward([IDS], capture=where).activations[where[1]]
    assert set(after[0, 5].tolist()) != set(before[0, 5].tolist())
    assert torch.equal(after[0, :5], before[0, :5])


def test_gradients_flow_through_the_weights(exact: Any) -> None:
    form, model = exact
    layer = layers(form)[0]
    sites = [Site("expert_weights", layer), Site("router_logits", layer)]
    found = model.forward([IDS], capture=sites, grad=True)
    loss = found.logits[0, -1, :5].square().sum()
    of_weights, of_logits = torch.autograd.grad(loss, [found.activations[site] for site in sites])
    step = 1e-5
    for site, gradient in zip(sites, (of_weights, of_logits), strict=True):
        value = found.activations[site].detach()[0, 2]
        at = int(gradient[0, 2].abs().argmax())
        unit = torch.zeros_like(value)
        unit[at] = step
        ends = [
            edited(model, site, Replace(value + sign * unit), 2)[-1, :5].square().sum() for sign in (1, -1)
        ]
        slope = float(ends[0] - ends[1]) / (2 * step)
        assert abs(slope) > 1e-6
        assert float(gradient[0, 2, at]) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("form", ["mixtral", "qwen3_moe dense in 1", "olmoe"])
def test_rows_equal_naive(form: str) -> None:
    model, runs = open_module(library(form)), ta.three_runs("mixtures")
    width = dict.fromkeys(KINDS, model.layout.blocks[0].mixture.n_chosen)
    width["router_logits"] = model.layout.blocks[0].mixture.n_experts
    rows = []
    for at, layer in enumerate(layers(form)):
        for kind in KINDS:
            operations: list[Operation] = [
                Replace(FromRun("other")),
                Replace(FromRun("far", prompt=2)),
                Freeze("other"),
                Replace(torch.arange(width[kind])),
            ]
            if kind != "expert_indices":
                operations += [Zero(), Scale(0.5), Add(FromRun("far"), 0.3), Mean("far"), Noise(0.1)]
            for number, operation in enumerate(operations):
                positions = [(2,), (-1,), None, (0, 3)][(at + number) % 4]
                edit = Intervention(Site(kind, layer), operation, positions=positions)
                rows.append(Row((at + number) % 3, (edit,), "base" if number % 2 else "other"))
    fast = {result.index: result for result in model.rows(runs, rows, Logits((-1, 2)))}
    for result in naive_rows(model, runs, rows, Logits((-1, 2))):
        scale = max(1.0, float(result.value.abs().max()))
        assert largest_gap(fast[result.index].value, result.value) < 1e-5 * scale, rows[result.index]
    assert sum(result.computed for result in fast.values()) > 0.6 * len(rows)


ARITHMETIC = [
    Add(torch.ones(2)),
    Mean("base"),
    Noise(1.0),
    ProjectOut(torch.ones(2)),
    Scale(2.0),
    SubspaceSet(torch.ones(2), torch.ones(2)),
    Zero(),
]


@pytest.mark.parametrize("operation", ARITHMETIC, ids=lambda one: type(one).__name__)
def test_arithmetic_on_experts_is_refused(operation: Operation) -> None:
    model, runs = open_module(library("mixtral")), ta.three_runs("mixtures")
    edit = Intervention("expert_indices.1", operation, positions=-1)
    name = type(operation).__name__
    with pytest.raises(InputError, match=f"{name} cannot act at .*holds numbers of experts") as caught:
        model.forward(runs["base"], interventions=[edit], runs=runs)
    assert "Replace, Freeze" in caught.value.hint
    with pytest.raises(InputError, match="holds numbers of experts"):
        list(model.rows(runs, [Row(0, (edit,))], Logits()))
    if not (operation.sources() or operation.means()):
        with pytest.raises(InputError, match="holds numbers of experts"):
            model.generate([IDS], max_new_tokens=2, interventions=[Intervention(edit.site, operation)])


@pytest.mark.parametrize("value", [[0.5, 1.0], [0.0, float("nan")], [1.0, float("inf")]])
def test_numbers_of_experts_are_whole(value: list[float]) -> None:
    model, given = open_module(library("mixtral")), torch.tensor(value)
    for operation in (Replace(given), Custom(lambda live, context: given.expand(len(live), 2))):
        with pytest.raises(InputError, match="not whole"):
            edited(model, Site("expert_indices", 1), operation)


@pytest.mark.parametrize("value", [[5, 0], [0, -1]])
def test_experts_that_there_are(value: list[int]) -> None:
    model = open_module(library("mixtral"))
    with pytest.raises(InputError, match=r"expert (5|-1), where there are 5") as caught:
        edited(model, Site("expert_indices", 1), Replace(torch.tensor(value)), 3)
    assert caught.value.hint == "Use 0 to 4."
    rows = [Row(0, (Intervention("expert_indices.1", Replace(torch.tensor(value)), positions=-1),))]
    with pytest.raises(InputError, match="where there are 5"):
        list(model.rows(ta.three_runs("mixtures"), rows, Logits()))


def wrong_choice(self: RoutedExperts, logits: Tensor) -> tuple[Tensor, Tensor]:
    weights, chosen = logits.softmax(-1).topk(self.n_chosen, largest=False)
    return chosen, weights


def never_normalised(self: RoutedExperts, logits: Tensor) -> tuple[Tensor, Tensor]:
    weights, chosen = logits.softmax(-1).topk(self.n_chosen)
    return chosen, weights


@pytest.mark.parametrize("fault", [wrong_choice, never_normalised])
def test_a_wrong_router_is_refused(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RoutedExperts, "choose", fault)
    with pytest.raises(IdentityError, match="library's own forward"):
        open_module(library("mixtral"))


@pytest.mark.parametrize("form", ["mixtral", "qwen3_moe", "olmoe"])
def test_half_precision_weights_have_the_library_type(form: str) -> None:
    """Mixtral mixes with float32 weights even in bfloat16; the others round them first."""
    model = open_module(library(form, torch.bfloat16))
    seen = model.forward([IDS], capture=["expert_weights.0"]).activations["expert_weights.0"]
    theirs: list[Any] = []
    gate = model.module.model.layers[0].mlp.gate
    handle = gate.register_forward_hook(lambda _, __, out: theirs.append(out[1]))
    model.module(torch.tensor([IDS]))
    handle.remove()
    assert seen.dtype == theirs[0].dtype
    assert largest_gap(seen[0].float(), theirs[0].float()) < 2e-2
