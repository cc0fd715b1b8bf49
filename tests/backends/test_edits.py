"""Interventions in a forward, against a decoder that edits one vector at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from cases import Oracle, combinations, intervention, one_of_each, operations
from tiny_models import largest_gap
from torch import Tensor

from mech_interp.backends.protocol import Row
from mech_interp.errors import InputError
from mech_interp.interventions import (
    Add,
    Custom,
    EditContext,
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


@pytest.fixture(scope="module")
def oracle(exact: Any, runs: Any) -> Oracle:
    return Oracle(exact, runs)


def uses_noise(row: Row) -> bool:
    return any(isinstance(one.operation, Noise) for one in row.interventions)


def check(model: Any, runs: Any, oracle: Oracle, row: Row) -> float:
    tokens = runs[row.run].select([row.prompt])
    ours = model.forward(tokens, interventions=row.interventions, runs=runs, prompt_ids=[row.prompt]).logits[
        0
    ]
    theirs = oracle.logits(row.run, row.prompt, row.interventions)
    assert largest_gap(ours, theirs) < 1e-8 * max(1.0, float(theirs.abs().max())), row
    return largest_gap(ours, oracle.logits(row.run, row.prompt, ()))


def test_every_operation_at_every_site(exact: Any, runs: Any, oracle: Oracle) -> None:
    rows = [row for row in one_of_each(exact, seed=0) if not uses_noise(row)]
    changed = [check(exact, runs, oracle, row) > 1e-6 for row in rows]
    assert len(rows) > 22 * 15
    # A few do nothing, such as position 2 restored where nothing differs yet; nearly all must.
    assert sum(changed) > 0.85 * len(rows)


def test_several_interventions_act_in_the_order_given(exact: Any, runs: Any, oracle: Oracle) -> None:
    for row in combinations(exact, 60, seed=1):
        if not uses_noise(row):
            check(exact, runs, oracle, row)


def test_a_batch_gets_what_each_prompt_gets_alone(exact: Any, runs: Any, oracle: Oracle) -> None:
    choose = random.Random(3)
    for kind in sorted(exact.info.site_kinds):
        name = choose.choice([n for n in operations(exact, kind) if n != "noise"])
        edit = intervention(exact, kind, operations(exact, kind)[name], choose)
        logits = exact.forward(runs["base"], interventions=[edit], runs=runs).logits
        for prompt, length in enumerate(runs["base"].lengths):
            expected = oracle.logits("base", prompt, [edit])
            assert largest_gap(logits[prompt, :length], expected) < 1e-8, (kind, name)


def test_the_same_operation_twice_acts_twice(exact: Any, runs: Any, oracle: Oracle) -> None:
    add, scale = Add(torch.linspace(-1, 1, 32)), Scale(0.5)
    edits = [Intervention("resid_mid.1", one, positions=2) for one in (add, add, scale, add)]
    check(exact, runs, oracle, Row(0, tuple(edits)))
    z = exact.forward(runs["base"], capture=["resid_mid.1"]).activations["resid_mid.1"][0, 2]
    after = exact.forward(runs["base"], capture=["resid_mid.1"], interventions=edits)
    expected = (z + 2 * add.value) * 0.5 + add.value
    assert largest_gap(after.activations["resid_mid.1"][0, 2], expected) < 1e-12


def test_a_position_or_prompt_named_twice_is_edited_once(exact: Any, runs: Any) -> None:
    add = Add(torch.ones(32))
    once = exact.forward(runs["base"], interventions=[Intervention("embed", add, positions=4, prompts=1)])
    twice = Intervention("embed", add, positions=(4, -1, 4), prompts=(1, 1))
    assert torch.equal(exact.forward(runs["base"], interventions=[twice]).logits, once.logits)


def test_only_the_named_prompts_positions_and_heads_change(exact: Any, runs: Any) -> None:
    tokens = runs["base"]
    before = exact.forward(tokens, capture=["z.1"]).activations["z.1"]
    edit = Intervention("z.1", Zero(), positions=(-1, 0), heads=(1, 3), prompts=(0, 2))
    after = exact.forward(tokens, capture=["z.1"], interventions=[edit]).activations["z.1"]
    expected = before.clone()
    for prompt, last in ((0, 6), (2, 8)):
        for position in (0, last):
            expected[prompt, position, [1, 3]] = 0
    assert torch.equal(after, expected)


@pytest.mark.parametrize("head", [0, 1])
def test_key_value_heads_serve_their_query_heads(head: int) -> None:
    """Zero values of one key/value head silence exactly the two query heads that read it."""
    from tiny_models import opened

    model = opened("llama", double=True)
    edit = Intervention(f"v.1.{head}", Zero())
    z = model.forward([[5, 6, 7]], capture=["z.1"], interventions=[edit]).activations["z.1"][0]
    silent = [h for h in range(4) if not z[:, h].any()]
    assert silent == [2 * head, 2 * head + 1]


def test_each_entry_can_have_its_own_value(exact: Any, runs: Any) -> None:
    """[n, features] goes by prompt, then position, then head, in the order in which they are named."""
    values = torch.arange(8.0)[:, None] + torch.linspace(0, 0.5, exact.info.d_head)[None]
    edit = Intervention("z.1", Replace(values), positions=(-1, 0), heads=(2, 0), prompts=(2, 1))
    z = exact.forward(runs["base"], capture=["z.1"], interventions=[edit]).activations["z.1"]
    places = [(p, position, h) for p, last in ((2, 8), (1, 4)) for position in (last, 0) for h in (2, 0)]
    for number, place in enumerate(places):
        assert largest_gap(z[place], values[number].double()) < 1e-12, place


def test_a_wrong_number_of_values_is_refused(exact: Any, runs: Any) -> None:
    edit = Intervention("resid_pre.1", Replace(torch.zeros(3, 32)), positions=(0, 1), prompts=0)
    with pytest.raises(InputError, match="holds 3 vectors, but its intervention selects 2"):
        exact.forward(runs["base"], interventions=[edit])


@pytest.mark.parametrize("kind", ["attn_scores", "pattern"])
@pytest.mark.parametrize(
    "operation",
    [
        Zero(),
        Scale(-3.0),
        Add(torch.ones(40)),
        Noise(5.0),
        Replace(torch.ones(40)),
        Custom(lambda x, c: x + 1),
    ],
)
def test_no_intervention_lets_a_query_see_the_future(exact: Any, kind: str, operation: Operation) -> None:
    """Whatever is done to scores or patterns, later tokens have no influence on earlier logits."""
    edit = Intervention(f"{kind}.1", operation)
    one, two = ([3, 14, 15, 9, last] for last in (2, 6))
    logits = [exact.forward([ids], interventions=[edit]).logits[0, :4] for ids in (one, two)]
    assert torch.equal(*logits)
    pattern = exact.forward([one], capture=["pattern.1"], interventions=[edit]).activations["pattern.1"]
    assert not pattern.triu(1).any()


def test_zero_scores_attend_evenly(exact: Any) -> None:
    edit = Intervention("attn_scores.0", Zero(), heads=1)
    pattern = exact.forward([[1, 2, 3]], capture=["pattern.0.1"], interventions=[edit]).activations[
        "pattern.0.1"
    ]
    expected = torch.tensor([[1.0, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    assert largest_gap(pattern[0], expected) < 1e-12


def test_noise_is_the_same_however_it_is_batched(exact: Any, runs: Any) -> None:
    for site in ("embed", "z.1", "pattern.0", "attn_scores.2"):
        noise = Intervention(site, Noise(0.7, seed=5))
        together = exact.forward(runs["base"], interventions=[noise]).logits
        for prompt, length in enumerate(runs["base"].lengths):
            alone = exact.forward(runs["base"].select([prompt]), interventions=[noise], prompt_ids=[prompt])
            assert largest_gap(alone.logits[0], together[prompt, :length]) < 1e-10, site


def test_noise_is_gaussian_seeded_and_fresh_for_every_entry(exact: Any) -> None:
    ids = [[i % 97 for i in range(20)], [7] * 20]

    def added(**options: Any) -> Tensor:
        noise = Intervention("mlp_post.1", Noise(2.0, **options))
        plain, noisy = (
            exact.forward(ids, capture=["mlp_post.1"], interventions=edits).activations["mlp_post.1"]
            for edits in ([], [noise])
        )
        return noisy - plain

    draw = added(seed=1)
    assert torch.equal(draw, added(seed=1))
    assert float(draw.mean()) == pytest.approx(0, abs=0.2)
    assert float(draw.std()) == pytest.approx(2, rel=0.1)
    flat = draw.flatten(0, 1)
    assert len({tuple(row.tolist()) for row in flat.round(decimals=9)}) == 40
    correlation = torch.corrcoef(torch.stack((draw.flatten(), added(seed=2).flatten())))[0, 1]
    assert abs(float(correlation)) < 0.1
    # Another site with the same seed draws anew.
    noise = [Intervention(f"mlp_out.{layer}", Noise(1.0)) for layer in (0, 1)]
    capture = ["mlp_out.0", "mlp_out.1"]
    plain = exact.forward(ids, capture=capture).activations
    first = exact.forward(ids, capture=capture, interventions=noise[:1]).activations["mlp_out.0"]
    second = exact.forward(ids, capture=capture, interventions=noise[1:]).activations["mlp_out.1"]
    assert largest_gap(first - plain["mlp_out.0"], second - plain["mlp_out.1"]) > 0.5


def test_nearly_dependent_directions_span_no_more(exact: Any) -> None:
    """Rounding in stored directions must not add a direction of noise to the span."""
    one = torch.linspace(-1, 1, 32) + 0.3
    edits = [ProjectOut(one), ProjectOut(torch.stack((one, one * (1 / 3))))]
    logits = [exact.forward([[1, 2]], interventions=[Intervention("resid_mid.1", e)]).logits for e in edits]
    assert largest_gap(*logits) < 1e-5


@pytest.mark.parametrize("kind", ["resid_mid", "z", "mlp_post"])
def test_what_is_declared_differentiable_is(exact: Any, runs: Any, kind: str) -> None:
    """Gradients through each operation equal finite differences at the embedding below it."""
    tokens = runs["base"].select([1])
    for name, operation in operations(exact, kind).items():
        edit = Intervention(f"{kind}.1", operation, positions=(1, -1))
        assert operation.differentiable
        result = exact.forward(
            tokens, capture=["embed"], interventions=[edit], runs=runs, grad=True, prompt_ids=[1]
        )
        (gradient,) = torch.autograd.grad(result.logits[0, -1, 11], result.activations["embed"])
        step = 1e-5 / float(gradient.norm()) * gradient[0]
        ends = []
        for sign in (1, -1):
            move = Intervention("embed", Add(sign * step))
            moved = exact.forward(tokens, interventions=[move, edit], runs=runs, prompt_ids=[1])
            ends.append(float(moved.logits[0, -1, 11]))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient.norm()), rel=1e-3), name


def test_values_of_operations_receive_gradients(exact: Any) -> None:
    for make in (Replace, Add, lambda v: SubspaceSet(torch.eye(32)[:4], v)):
        value = torch.linspace(-1, 1, 32, dtype=torch.float64).requires_grad_()
        edit = Intervention("resid_mid.1", make(value), positions=-1)
        result = exact.forward([[1, 2, 3]], interventions=[edit], grad=True)
        (gradient,) = torch.autograd.grad(result.logits[0, -1, 0], value)
        assert float(gradient.abs().max()) > 1e-6


def test_custom_says_whether_it_is_differentiable() -> None:
    assert Custom(lambda x, c: x).differentiable
    assert not Custom(lambda x, c: x.detach(), uses_gradient=False).differentiable


def test_custom_is_told_where_it_is(exact: Any, runs: Any) -> None:
    seen: list[tuple[Any, ...]] = []

    def note(live: Tensor, context: EditContext) -> Tensor:
        columns = (context.prompts, context.positions, context.heads)
        seen.extend(zip(*(column.tolist() for column in columns), strict=True))
        assert str(context.site) == "blocks.1.attn.hook_z"
        return live

    edit = Intervention("z.1", Custom(note), positions=(0, -1), heads=(3,), prompts=(0, 1))
    exact.forward(runs["base"], interventions=[edit])
    assert seen == [(0, 0, 3), (0, 6, 3), (1, 0, 3), (1, 4, 3)]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, c: x[..., :3], r"returned shape \(1, 3\), where a tensor of shape \(1, 32\)"),
        (lambda x, c: None, "returned a NoneType"),
        (lambda x, c: c.from_run(FromRun("other")), "without having said so"),
        (lambda x, c: c.mean_of("other", False), "without having said so"),
    ],
)
def test_custom_errors(exact: Any, runs: Any, function: Any, message: str) -> None:
    edit = Intervention("resid_pre.1", Custom(function), positions=0)
    # The run is given and read elsewhere, but not at this site.
    other = Intervention("resid_pre.0", Replace(FromRun("other")))
    with pytest.raises(InputError, match=message):
        exact.forward(runs["base"].select([0]), interventions=[other, edit], runs=runs)


def test_a_custom_function_keeps_its_own_exceptions(exact: Any) -> None:
    def fail(live: Tensor, context: EditContext) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        exact.forward([[1, 2]], interventions=[Intervention("embed", Custom(fail))])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Intervention("resid_pre.3", Zero()), "has 3 layers"),
        (Intervention("z.0.4", Zero()), "names head 4, but .* has 4 heads"),
        (Intervention("k.0", Zero(), heads=7), "names head 7, but .* heads"),
        (Intervention("resid_pre.0", Zero(), positions=5), "Position 5 does not exist in prompt 1"),
        (Intervention("resid_pre.0", Zero(), positions=-6), "Position -6 does not exist in prompt 1"),
        (Intervention("resid_pre.0", Zero(), prompts=3), "There is no prompt 3 in a batch of 3"),
        (Intervention("resid_pre.0", Zero(), prompts=-1), "There is no prompt -1"),
        (Intervention("resid_pre.0", Replace(torch.zeros(31))), "does not fit its vectors of 32"),
        (Intervention("resid_pre.0", Replace(torch.zeros(2, 2, 32))), "does not fit"),
        (Intervention("resid_pre.0", ProjectOut(torch.ones(31))), "have 31 features"),
        (Intervention("resid_pre.0", ProjectOut(torch.zeros(32))), "length zero"),
        (Intervention("resid_pre.0", Replace(FromRun("none"))), "reads the run 'none'"),
        (Intervention("resid_pre.0", Mean("none")), "reads the run 'none'"),
        (Intervention("resid_pre.0", Replace(FromRun("other", site="mlp_post.0"))), "has d_mlp features"),
        (Intervention("attn_out.0", Replace(FromRun("other", site="result.0"))), "one vector per head"),
        (
            Intervention("resid_pre.0", Replace(FromRun("other", prompt=3))),
            "from prompt 3 of a run that has 3",
        ),
        (Intervention("resid_pre.0", Replace(FromRun("other", prompt=1))), "Position 5 of .* has 5 tokens"),
        (Intervention("resid_pre.0", Mean("short", positional=True)), "has 2 positions"),
    ],
)
def test_bad_interventions_are_one_sentence(exact: Any, runs: Any, edit: Intervention, message: str) -> None:
    from mech_interp.backends.tokens import Tokens

    given = {**runs, "short": Tokens.from_lists([[1, 2]] * 3)}
    with pytest.raises(InputError, match=message) as caught:
        exact.forward(runs["base"], interventions=[edit], runs=given)
    assert caught.value.hint


def test_values_of_other_runs_need_those_runs(exact: Any) -> None:
    for operation in (Replace(FromRun("other")), Mean("other")):
        with pytest.raises(InputError, match="'other', which was not given"):
            exact.forward([[1, 2]], interventions=[Intervention("embed", operation)])


def test_what_the_architecture_lacks_is_refused_with_the_reason(gpt2: Any, llama: Any) -> None:
    for model, site, reason in (
        (gpt2, "rot_q.0", "no rotary embedding; use q"),
        (gpt2, "mlp_pre_linear.0", "not gated"),
        (llama, "pos_embed", "no learned position embedding"),
        (llama, "router_logits.0", "not a mixture of experts"),
    ):
        with pytest.raises(InputError, match=reason):
            model.forward([[1]], capture=[site])
        with pytest.raises(InputError, match=reason):
            model.forward([[1]], interventions=[Intervention(site, Zero())])
