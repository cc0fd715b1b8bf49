"""Forward passes against two oracles: the library's own forward, and a decoder written out plainly."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from tiny_models import ARCHITECTURES, hf_model, largest_gap, opened, random_ids
from torch import Tensor

from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.protocol import InstrumentedModel
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError, NotFiredError
from mech_interp.interventions import Add, Intervention, Replace, Zero
from mech_interp.sites import KINDS, Site

PROMPTS = random_ids((7, 1, 4), seed=5)


def every_site(model: Any) -> list[Site]:
    found = []
    for kind in sorted(model.info.site_kinds):
        found += [Site(kind, layer) for layer in (range(3) if KINDS[kind].in_block else [None])]
    return found


def real(value: Tensor, length: int, site: Site) -> Tensor:
    """A captured tensor of one prompt without its filled columns."""
    return value[:, :length, :length] if site.spec.over_keys else value[:length]


def test_a_model_is_an_instrumented_model(model: Any) -> None:
    assert isinstance(model, InstrumentedModel)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_the_library(architecture: str, attention: str) -> None:
    module = hf_model(architecture, attention=attention)
    model = open_module(module)
    assert model.info.attention == attention
    ours = model.forward(PROMPTS).logits
    for i, ids in enumerate(PROMPTS):
        theirs = module(torch.tensor([ids])).logits[0]
        assert largest_gap(ours[i, : len(ids)], theirs) < 2e-5


def test_logits_equal_the_library_in_float64(exact: Any) -> None:
    ours = exact.forward(PROMPTS).logits
    for i, ids in enumerate(PROMPTS):
        assert largest_gap(ours[i, : len(ids)], exact.module(torch.tensor([ids])).logits[0]) < 1e-12


def test_every_site_equals_the_plain_decoder(exact: Any) -> None:
    sites = every_site(exact)
    found = exact.forward(PROMPTS, capture=sites)
    assert {site.kind for site in sites} == set(exact.info.site_kinds)
    for i, ids in enumerate(PROMPTS):
        seen: dict[Site, Tensor] = {}

        def keep(kind: str, layer: int | None, value: Tensor, seen: dict[Site, Tensor] = seen) -> Tensor:
            seen[Site(kind, layer)] = value
            return value

        logits = reference.run(exact.module, ids, keep)
        assert largest_gap(found.logits[i, : len(ids)], logits) < 1e-10
        assert set(seen) == set(sites)
        for site in sites:
            ours = real(found.activations[site][i], len(ids), site)
            assert largest_gap(ours, seen[site]) < 1e-10, site


def hooked(module: Any, ids: list[int]) -> dict[Site, Tensor]:
    """Sites that plain hooks on the library's modules reach, for one prompt."""
    seen: dict[Site, Tensor] = {}
    handles = []

    def after(part: Any, site: Site) -> None:
        def hook(_: Any, __: Any, out: Any) -> None:
            seen[site] = (out[0] if isinstance(out, tuple) else out)[0].detach()

        handles.append(part.register_forward_hook(hook))

    def before(part: Any, site: Site) -> None:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            seen[site] = (args[0] if args else kwargs["hidden_states"])[0].detach()

        handles.append(part.register_forward_pre_hook(hook, with_kwargs=True))

    if module.config.model_type == "gpt2":
        stack = module.transformer
        (
            after(stack.wte, Site("embed")),
            after(stack.wpe, Site("pos_embed")),
            after(stack.ln_f, Site("ln_final")),
        )
        for layer, block in enumerate(stack.h):
            for part, kind in ((block.ln_1, "ln1"), (block.ln_2, "ln2"), (block.attn, "attn_out_own")):
                after(part, Site(kind, layer))
            for part, kind in (
                (block.mlp.c_fc, "mlp_pre"),
                (block.mlp, "mlp_out_own"),
                (block, "resid_post"),
            ):
                after(part, Site(kind, layer))
            for part, kind in ((block, "resid_pre"), (block.ln_2, "resid_mid"), (block.attn.c_proj, "z")):
                before(part, Site(kind, layer))
            before(block.mlp.c_proj, Site("mlp_post", layer))
    else:
        stack = module.model
        after(stack.embed_tokens, Site("embed")), after(stack.norm, Site("ln_final"))
        for layer, block in enumerate(stack.layers):
            own, mlp = block.self_attn, block.mlp
            for part, kind in (
                (own.q_proj, "q"),
                (own.k_proj, "k"),
                (own.v_proj, "v"),
                (own, "attn_out_own"),
            ):
                after(part, Site(kind, layer))
            for part, kind in (
                (mlp.gate_proj, "mlp_pre"),
                (mlp.up_proj, "mlp_pre_linear"),
                (mlp, "mlp_out_own"),
            ):
                after(part, Site(kind, layer))
            after(block.input_layernorm, Site("ln1", layer)), after(block, Site("resid_post", layer))
            after(block.post_attention_layernorm, Site("ln2", layer))
            for part, kind in ((block, "resid_pre"), (own.o_proj, "z"), (mlp.down_proj, "mlp_post")):
                before(part, Site(kind, layer))
            before(block.post_attention_layernorm, Site("resid_mid", layer))
    try:
        with torch.no_grad():
            seen[Site("logits")] = module(torch.tensor([ids])).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return seen


def test_captures_equal_plain_hooks(model: Any) -> None:
    ids = PROMPTS[0]
    expected = hooked(model.module, ids)
    found = model.forward([ids], capture=list(expected)).activations
    assert len(expected) > 30
    for site, value in expected.items():
        ours = found[site][0]
        assert largest_gap(ours.reshape(value.shape), value) < 2e-5, site


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_patterns_equal_the_library(architecture: str) -> None:
    module = hf_model(architecture, attention="eager")
    ids = PROMPTS[0]
    theirs = module(torch.tensor([ids]), output_attentions=True).attentions
    for attention in ("eager", "sdpa"):
        model = opened(architecture, attention=attention)
        found = model.forward([ids], capture=[Site("pattern", layer) for layer in range(3)]).activations
        for layer in range(3):
            assert largest_gap(found[Site("pattern", layer)], theirs[layer]) < 1e-6


def library_with(module: Any, ids: list[int], part: Any, change: Any, *, inputs: bool = False) -> Tensor:
    """The library's logits of one prompt while a plain hook changes a module's output or input."""

    def pre(_: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def post(_: Any, __: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    handle = (
        part.register_forward_pre_hook(pre, with_kwargs=True) if inputs else part.register_forward_hook(post)
    )
    try:
        with torch.no_grad():
            return module(torch.tensor([ids])).logits[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["resid_pre", "mlp_out", "attn_out", "z"])
@pytest.mark.parametrize("name", ["replace", "zero", "add"])
def test_edits_equal_plain_hooks(model: Any, kind: str, name: str) -> None:
    ids, layer, position, head = PROMPTS[0], 1, 3, 2
    module = model.module
    block = (module.transformer.h if hasattr(module, "transformer") else module.model.layers)[layer]
    attention = block.attn if hasattr(block, "attn") else block.self_attn
    projection = attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj
    part = {"resid_pre": block, "mlp_out": block.mlp, "attn_out": attention, "z": projection}[kind]
    width = model.info.d_head if kind == "z" else model.info.d_model
    value = torch.linspace(-2, 2, width)
    span = slice(head * width, (head + 1) * width) if kind == "z" else slice(None)

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        old = x[:, position, span]
        x[:, position, span] = {"replace": value, "zero": 0 * value, "add": old + 0.5 * value}[name]
        return x

    expected = library_with(module, ids, part, change, inputs=kind in ("resid_pre", "z"))
    operation = {"replace": Replace(value), "zero": Zero(), "add": Add(value, 0.5)}[name]
    edit = Intervention(Site(kind, layer, head if kind == "z" else None), operation, positions=position - 7)
    assert largest_gap(model.forward([ids], interventions=[edit]).logits[0], expected) < 2e-5
    assert largest_gap(model.forward([ids]).logits[0], expected) > 1e-2


def test_gradients_equal_autograd_through_the_library(exact: Any) -> None:
    ids, layer = PROMPTS[0], 1
    module = exact.module
    block = (module.transformer.h if hasattr(module, "transformer") else module.model.layers)[layer]
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, out: Any) -> Any:
            value = out[0] if isinstance(out, tuple) else out
            if not value.requires_grad:
                value.requires_grad_()
            value.retain_grad()
            kept[name] = value

        return hook

    embedding = module.transformer.wte if hasattr(module, "transformer") else module.model.embed_tokens
    attention = block.attn if hasattr(block, "attn") else block.self_attn
    parts = {"embed": embedding, "attn_out": attention, "mlp_out": block.mlp, "resid_post": block}
    handles = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    module(torch.tensor([ids])).logits[0, -1, :5].square().sum().backward()
    for handle in handles:
        handle.remove()
    sites = [Site("embed"), *(Site(kind, layer) for kind in ("attn_out", "mlp_out", "resid_post"))]
    result = exact.forward([ids], capture=sites, grad=True)
    loss = result.logits[0, -1, :5].square().sum()
    gradients = torch.autograd.grad(loss, [result.activations[site] for site in sites])
    for site, gradient in zip(sites, gradients, strict=True):
        assert largest_gap(gradient, kept[site.kind].grad) < 1e-9, site
        assert float(gradient.abs().max()) > 1e-6


def test_every_site_has_the_gradient_of_finite_differences(exact: Any) -> None:
    """A step along the gradient's own direction changes the logits by as much as the gradient says."""
    ids = PROMPTS[0]
    sites = every_site(exact)
    result = exact.forward([ids], capture=sites, grad=True)
    gradients = torch.autograd.grad(result.logits[0, -1, 3], [result.activations[site] for site in sites])
    for site, gradient in zip(sites, gradients, strict=True):
        if site.kind == "pos_embed":
            gradient = gradient.expand(1, *gradient.shape[1:])
        ups_and_downs = []
        norm = float(gradient.norm())
        assert norm > 1e-7, site
        for sign in (1, -1):
            step = sign * 1e-5 / norm * gradient[0]

            def move(
                kind: str, layer: int | None, value: Tensor, site: Site = site, step: Tensor = step
            ) -> Tensor:
                return value + step if (kind, layer) == (site.kind, site.layer) else value

            ups_and_downs.append(float(reference.run(exact.module, ids, move)[-1, 3]))
        measured = (ups_and_downs[0] - ups_and_downs[1]) / 2e-5
        assert measured == pytest.approx(norm, rel=2e-4), site


def test_without_grad_nothing_is_recorded(model: Any) -> None:
    result = model.forward(PROMPTS, capture=["resid_post.0"])
    assert not result.logits.requires_grad
    assert not result.activations["resid_post.0"].requires_grad


def test_padding_on_either_side_changes_nothing(exact: Any) -> None:
    width = 9
    left = torch.tensor([[13] * (width - len(ids)) + ids for ids in PROMPTS])
    right = torch.tensor([ids + [13] * (width - len(ids)) for ids in PROMPTS])
    lengths = torch.tensor([len(ids) for ids in PROMPTS])[:, None]
    columns = torch.arange(width)[None]
    batches = {
        "left": Tokens.from_padded(left, columns >= width - lengths),
        "right": Tokens.from_padded(right, (columns < lengths).long()),
    }
    plain = exact.forward(PROMPTS, logits="last", capture=["z.1"])
    edit = Intervention("mlp_out.1", Zero(), positions=-1)
    edited = exact.forward(PROMPTS, logits="last", interventions=[edit]).logits
    for batch in batches.values():
        assert torch.equal(exact.forward(batch, logits="last").logits, plain.logits)
        assert torch.equal(exact.forward(batch, logits="last", interventions=[edit]).logits, edited)


def test_filled_columns_never_influence_real_ones(model: Any) -> None:
    sites = [Site(kind, 2) for kind in ("resid_pre", "z", "pattern", "mlp_out")]
    fills = [Tokens.from_lists(PROMPTS, fill=fill) for fill in (0, 41)]
    one, two = (model.forward(batch, capture=sites) for batch in fills)
    for i, ids in enumerate(PROMPTS):
        assert torch.equal(one.logits[i, : len(ids)], two.logits[i, : len(ids)])
        for site in sites:
            kept = [real(result.activations[site][i], len(ids), site) for result in (one, two)]
            assert torch.equal(*kept), site


def test_batch_companions_change_nothing(exact: Any) -> None:
    together = exact.forward(PROMPTS, logits="last").logits
    for i, ids in enumerate(PROMPTS):
        assert largest_gap(exact.forward([ids], logits="last").logits[0], together[i]) < 1e-12


def test_logits_choices(model: Any) -> None:
    every = model.forward(PROMPTS[:1] + PROMPTS[2:]).logits
    prompts = [PROMPTS[0], PROMPTS[2]]
    last = model.forward(prompts, logits="last").logits
    chosen = model.forward(prompts, logits=[-1, 0, -2, -1]).logits
    assert last.shape == (2, 97)
    assert chosen.shape == (2, 4, 97)
    for i, ids in enumerate(prompts):
        assert largest_gap(last[i], every[i, len(ids) - 1]) < 1e-5
        for column, position in enumerate((len(ids) - 1, 0, len(ids) - 2, len(ids) - 1)):
            assert largest_gap(chosen[i, column], every[i, position]) < 1e-5
    assert model.forward(prompts, logits="none").logits is None


def test_chosen_logits_see_interventions_at_the_end(model: Any) -> None:
    """Edits of the final norm and of the logits reach the chosen positions, and only their own."""
    value = torch.arange(97.0)
    edit = Intervention("logits", Replace(value), positions=-1)
    for choice, at in (("last", ()), ([-1], (0,)), ([0, -1], (1,))):
        logits = model.forward(PROMPTS[:1], interventions=[edit], logits=choice).logits[0]
        assert torch.equal(logits[at] if at else logits, value)
    assert not torch.equal(model.forward(PROMPTS[:1], interventions=[edit], logits=[0]).logits[0, 0], value)


def test_stop_after_gives_the_same_early_sites(model: Any) -> None:
    whole = model.forward(PROMPTS, capture=["resid_post.1"]).activations["resid_post.1"]
    early = model.forward(PROMPTS, capture=["resid_post.1"], stop_after=1)
    assert early.logits is None
    assert torch.equal(early.activations["resid_post.1"], whole)
    for layer in (-1, 3):
        with pytest.raises(InputError, match="stop_after"):
            model.forward(PROMPTS, stop_after=layer)


@pytest.mark.parametrize("site", ["resid_pre.2", "ln_final", "logits"])
def test_what_lies_beyond_the_stop_did_not_fire(model: Any, site: str) -> None:
    with pytest.raises(NotFiredError, match="Nothing was computed"):
        model.forward(PROMPTS, capture=[site], stop_after=1)
    with pytest.raises(NotFiredError, match="Nothing was computed"):
        model.forward(PROMPTS, interventions=[Intervention(site, Zero())], stop_after=1)


def test_single_heads_are_slices_of_the_whole(model: Any) -> None:
    sites = ["z.1.2", "k.1.1", "pattern.1.3", "result.1.0"]
    found = model.forward(PROMPTS, capture=[*sites, "z.1", "k.1", "pattern.1", "result.1"]).activations
    assert torch.equal(found["z.1.2"], found["z.1"][:, :, 2])
    assert torch.equal(found["k.1.1"], found["k.1"][:, :, 1])
    assert torch.equal(found["pattern.1.3"], found["pattern.1"][:, 3])
    assert torch.equal(found["result.1.0"], found["result.1"][:, :, 0])
    # A head of a captured whole can be asked for by name as well; what was not captured cannot.
    assert torch.equal(found["z.1.3"], found["z.1"][:, :, 3])
    with pytest.raises(NotFiredError, match="not captured"):
        found["z.2"]
    assert "z.1.3" in found
    assert not any(name in found for name in ("z.2", "nothing", 3))


def test_captures_see_the_value_after_interventions(model: Any) -> None:
    edit = Intervention("z.1.2", Zero(), positions=1)
    z = model.forward(PROMPTS[:1], capture=["z.1"], interventions=[edit]).activations["z.1"][0]
    assert not z[1, 2].any()
    assert z[1, 1].any()
    assert z[2, 2].any()


def test_capturing_changes_nothing(exact: Any) -> None:
    plain = exact.forward(PROMPTS).logits
    captured = exact.forward(PROMPTS, capture=every_site(exact)).logits
    lengths = [len(ids) for ids in PROMPTS]
    for i, n in enumerate(lengths):
        assert largest_gap(plain[i, :n], captured[i, :n]) < 1e-12


def test_the_callers_module_computes_the_same_afterwards(model: Any) -> None:
    ids = torch.tensor([PROMPTS[0]])
    before = model.module(ids).logits
    model.forward(PROMPTS, interventions=[Intervention("resid_pre.0", Zero())], capture=["z.0"])
    assert torch.equal(model.module(ids).logits, before)
