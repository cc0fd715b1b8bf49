"""The conformance suite: what every architecture with a layout must satisfy, on every device there is.

Everything is compared with the library's own modules on tiny random models; see `tiny_architectures`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_architectures as ta
import torch
from tiny_models import largest_gap

from mech_interp import load_model
from mech_interp.backends.checks import measure_identities
from mech_interp.backends.huggingface import layouts, opening
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.metrics import Logits
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, IdentityError, InputError
from mech_interp.interventions import Intervention, Zero
from mech_interp.sites import KINDS, Site

# Largest difference of a logit relative to the largest logit; seen: 2.4e-2 and 3.8e-3 at the worst, 6e-3
# and 1e-3 in the median architecture.
HALF = {torch.bfloat16: 4e-2, torch.float16: 8e-3}


@pytest.fixture(params=ta.devices())
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ta.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def gaps(model: Any, prompts: list[list[int]]) -> list[float]:
    """Largest difference of each prompt's logits, run in one ragged batch, from the library's own."""
    found = model.forward(prompts).logits
    return [largest_gap(found[i, : len(ids)], ta.library_logits(model, ids)) for i, ids in enumerate(prompts)]


def test_logits_equal_the_library(name: str, device: str) -> None:
    for attention in ta.implementations(name):
        model = ta.opened(name, attention, torch.float32, device)
        assert model.info.attention == attention
        assert max(gaps(model, ta.prompts(name))) <= 1e-4, attention
        assert float(ta.library_logits(model, ta.prompts(name)[0]).std()) > 0.1


def test_logits_equal_the_library_in_float64(name: str, device: str) -> None:
    for attention in ta.implementations(name):
        with ta.exact(name, device, attention) as (model, bound):
            assert max(gaps(model, ta.prompts(name))) <= bound, attention


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_near_the_library(name: str, device: str, dtype: torch.dtype) -> None:
    """Within a few roundings of the largest logit, under the same attention implementation."""
    for attention in ta.implementations(name):
        model = ta.opened(name, attention, dtype, device)
        assert model.info.dtype == str(dtype).removeprefix("torch.")
        prompts = ta.prompts(name)
        scale = max(float(ta.library_logits(model, ids).abs().max()) for ids in prompts)
        assert max(gaps(model, prompts)) <= HALF[dtype] * scale, attention


def test_facts(name: str, device: str) -> None:
    """What the layout says of the architecture is what is known of it."""
    info, true = ta.opened(name, ta.implementations(name)[0], torch.float32, device).info, ta.facts(name)
    layout = layouts.layouts()[ta.type_of(name)]
    assert set(info.missing_kinds) == ta.missing_kinds(name)
    assert info.site_kinds == set(KINDS) - ta.missing_kinds(name)
    assert (info.n_layers, info.vocabulary, info.context) == (ta.LAYERS, ta.VOCABULARY, ta.CONTEXT)
    assert layout.title
    model = ta.opened(name, ta.implementations(name)[0], torch.float32, device)
    for block in model.layout.blocks:
        assert block.parallel == ("parallel" in true)
        assert block.shared_norm == ("shared" in true)


def test_what_is_missing_is_refused_with_the_reason(name: str, device: str) -> None:
    model = ta.opened(name, ta.implementations(name)[0], torch.float32, device)
    lacking = [Site(kind, 0 if KINDS[kind].in_block else None) for kind in model.info.missing_kinds]
    lacking += [Site(*place) for place in model.info.missing_sites]
    assert lacking
    for site in lacking:
        for options in ({"capture": [site]}, {"interventions": [Intervention(site, Zero())]}):
            with pytest.raises(InputError, match=f"has no {site.kind}|has no {site.name}") as caught:
                model.forward([[1, 2]], **options)
            reason = (
                model.info.missing_kinds.get(site.kind) or model.info.missing_sites[site.kind, site.layer]
            )
            assert reason in caught.value.message


def test_every_identity_holds(name: str, device: str) -> None:
    with ta.exact(name, device) as (model, bound):
        found = measure_identities(model, lambda tokens: opening.library_logits(model.module, tokens))
    true = ta.facts(name)
    in_block = {
        "resid_pre + attn_out + mlp_out = resid_post",
        "pattern rows sum to 1",
        "pattern · v = z",
        "sum over heads of z W_O + b_O = attn.hook_out",
        "what is added by the sublayer = its own output through ln1_post",
        "what is added by the sublayer = its own output through ln2_post",
    }
    if "parallel" not in true:
        in_block.add("resid_pre + attn_out = resid_mid")
    if "experts" not in true:
        in_block.add("mlp_post W_out + b_out = mlp.hook_out")
    assert [identity.layer for identity in found[:1]] == [None]
    for layer in range(ta.LAYERS):
        assert {identity.name for identity in found if identity.layer == layer} == in_block
    assert len(found) == 1 + ta.LAYERS * len(in_block)
    for identity in found:
        assert identity.deviation <= bound, identity


def test_padding_on_either_side_changes_nothing(name: str, device: str) -> None:
    prompts = ta.prompts(name)
    width = max(map(len, prompts))
    left = torch.tensor([[13] * (width - len(ids)) + ids for ids in prompts])
    right = torch.tensor([ids + [13] * (width - len(ids)) for ids in prompts])
    lengths = torch.tensor([len(ids) for ids in prompts])[:, None]
    columns = torch.arange(width)[None]
    batches = [
        Tokens.from_padded(left, columns >= width - lengths),
        Tokens.from_padded(right, columns < lengths),
        Tokens.from_lists(prompts, fill=41),
    ]
    for attention in ta.implementations(name):
        with ta.exact(name, device, attention) as (model, bound):
            alone = [model.forward([ids], logits="last").logits[0] for ids in prompts]
            for batch in batches:
                found = model.forward(batch, logits="last").logits
                for i in range(len(prompts)):
                    assert largest_gap(found[i], alone[i]) <= bound, attention


def test_rows_equal_naive_at_every_site(name: str, device: str) -> None:
    runs = ta.three_runs(name)
    for attention in ta.implementations(name):
        model = ta.opened(name, attention, torch.float32, device)
        rows, metric = ta.rows_everywhere(model), Logits((-1, 1))
        assert {row.interventions[0].site.kind for row in rows} == model.info.site_kinds
        fast = {result.index: result for result in model.rows(runs, rows, metric)}
        slow = list(naive_rows(model, runs, rows, metric))
        assert sorted(fast) == list(range(len(rows)))
        for result in slow:
            scale = max(1.0, float(result.value.abs().max()))
            where = (attention, rows[result.index])
            assert largest_gap(fast[result.index].value, result.value) <= 1e-5 * scale, where
        computed = sum(result.computed for result in fast.values())
        assert computed > 0.5 * len(rows)


def test_greedy_generation_equals_the_library(name: str, device: str) -> None:
    """Token for token; the longest continuation runs past any window and fills the context."""
    for attention in ta.implementations(name):
        model = ta.opened(name, attention, torch.float32, device)
        prompts = [ta.prompts(name)[0], ta.prompts(name)[1], ta.prompts(name)[2][:12]]
        new = ta.CONTEXT - 12
        expected = []
        for ids in prompts:
            tokens = torch.tensor([ids], device=device)
            out = model.module.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
            expected.append(tuple(out[0, len(ids) :].tolist()))
        assert list(model.generate(prompts, max_new_tokens=new, stop_ids=()).ids) == expected, attention


def mistakes(model: Any) -> dict[str, Any]:
    """Ways in which a layout could be wrong: what to do to each of its blocks, by name."""
    blocks = model.layout.blocks

    def swap(block: Any) -> None:
        real = block.qkv
        block.qkv = lambda x: (real(x)[1], real(x)[0], real(x)[2])

    def drop(piece: str) -> Any:
        return lambda block: setattr(block, piece, lambda x: x)

    def change(**facts: Any) -> Any:
        return lambda block: [setattr(block, key, value) for key, value in facts.items()]

    found = {
        "no norm before attention": drop("norm1"),
        "wrong scale": lambda block: setattr(block, "scale", 1.3 * block.scale),
        "no MLP activation": lambda block: setattr(block, "mlp_activation", lambda pre, linear: pre),
    }
    if model.info.n_heads == model.info.n_kv_heads:
        found["queries and keys swapped"] = swap
    if any(block.rotary_kind for block in blocks):
        found["no rotary"] = change(rotary_kind=None)
    if any(block.window for block in blocks):
        found["no window"] = change(window=None)
    else:
        found["a window"] = change(window=4)
    if not blocks[0].shared_norm:
        found["no norm before the MLP"] = drop("norm2")
    if any(block.score_cap for block in blocks):
        found["no cap on scores"] = change(score_cap=None)
    if blocks[0].post_attention is not None:
        found["no norm after attention"] = change(post_attention=None)
        found["no norm after the MLP"] = change(post_mlp=None)
    if blocks[0].score_bias(torch.zeros(1, 1, dtype=torch.long), 1) is not None:
        found["no bias on scores"] = change(score_bias=lambda positions, n: None)
    q = torch.linspace(-1, 2, model.info.d_head, device=model.info.device).expand(
        1, 1, model.info.n_heads, -1
    )
    if not torch.equal(blocks[0].norm_qk(q, q[:, :, : model.info.n_kv_heads])[0], q):
        found["no norm of queries and keys"] = change(norm_qk=lambda q, k: (q, k))
    return found


def test_a_wrong_layout_is_refused_at_load(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ta.library_model(name).to(device)
    model = open_module(module)
    untouched = {"norm1": "ln1.w", "norm2": "ln2.w"}
    for mistake, spoil in mistakes(model).items():
        layout = layouts.layout_for(module)
        weights = layout.blocks[0].weights()
        if "norm before" in mistake and untouched["norm2" if "MLP" in mistake else "norm1"] not in weights:
            continue  # the architecture has no such norm
        if mistake == "no MLP activation" and layout.blocks[0].mixture is not None:
            continue
        for block in layout.blocks:
            spoil(block)
        with monkeypatch.context() as patch:
            patch.setattr(opening, "layout_for", lambda _, layout=layout: layout)
            try:
                open_module(module)
            except IdentityError:
                continue
        raise AssertionError(f"{name} opened with this mistake: {mistake}")


def test_a_saved_checkpoint_opens_from_its_folder(name: str, device: str, tmp_path: Path) -> None:
    """Asked for fused attention it gets that where the library has it; the numbers are the saved model's."""
    module = ta.library_model(name)
    module.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device=device, dtype="float32", attention="sdpa")
    assert model.info.attention == ta.implementations(name)[-1]
    assert model.info.architecture == type(module).__name__
    ids = ta.prompts(name)[0]
    expected = ta.opened(name, model.info.attention, torch.float32, device).forward([ids]).logits
    assert largest_gap(model.forward([ids]).logits, expected) <= 1e-5


@pytest.mark.parametrize("device", ta.all_devices())
def test_the_suite_runs_on(device: str) -> None:
    if not ta.all_devices()[device]:
        pytest.skip(f"this machine has no {device} device")
    model = ta.opened("gpt2", "sdpa", torch.float32, device)
    assert model.info.device.split(":")[0] == device
    assert model.forward([[1, 2]]).logits.device.type == device


def test_the_suite_covers_what_it_should() -> None:
    """Every architecture with a layout is here, and every variant changes the library's model."""
    assert set(layouts.supported()) <= set(ta.NAMES)
    for name, (model_type, changes) in ta.VARIANTS.items():
        if model_type in layouts.supported():
            assert name in ta.NAMES
            plain, changed = (ta.library_model(case).config.to_dict() for case in (model_type, name))
            assert plain != changed, changes


@pytest.mark.parametrize("name", ["falcon rw", "falcon parallel alibi"])
def test_falcon_with_alibi_is_refused_under_eager_attention(name: str) -> None:
    """The library's eager attention adds the bias twice there; when it no longer does, open it again."""
    eager, fused = ta.library_model(name, "eager"), ta.library_model(name, "sdpa")
    ids = torch.tensor([ta.prompts(name)[0]])
    assert largest_gap(eager(ids).logits, fused(ids).logits) > 1e-2
    with pytest.raises(CapabilityError, match="adds twice"):
        open_module(eager)
    open_module(fused)


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("opt", {"do_layer_norm_before": False}, "norms behind the sublayers"),
        ("opt", {"_remove_final_layer_norm": True}, "no final norm"),
        ("opt", {"word_embed_proj_dim": 16}, "projects embeddings of width 16"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "as the residual stream"),
    ],
)
def test_forms_that_a_layout_does_not_cover_are_refused(
    model_type: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CapabilityError, match=reason):
        open_module(layouts.tiny_module(model_type, **changes))
