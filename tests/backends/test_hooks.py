"""Plain hooks on the library's model: against the default engine, and against a decoder written out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import Oracle, combinations, one_of_each
from tiny_architectures import (
    NAMES,
    all_double,
    every_site,
    implementations,
    library_model,
    prompts,
    rows_everywhere,
    three_runs,
)
from tiny_models import hf_llama, hf_model, largest_gap, random_ids
from torch import Tensor

from mech_interp.backends.hooks import HooksModel, open_loaded
from mech_interp.backends.huggingface.checkpoint import Loaded
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.metrics import Logits
from mech_interp.backends.protocol import Row
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, InputError
from mech_interp.interventions import Add, Custom, Intervention, Scale, Zero
from mech_interp.sites import Site

CASES = [(name, attention) for name in NAMES for attention in implementations(name)]
# Their attention does not go through the library's registry.
APART = {"bloom", "falcon", "gpt_neo", "gptj", "mpt"}


def hooked(module: Any, name: str = "mine") -> Any:
    """The module opened with plain hooks, which checks it."""
    return open_loaded(Loaded(module, None, name, "memory", "", ""))


@contextmanager
def both(name: str, attention: str) -> Iterator[tuple[Any, Any]]:
    """The hooks backend and the default engine around one float64 model of an architecture."""
    module = library_model(name, attention)
    with all_double(module):
        model = hooked(module.double())
        yield model, open_module(module, check=False)


def hidden_keys(site: Site, value: Tensor) -> Tensor:
    """Scores are compared at keys that are seen; others are the lowest number there is on both sides."""
    return value.masked_fill(value <= torch.finfo(value.dtype).min / 2, 0) if site.spec.over_keys else value


def at_tokens(site: Site, value: Tensor, tokens: Tokens) -> Tensor:
    """What a captured site holds at real tokens, prompt by prompt, and at keys up to the prompt's length."""
    parts = []
    for prompt, length in enumerate(tokens.lengths):
        own = value[prompt]
        parts.append(own[:, :length, :length] if site.spec.over_keys else own[:length])
    return torch.cat([hidden_keys(site, part).flatten() for part in parts])


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_every_site_of_every_architecture(name: str, attention: str) -> None:
    """Values, logits and gradients of a ragged batch equal the default engine's."""
    with both(name, attention) as (model, engine):
        tokens = Tokens.from_lists(prompts(name))
        sites = [site for site in every_site(model) if site.kind != "expert_indices"]
        results = [one.forward(tokens, capture=sites, grad=True) for one in (model, engine)]
        gradients = []
        for result in results:
            generator = torch.Generator().manual_seed(3)
            weight = torch.randn(result.logits.shape, generator=generator, dtype=torch.float64)
            total = (weight * result.logits)[tokens.mask].sum()
            found = [result.activations[site] for site in sites]
            gradients.append(torch.autograd.grad(total, found))
        assert largest_gap(*(r.logits[tokens.mask] for r in results)) <= 1e-9
        for at, site in enumerate(sites):
            values = [at_tokens(site, result.activations[site], tokens) for result in results]
            assert largest_gap(*values) <= 1e-9, site
            slopes = [at_tokens(site, found[at], tokens) for found in gradients]
            scale = max(1.0, float(slopes[1].abs().max()))
            assert largest_gap(*slopes) <= 1e-8 * scale, f"gradient at {site}"
            assert float(slopes[0].abs().max()) > 0, f"gradient at {site}"


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_edits_in_every_architecture(name: str, attention: str) -> None:
    """An edit at every site of every kind moves the logits as the default engine's rows do."""
    with both(name, attention) as (model, engine):
        runs, metric = three_runs(name), Logits((-1, 1))
        rows = [
            row
            for row in rows_everywhere(model)
            if all(edit.site.kind not in model.info.capture_only for edit in row.interventions)
        ]
        found = {result.index: result.value for result in model.rows(runs, rows, metric)}
        expected = {result.index: result.value for result in engine.rows(runs, rows, metric)}
        assert sorted(found) == list(range(len(rows)))
        for index, value in expected.items():
            scale = max(1.0, float(value.abs().max()))
            assert largest_gap(found[index], value) <= 1e-8 * scale, rows[index]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_offered(name: str) -> None:
    """Everything that the default engine has, but for what the library's attention keeps to itself."""
    module = library_model(name)
    info, engine = hooked(module).info, open_module(module, check=False).info
    lacking = engine.site_kinds - info.site_kinds
    inside = {"rot_q", "rot_k", "attn_scores"} if module.config.model_type in APART else set()
    fused = implementations(name) == ("sdpa",)
    assert lacking - {"q", "k", "v"} == (inside & engine.site_kinds) - _shown(info) | (
        {"pattern"} if fused and module.config.model_type in APART else set()
    )
    assert (info.capture_only.keys() == {"pattern"}) == (bool(inside) and not fused)
    assert info.backend == "hooks"
    for kind in lacking:
        assert "huggingface" in info.missing_kinds[kind]
    assert {str(one) for one in info.capabilities} >= {"capture", "intervene", "gradients", "rows", "weights"}


def _shown(info: Any) -> set[str]:
    return set(info.site_kinds)


@pytest.fixture(scope="module")
def plain(exact: Any) -> Any:
    """The float64 tiny models (GPT-2, Llama) with plain hooks."""
    return hooked(exact.module)


def test_every_operation_at_every_site_equals_the_written_out_decoder(plain: Any, runs: Any) -> None:
    """No code in common: one prompt, one vector, one operation at a time (noise apart)."""
    oracle = Oracle(plain, runs)
    rows = [row for row in one_of_each(plain, seed=21) if "Noise" not in repr(row.interventions)]
    rows += [
        row
        for row in combinations(plain, 60, seed=22)
        if all("Noise" not in repr(i) for i in row.interventions)
    ]
    assert len(rows) > 300
    for result in plain.rows(runs, rows, Logits((-1, 2))):
        row = rows[result.index]
        expected = oracle.logits(row.run, row.prompt, row.interventions)[[-1, 2]]
        scale = max(1.0, float(expected.abs().max()))
        assert largest_gap(result.value, expected) <= 1e-9 * scale, row


def test_captures_equal_the_written_out_decoder(plain: Any, runs: Any) -> None:
    oracle = Oracle(plain, runs)
    tokens = runs["base"]
    sites = every_site(plain)
    seen = plain.forward(tokens, capture=sites).activations
    for prompt, length in enumerate(tokens.lengths):
        one = tokens.select([prompt])
        for site in sites:
            expected = oracle.seen["base", prompt][site][None]
            own = (
                seen[site][prompt : prompt + 1, ..., :length] if site.spec.over_keys else seen[site][[prompt]]
            )
            assert largest_gap(at_tokens(site, own, one), at_tokens(site, expected, one)) <= 1e-10, site


def test_rows_equal_the_naive_rows_of_the_default_engine(plain: Any, exact: Any, runs: Any) -> None:
    """Noise and functions of the user's own included."""
    rows = [row for row in one_of_each(plain, seed=5) if "Noise" in repr(row) or "Custom" in repr(row)]
    assert len(rows) > 40
    for fast in plain.rows(runs, rows, Logits((-1,))):
        slow = next(iter(naive_rows(exact, runs, [rows[fast.index]], Logits((-1,)))))
        assert largest_gap(fast.value, slow.value) <= 1e-9


def test_generation_token_for_token(plain: Any, exact: Any) -> None:
    ids = random_ids((4, 7, 2), seed=3)
    edits = [
        Intervention("resid_post.1", Add(torch.linspace(-3, 3, 32)), positions=-1),
        Intervention("pattern.0", Scale(0.5), heads=1, phase="generated"),
        Intervention("z.2", Zero(), heads=2, phase="prompt"),
    ]
    made = []
    for interventions in ([], edits):
        mine, theirs = (
            one.generate(ids, max_new_tokens=6, interventions=interventions, stop_ids=[])
            for one in (plain, exact)
        )
        assert mine == theirs
        made.append(mine.ids)
    assert made[0] != made[1]


def test_weights_and_unembedding(plain: Any, exact: Any) -> None:
    for layer in range(3):
        for kind in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "ln1.w", "ln2.w"):
            assert torch.equal(plain.weights(kind, layer), exact.weights(kind, layer))
    assert torch.equal(plain.weights("W_Q", 1, 3), exact.weights("W_Q", 1)[3])
    result = plain.forward([[3, 1, 4, 1, 5]], capture=["resid_post.2", "ln_final"])
    last = result.activations["resid_post.2"]
    assert largest_gap(plain.unembed(last), result.logits) <= 1e-12
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    centred = last - last.mean(-1, keepdim=True) if plain.info.norm == "layer" else last
    pulled = plain.final_norm_direction(last, direction.expand_as(last))
    bias = plain.layout.weights().get("ln_final.b", torch.zeros(()))
    along = ((result.activations["ln_final"] - bias) * direction).sum(-1)
    assert largest_gap((pulled * centred).sum(-1), along) <= 1e-9


def test_patterns_that_can_only_be_read(runs: Any) -> None:
    model = hooked(library_model("gptj"))
    seen = model.forward([[1, 2, 3]], capture=["pattern.1"]).activations["pattern.1"]
    assert largest_gap(seen.sum(-1), torch.ones(1, 4, 3)) < 1e-5
    edit = Intervention("pattern.1", Zero())
    for attempt in (
        lambda: model.forward([[1, 2, 3]], interventions=[edit]),
        lambda: list(model.rows(runs["base"], [Row(0, (edit,))], Logits((-1,)))),
        lambda: model.generate([[1, 2, 3]], max_new_tokens=2, interventions=[edit]),
    ):
        with pytest.raises(CapabilityError, match="captured but not changed") as caught:
            attempt()
        assert "registry" in caught.value.hint
    with pytest.raises(InputError, match="outside its registry of attention functions"):
        model.forward([[1, 2, 3]], capture=["attn_scores.1"])


def test_no_patterns_where_asking_for_them_changes_the_model() -> None:
    """The library's Falcon computes without a mask when it is asked for patterns under fused attention."""
    assert "pattern" in hooked(library_model("falcon", "eager")).info.site_kinds
    model = hooked(library_model("falcon", "sdpa"))
    assert "pattern" in model.info.missing_kinds
    with pytest.raises(InputError, match="huggingface"):
        model.forward([[1, 2, 3]], capture=["pattern.0"])


def hooks_left(module: Any) -> int:
    """Hooks on any submodule."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_model_is_left_as_it_was(architecture: str, attention: str) -> None:
    """Hooks and the attention setting are undone, also when something inside a forward fails."""
    module = hf_model(architecture, attention=attention)
    ids = torch.tensor([[5, 3, 8]])
    before = module(ids).logits
    model = hooked(module)

    def explode(live: Tensor, context: Any) -> Tensor:
        assert hooks_left(module) > 0
        assert module.config._attn_implementation != attention
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.forward(
            [[5, 3, 8]],
            capture=["resid_pre.1"],
            interventions=[Intervention("pattern.1", Custom(explode)), Intervention("z.2", Zero())],
        )
    assert not hooks_left(module)
    assert module.config._attn_implementation == attention
    assert torch.equal(module(ids).logits, before)
    assert torch.equal(model.forward([[5, 3, 8]]).logits, before)


def test_only_what_is_wanted_is_hooked() -> None:
    module = hf_llama()
    model = hooked(module)
    counts: list[int] = []

    def count(live: Tensor, context: Any) -> Tensor:
        counts.append(hooks_left(module))
        assert module.config._attn_implementation == "sdpa"
        return live

    model.forward([[1, 2]], interventions=[Intervention("mlp_out.1", Custom(count))])
    assert counts == [1]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "mixtral"])
def test_padding_changes_nothing(name: str) -> None:
    """Each prompt of a ragged batch gives what it gives alone."""
    with both(name, implementations(name)[0]) as (model, _):
        ids = prompts(name)
        together = model.forward(ids, capture=["resid_post.2", "pattern.1"])
        for prompt, row in enumerate(ids):
            alone = model.forward([row], capture=["resid_post.2", "pattern.1"])
            assert largest_gap(together.logits[prompt, : len(row)], alone.logits[0]) < 1e-10
            for kind in ("resid_post.2", "pattern.1"):
                site, tokens = Site.parse(kind), Tokens.from_lists([row])
                pair = [r.activations[site][[at]] for r, at in ((together, prompt), (alone, 0))]
                assert largest_gap(*(at_tokens(site, one, tokens) for one in pair)) < 1e-10


def test_a_bidirectional_model() -> None:
    """Every position sees its whole prompt, and never the padding."""
    from mech_interp.backends.huggingface.layouts import tiny_module

    module = tiny_module("mech-planted", causal=False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model, engine = hooked(module), open_module(module)
    assert not model.info.causal
    tokens = Tokens.from_lists([[5, 3, 8, 1], [2, 7]])
    results = [one.forward(tokens, capture=["pattern.1", "resid_post.1"]) for one in (model, engine)]
    assert largest_gap(*(result.logits[tokens.mask] for result in results)) < 1e-5
    seen = results[0].activations["pattern.1"]
    assert float(seen[1, :, :2, 2:].abs().max()) == 0.0
    assert float(seen[1, :, 0, 1].min()) > 0.0


def test_half_precision() -> None:
    module = hf_llama().to(torch.bfloat16)
    model = hooked(module)
    tokens = [[3, 1, 4, 1]]
    seen = model.forward(tokens, capture=["pattern.1", "rot_q.0"]).activations
    expected = open_module(module, check=False).forward(tokens, capture=["pattern.1", "rot_q.0"]).activations
    for site in ("pattern.1", "rot_q.0"):
        assert seen[site].dtype is torch.bfloat16
        assert largest_gap(seen[site].float(), expected[site].float()) < 0.05


def test_the_bundled_model() -> None:
    """The same numbers, tokens and generation as the default backend on a trained checkpoint."""
    import mech_interp
    from mech_interp.backends.loading import load_model

    engine, model = mech_interp.load_model("tinyworld"), load_model("tinyworld", backend="hooks")
    assert isinstance(model, HooksModel)
    own = {"backend": "hooks", "capabilities": engine.info.capabilities - {"edges"}}
    assert model.info == replace(engine.info, **own)
    tokens = model.tokens(["The cat sat on the", "Anna gave the book to"])
    assert torch.equal(tokens.ids, engine.tokens(["The cat sat on the", "Anna gave the book to"]).ids)
    sites = every_site(model)
    results = [one.forward(tokens, capture=sites) for one in (model, engine)]
    assert largest_gap(*(result.logits[tokens.mask] for result in results)) < 1e-4
    for site in sites:
        left, right = (at_tokens(site, result.activations[site], tokens) for result in results)
        assert largest_gap(left, right) <= 1e-4 * max(1.0, float(right.abs().max())), site
    mine, theirs = (one.generate(["The cat"], max_new_tokens=8) for one in (model, engine))
    assert mine == theirs
