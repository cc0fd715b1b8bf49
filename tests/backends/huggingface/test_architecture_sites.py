"""The sites of every architecture: against plain hooks on the library's modules, its own attention
patterns and rotary embeddings, autograd through it, and definitions from weights.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import tiny_architectures as ta
import torch
from port_hooks import Seen
from tiny_models import largest_gap
from torch import Tensor

from mech_interp.backends.huggingface.layouts import mpt, parts
from mech_interp.interventions import Add, Intervention
from mech_interp.sites import Site


@pytest.fixture(params=ta.devices())
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ta.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_sites_equal_plain_hooks(name: str, device: str) -> None:
    ids = ta.prompts(name)[0]
    with ta.exact(name, device) as (model, bound):
        hooked = Seen(model)
        with torch.no_grad():
            hooked.run(ids)
        found = model.forward([ids], capture=list(hooked.values)).activations
    kinds = {site.kind for site in hooked.values}
    # These can be seen at some module of every architecture; no module shows what is clipped or capped.
    hidden = {kind for fact, kind in (("clipped", "v"), ("capped", "logits")) if fact in ta.facts(name)}
    expected = {"embed", "resid_pre", "v", "z", "attn_out", "mlp_out", "resid_post", "ln_final", "logits"}
    assert kinds >= expected - hidden
    assert not kinds & hidden
    for site, value in hooked.values.items():
        assert largest_gap(found[site], value) <= bound, site


def test_edits_equal_plain_hooks(name: str, device: str) -> None:
    """A vector added by a plain hook through a port's view changes the logits as an edit there does."""
    ids, position = ta.prompts(name)[0], 2
    with ta.exact(name, device) as (model, bound), torch.no_grad():
        plain = model.forward([ids]).logits[0]
        for site in Seen(model).ports:
            if site.layer not in (None, 1):
                continue
            width = model.forward([ids], capture=[site]).activations[site].shape[-1]
            value = torch.linspace(-1, 1, width, dtype=plain.dtype, device=plain.device)

            # resid_mid is seen where the next norm reads it; what is added there is added by attn_out.
            place = Site("attn_out", site.layer) if site.kind == "resid_mid" else site

            def write(at: Site, shown: Tensor, place: Site = place, value: Tensor = value) -> None:
                if at == place:
                    shown[:, position] += value

            expected = Seen(model, write).run(ids)
            edit = Intervention(site, Add(value), positions=position)
            found = model.forward([ids], interventions=[edit]).logits[0]
            assert largest_gap(found, expected) <= bound, site
            assert largest_gap(found, plain) > 1e-3, site


def test_gradients_equal_autograd_through_the_library(name: str, device: str) -> None:
    ids = ta.prompts(name)[0]
    deltas: dict[Site, Tensor] = {}

    def watch(site: Site, shown: Tensor) -> None:
        deltas[site] = torch.zeros_like(shown).requires_grad_()
        shown += deltas[site]

    with ta.exact(name, device) as (model, bound):
        hooked = Seen(model, watch)
        hooked.run(ids)[-1, :5].square().sum().backward()
        sites = [site for site in deltas if site.kind not in ("pos_embed", "resid_mid")]
        result = model.forward([ids], capture=sites, grad=True)
        loss = result.logits[0, -1, :5].square().sum()
        gradients = torch.autograd.grad(loss, [result.activations[site] for site in sites])
    for site, gradient in zip(sites, gradients, strict=True):
        size = float(gradient.abs().max())
        assert size > 1e-6, site
        assert largest_gap(gradient, deltas[site].grad) <= bound * max(1, size), site


def test_patterns_equal_the_library(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "fused" in ta.facts(name):  # here the library adds the bias twice when it is to show patterns
        home = sys.modules[type(ta.library_model(name)).__module__]
        real = home.build_alibi_tensor
        monkeypatch.setattr(home, "build_alibi_tensor", lambda *args, **options: real(*args, **options) / 2)
    with ta.exact(name, device) as (model, bound):
        for ids in ta.prompts(name):
            tokens = torch.tensor([ids], device=device)
            theirs = model.module(tokens, output_attentions=True).attentions
            sites = [Site("pattern", layer) for layer in range(ta.LAYERS)]
            found = model.forward([ids], capture=sites).activations
            for layer, site in enumerate(sites):
                assert largest_gap(found[site], theirs[layer]) <= bound, site


@pytest.mark.parametrize("name", [name for name in ta.NAMES if "rotary" in ta.facts(name)])
def test_rotary_equals_the_library(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """rot_q and rot_k are what the library's own function gives, in the features that it turns."""
    ids, turned = ta.prompts(name)[0], []
    with ta.exact(name, device) as (model, bound):
        home = sys.modules[type(model.layout.blocks[0].attention_module).__module__]
        real = home.apply_rotary_pos_emb

        def record(*args: Any, **options: Any) -> Any:
            out = real(*args, **options)
            turned.extend(out if isinstance(out, tuple) else (out,))
            return out

        with monkeypatch.context() as patch:
            patch.setattr(home, "apply_rotary_pos_emb", record)
            ta.library_logits(model, ids)
        at = [layer for layer, block in enumerate(model.layout.blocks) if block.rotary_kind is not None]
        assert len(turned) == 2 * len(at) > 0
        names = ("rot_k", "rot_q") if name == "gptj" else ("rot_q", "rot_k")
        sites = [Site(kind, layer) for layer in at for kind in names]
        found = model.forward([ids], capture=sites).activations
    for site, value in zip(sites, turned, strict=True):
        # [row, head, position, features] everywhere but in GPT-J, which turns before it splits.
        theirs = value if name == "gptj" else value.transpose(1, 2)
        ours = found[site][..., : theirs.shape[-1]]
        # Falcon repeats keys for each of their queries before it turns them.
        ours = ours.repeat_interleave(theirs.shape[2] // ours.shape[2], 2)
        assert largest_gap(ours, theirs) <= bound, site


def test_definitions_of_scores_and_results(name: str, device: str) -> None:
    """attn_scores from queries and keys, the pattern from them, z from the pattern, results from z."""
    ids = ta.prompts(name)[0]
    kinds = ("q", "k", "v", "attn_scores", "pattern", "z", "result", "attn_out_own")
    with ta.exact(name, device) as (model, bound):
        sites = [Site(kind, layer) for kind in kinds for layer in range(ta.LAYERS)]
        extra = [s for s in ta.every_site(model) if s.kind in ("rot_q", "rot_k")]
        seen = model.forward([ids], capture=sites + extra).activations
        for layer, block in enumerate(model.layout.blocks):
            q, k = seen[f"q.{layer}"], seen[f"k.{layer}"]
            if block.rotary_kind is not None:
                q, k = seen[f"rot_q.{layer}"], seen[f"rot_k.{layer}"]
            else:
                q, k = block.norm_qk(q, k)
            shared = model.info.n_heads // model.info.n_kv_heads
            scores = torch.stack(
                [q[0, :, head] @ k[0, :, head // shared].T for head in range(model.info.n_heads)]
            )
            scores = scores * block.scale
            if block.score_cap is not None:
                scores = block.score_cap * torch.tanh(scores / block.score_cap)
            positions = torch.arange(len(ids), device=device)
            bias = block.score_bias(positions[None], len(ids))
            scores = scores if bias is None else scores + bias[0]
            distance = positions[:, None] - positions
            window = len(ids) if block.window is None else block.window
            visible = (distance >= 0) & (distance < window)
            given = seen[f"attn_scores.{layer}"][0]
            assert largest_gap(given[:, visible], scores[:, visible]) <= bound * max(
                1, float(scores.abs().max())
            )
            assert bool((given[:, ~visible] < -1e30).all())
            pattern = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            assert largest_gap(seen[f"pattern.{layer}"][0], pattern) <= bound
            result = torch.einsum("phd,hdm->phm", seen[f"z.{layer}"][0], model.weights("W_O", layer))
            assert largest_gap(seen[f"result.{layer}"][0], result) <= bound
            total = result.sum(1)
            if "b_O" in block.weights():
                total = total + model.weights("b_O", layer)
            assert largest_gap(seen[f"attn_out_own.{layer}"][0], total) <= bound


def clip_of(model: Any) -> float:
    """Where queries, keys and values are clipped (infinity: they are not)."""
    config = model.module.config
    own, nested = config.to_dict(), getattr(config, "attn_config", None)
    return float(own.get("clip_qkv") or getattr(nested, "clip_qkv", None) or torch.inf)


def normed(x: Tensor, weights: dict[str, Tensor], norm: str, kind: str, eps: float) -> Tensor:
    """A norm written out from its weights; x itself where the architecture has none of that name."""
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    elif f"{norm}.w" not in weights:
        return x
    x = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    x = x * weights[f"{norm}.w"] if f"{norm}.w" in weights else x
    return x + weights[f"{norm}.b"] if f"{norm}.b" in weights else x


def test_weights_give_the_sites(name: str, device: str) -> None:
    """The weights, in the one convention, times the captured inputs are the captured outputs."""
    ids = ta.prompts(name)[0]
    with ta.exact(name, device) as (model, bound):
        info, layout = model.info, model.layout
        seen = model.forward([ids], capture=ta.every_site(model)).activations
        clip = clip_of(model)

        def close(found: Tensor, expected: Tensor, what: object) -> None:
            assert largest_gap(found, expected) <= bound * max(1, float(expected.abs().max())), what

        for layer, block in enumerate(layout.blocks):
            weights = block.weights()
            x = inner = seen[f"resid_pre.{layer}"]
            if "ln1" in info.site_kinds:
                inner = seen[f"ln1.{layer}"]
                close(inner, normed(x, weights, "ln1", info.norm, info.norm_eps), "ln1")
            for part in "qkv":
                made = torch.einsum("rpm,hmd->rphd", inner, weights[f"W_{part.upper()}"])
                made = made + weights.get(
                    f"b_{part.upper()}", torch.zeros((), dtype=made.dtype, device=device)
                )
                close(seen[f"{part}.{layer}"], made.clamp(-clip, clip), part)
            if not block.shared_norm:
                source = inner = x if block.parallel else seen[f"resid_mid.{layer}"]
                if "ln2" in info.site_kinds:
                    inner = seen[f"ln2.{layer}"]
                    close(inner, normed(source, weights, "ln2", info.norm, info.norm_eps), "ln2")
            if block.mixture is not None:
                continue
            first = "gate" if layout.gated else "in"
            for kind, part in (("mlp_pre", first), ("mlp_pre_linear", "in"))[: 1 + layout.gated]:
                made = inner @ weights[f"W_{part}"]
                made = made + weights.get(f"b_{part}", torch.zeros((), dtype=made.dtype, device=device))
                close(seen[f"{kind}.{layer}"], made, kind)
        outside = layout.weights()
        x = seen[f"resid_post.{ta.LAYERS - 1}"]
        close(seen["ln_final"], normed(x, outside, "ln_final", info.norm, info.norm_eps), "ln_final")
        logits = seen["ln_final"] @ outside["W_U"]
        logits = logits + outside["b_U"] if "b_U" in outside else logits
        close(seen["logits"], layout.softcap(logits), "logits")
        # A direction pulled back through the frozen norm gives each vector's contribution along it.
        direction = torch.linspace(-1, 1, info.d_model, dtype=x.dtype, device=device)
        bias = outside.get("ln_final.b", torch.zeros_like(direction))
        pulled = model.final_norm_direction(x, direction)
        close((x * pulled).sum(-1), (seen["ln_final"] - bias) @ direction, "final norm")


def test_token_embeddings(name: str, device: str) -> None:
    """embed is W_E of each token, up to the factor or norm that stands between it and the stream."""
    ids = ta.prompts(name)[0]
    with ta.exact(name, device) as (model, bound):
        seen = model.forward([ids], capture=["embed", "resid_pre.0"]).activations
        outside = model.layout.weights()
        rows, found = outside["W_E"][ids], seen["embed"][0]
        if ta.type_of(name) == "bloom":
            rows = normed(rows, outside, "ln_embed", "layer", model.info.norm_eps)
        factor = float((found * rows).sum() / rows.pow(2).sum())
        expected = model.info.d_model**0.5 if ta.type_of(name).startswith("gemma") else 1.0
        assert factor == pytest.approx(expected, rel=1e-2 if expected != 1 else 1e-6)
        assert largest_gap(found, factor * rows) <= bound * factor
        total = found + outside["W_pos"][: len(ids)] if "W_pos" in outside else found
        assert largest_gap(seen["resid_pre.0"][0], total) <= bound * factor


def test_alibi_slopes_are_those_of_the_paper() -> None:
    """Press et al. 2022: 2^(-8/n), 2^(-16/n), …; otherwise every other of the next power of two behind."""
    expected = {
        1: [8],
        2: [4, 8],
        4: [2, 4, 6, 8],
        6: [2, 4, 6, 8, 1, 3],
        8: [1, 2, 3, 4, 5, 6, 7, 8],
        12: [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5],
    }
    for n_heads, powers in expected.items():
        slopes = torch.tensor([2.0**-power for power in powers])
        assert largest_gap(parts.alibi_slopes(n_heads, torch.device("cpu")), slopes) < 1e-7
        assert largest_gap(mpt.alibi_slopes(n_heads, torch.device("cpu")), slopes) < 1e-7
