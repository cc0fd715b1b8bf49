"""What is peculiar to each architecture near Llama; the conformance suite holds what all must satisfy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_architectures as ta
import torch
from tiny_architectures import changed as library
from tiny_models import largest_gap, random_ids
from torch import Tensor

from mech_interp.backends.checks import LONGEST_PROBE, probe_tokens
from mech_interp.backends.huggingface import layouts, opening
from mech_interp.backends.huggingface.checkpoint import open_folder
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.metrics import Logits
from mech_interp.backends.protocol import Row
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.errors import CapabilityError, IdentityError, InputError
from mech_interp.interventions import Add, FromRun, Intervention, Operation, Replace, Scale
from mech_interp.sites import Site


def gap(model: HuggingFaceModel, ids: list[int]) -> float:
    with torch.no_grad():
        theirs = model.module(torch.tensor([ids]), use_cache=False).logits[0]
    return largest_gap(model.forward([ids]).logits[0], theirs)


# Rotary bases and scalings, from their published definitions.


def turned(x: Tensor, rates: Tensor) -> Tensor:
    """x [position, head, 2n] with each pair (i, i + n) turned by position * rates[i]."""
    n = len(rates)
    angles = torch.arange(len(x), dtype=torch.float64)[:, None] * rates
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x[..., :n].double(), x[..., n : 2 * n].double()
    parts = (first * cos - second * sin, second * cos + first * sin, x[..., 2 * n :].double())
    return torch.cat(parts, -1)


def plain_rates(theta: float, n_turned: int) -> Tensor:
    return torch.tensor([theta ** (-2 * i / n_turned) for i in range(n_turned // 2)], dtype=torch.float64)


def llama3_rates(theta: float, n: int, factor: float, low: float, high: float, context: int) -> Tensor:
    """Llama 3.1: long wavelengths are divided, short ones kept, those between interpolated."""
    rates = []
    for rate in plain_rates(theta, n).tolist():
        turns = context * rate / (2 * math.pi)  # full turns within the original context
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        rates.append((1 - share) * rate / factor + share * rate)
    return torch.tensor(rates, dtype=torch.float64)


def test_llama_3_rope_at_long_positions() -> None:
    """Far past the original context: sites by the formula, logits by the library, rows by forwards."""
    options = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "original_max_position_embeddings": 48, **options}
    changes = {"max_position_embeddings": 512, "rope_parameters": rope, "head_dim": 16}
    model = open_module(library("llama", "sdpa", **changes))
    ids = random_ids((400,), seed=3)[0]
    assert gap(model, ids) <= 1e-4
    seen = model.forward([ids], capture=["q.1", "rot_q.1", "k.1", "rot_k.1"]).activations
    rates = llama3_rates(500.0, 16, 8.0, 1.0, 4.0, 48)
    plain = plain_rates(500.0, 16)
    kinds = [torch.isclose(rates, plain), torch.isclose(rates, plain / 8)]
    assert all(bool(kind.any()) for kind in [*kinds, ~(kinds[0] | kinds[1])]), "all three cases occur"
    for part in "qk":
        found, before = seen[f"rot_{part}.1"][0], seen[f"{part}.1"][0]
        assert largest_gap(found.double(), turned(before, rates)) <= 1e-3
        assert largest_gap(found.double(), turned(before, plain)) > 1
    edit = Intervention(Site("z", 1), Add(torch.ones(16)), positions=350, heads=1)
    ours = next(iter(model.rows(model.tokens([ids]), [Row(0, (edit,))], Logits((-1,))))).value
    theirs = model.forward([ids], interventions=[edit], logits="last").logits[0]
    assert largest_gap(ours.squeeze(), theirs.squeeze()) <= 1e-4


def test_gemma_3_turns_local_and_global_layers_by_different_bases() -> None:
    model = open_module(library("gemma3_text"))
    ids = ta.prompts("gemma3_text")[2]
    kinds = [f"{kind}.{layer}" for layer in range(3) for kind in ("q", "rot_q")]
    seen = model.forward([ids], capture=kinds).activations
    bases = [plain_rates(100.0, 12), plain_rates(5000.0, 12) / 4, plain_rates(100.0, 12)]
    for layer, block in enumerate(model.layout.blocks):
        normed, _ = block.norm_qk(seen[f"q.{layer}"], seen[f"q.{layer}"][:, :, :2])
        assert largest_gap(seen[f"rot_q.{layer}"][0].double(), turned(normed[0], bases[layer])) <= 1e-5


def test_phi_3_turns_some_features_by_its_short_factors() -> None:
    model = open_module(library("phi3"))
    ids = ta.prompts("phi3")[2]
    seen = model.forward([ids], capture=["q.0", "rot_q.0"]).activations
    before, rates = seen["q.0"][0].double(), plain_rates(10000.0, 6) / torch.tensor([1.0, 1.5, 2.5]).double()
    # LongRoPE also scales what is turned, by the ratio of the contexts (48 to 24).
    factor = math.sqrt(1 + math.log(2) / math.log(24))
    expected = turned(before, rates)
    expected[..., :6] *= factor
    assert largest_gap(seen["rot_q.0"][0].double(), expected) <= 1e-5


def test_a_prompt_whose_length_would_change_every_position_is_refused() -> None:
    """Past the original context LongRoPE turns even the first positions otherwise, so prefixes differ."""
    module = library("phi3", "sdpa")
    model = open_module(module)
    ids = random_ids((30,), seed=4)[0]
    with torch.no_grad():
        whole, prefix = (module(torch.tensor([part])).logits[0, :20] for part in (ids, ids[:20]))
    assert largest_gap(whole, prefix) > 1e-2
    assert model.info.context == 24
    assert "longrope" in model.info.notice
    assert "24 of 48" in model.info.notice
    assert gap(model, ids[:24]) <= 1e-4
    with pytest.raises(InputError, match=r"25 tokens, but .* reads at most 24"):
        model.forward([ids[:25]])
    assert open_module(library("llama")).info.notice == ""


# Sliding windows.


@pytest.mark.parametrize(
    ("name", "reach"), [("mistral", 12), ("qwen2", None), ("phi3", 12), ("gemma2", None), ("smollm3", None)]
)
def test_how_far_a_change_reaches(name: str, reach: int | None) -> None:
    """Three layers that each look four back reach twelve; a layer without a window reaches everything."""
    model = open_module(library(name))
    ids = ta.prompts(name)[2]
    edit = Intervention("resid_pre.0", Add(torch.ones(model.info.d_model)), positions=0)
    plain, changed = (model.forward([ids], interventions=list(i)).logits[0] for i in ((), (edit,)))
    moved = (plain - changed).abs().amax(-1) > 1e-6
    assert moved.tolist() == [reach is None or at <= reach for at in range(len(ids))]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["mistral", "qwen3", "gemma3_text"])
def test_rows_across_the_edge_of_a_window(name: str, attention: str) -> None:
    """Rows that begin at every position, read at both ends of the window: as forwards give them."""
    model = open_module(library(name, attention))
    ids = ta.prompts(name)[2][:16]
    other = [(token + 1) % ta.VOCABULARY if at in (1, 9) else token for at, token in enumerate(ids)]
    runs = {"base": model.tokens([ids]), "other": model.tokens([other])}
    rows = [
        Row(0, (Intervention(Site(kind, layer), Replace(FromRun("other")), positions=position),))
        for kind in ("resid_pre", "v", "z")
        for layer in range(3)
        for position in (1, 4, 5, 6, 9, 10, 13, 14)
    ]
    metric = Logits((5, 6, 13, 14, 15))
    fast = {result.index: result.value for result in model.rows(runs, rows, metric)}
    slow = list(naive_rows(model, runs, rows, metric))
    plain = next(iter(naive_rows(model, runs, [Row(0)], metric))).value
    assert len(fast) == len(slow) == len(rows)
    for result in slow:
        assert largest_gap(fast[result.index], result.value) <= 1e-5, rows[result.index]
    assert sum(largest_gap(value, plain) > 1e-3 for value in fast.values()) > 20


RAMP = torch.linspace(0.1, 1.2, 12)


@pytest.mark.parametrize("operation", [Scale(-0.5), Add(RAMP), Replace(RAMP)])
@pytest.mark.parametrize("kind", ["attn_scores", "pattern"])
def test_edits_of_attention_leave_the_keys_that_a_window_hides(kind: str, operation: Operation) -> None:
    model = open_module(library("mistral"))
    ids = [list(range(3, 15))]
    edit = Intervention(f"{kind}.1", operation, positions=9)
    found = model.forward(ids, capture=["pattern.1"], interventions=[edit]).activations["pattern.1"][0, :, 9]
    plain = model.forward(ids, capture=["pattern.1"]).activations["pattern.1"][0, :, 9]
    assert not torch.allclose(found[:, 5:10], plain[:, 5:10], atol=1e-3)
    assert not bool(found[:, :5].any())
    assert not bool(found[:, 10:].any())


def test_mistral_has_one_window_whatever_layer_types_say() -> None:
    module = library("mistral", layer_types=["full_attention"] * 3)
    model = open_module(module)
    assert model.info.windows == (5, 5, 5)
    assert gap(model, ta.prompts("mistral")[2]) <= 1e-4


def test_layer_types_say_which_layers_are_local() -> None:
    types = ["sliding_attention", "full_attention", "full_attention"]
    for name in ("qwen2", "qwen3", "gemma2", "gemma3_text"):
        model = open_module(library(name, layer_types=types))
        assert model.info.windows == (5, None, None)
        assert gap(model, ta.prompts(name)[2]) <= 1e-4
    assert open_module(library("qwen2", use_sliding_window=False)).info.windows == (None,) * 3
    assert open_module(library("llama")).info.windows == (None,) * 3


def test_the_probe_runs_past_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that is wrong by one is refused although nine tokens would not show it."""
    module = library("mistral", max_position_embeddings=128, sliding_window=60)
    info = open_module(module).info
    assert max(probe_tokens(info).lengths) == 62
    assert max(probe_tokens(open_module(library("llama")).info).lengths) == 9
    layout = layouts.layout_for(module)
    layout.blocks[1].window = 61
    monkeypatch.setattr(opening, "layout_for", lambda _: layout)
    with pytest.raises(IdentityError, match="the library's own forward"):
        open_module(module)


def test_a_probe_stays_cheap() -> None:
    info = replace(open_module(library("mistral")).info, context=10_000)
    for window, parameters, longest in (
        (LONGEST_PROBE - 2, 1000, LONGEST_PROBE),
        (LONGEST_PROBE - 1, 1000, 9),
        (256, 125_000_000, 258),
        (256, 3_000_000_000, 9),
    ):
        one = replace(info, windows=(None, window, 4096), n_parameters=parameters)
        assert max(probe_tokens(one).lengths) == longest


# What an architecture lacks, or has that the library does not use.


def test_layers_without_positions_refuse_rotary_sites() -> None:
    model = open_module(library("smollm3"))
    assert [block.rotary_kind for block in model.layout.blocks] == ["default", None, "default"]
    assert {"rot_q", "rot_k"} <= model.info.site_kinds
    for kind in ("rot_q", "rot_k"):
        with pytest.raises(InputError, match=f"has no .*SmolLM3 has none in layer 1; use {kind[-1]}"):
            model.forward([[1, 2]], capture=[Site(kind, 1)])
        assert Site(kind, 2) in model.forward([[1, 2]], capture=[Site(kind, 2)]).activations
    # Without positions or other tokens to tell them apart, the same token twice has the same key.
    ids = [5, 5, 5, 5]
    keys = model.forward([ids], capture=["k.0", "rot_k.0", "k.1"]).activations
    assert largest_gap(keys["k.0"][0, 0], keys["k.0"][0, 3]) <= 1e-6
    assert largest_gap(keys["rot_k.0"][0, 0], keys["rot_k.0"][0, 3]) > 0.1


def test_olmo_2_has_no_norms_before_its_sublayers() -> None:
    model = open_module(library("olmo2"))
    for kind, instead in (("ln1", "resid_pre"), ("ln2", "resid_mid")):
        with pytest.raises(InputError, match=f"OLMo 2 puts its norms on .* is {instead}"):
            model.forward([[1, 2]], capture=[Site(kind, 0)])
        with pytest.raises(InputError, match=f"no weight '{kind}.w'"):
            model.weights(f"{kind}.w", 0)
    ids = ta.prompts("olmo2")[0]
    seen = model.forward([ids], capture=["resid_pre.1", "q.1", "resid_mid.1", "mlp_pre.1"]).activations
    q = torch.einsum("pm,hmd->phd", seen["resid_pre.1"][0], model.weights("W_Q", 1))
    assert largest_gap(seen["q.1"][0], q) <= 1e-5
    pre = seen["resid_mid.1"][0] @ model.weights("W_gate", 1)
    assert largest_gap(seen["mlp_pre.1"][0], pre) <= 1e-5
    assert model.weights("q_norm.w", 1).shape == (4, 8)
    assert model.weights("k_norm.w", 1).shape == (2, 8)


def test_olmo_clips_queries_keys_and_values() -> None:
    module = library("olmo")
    clipped, free = open_module(module), open_module(library("olmo", clip_qkv=None))
    ids = ta.prompts("olmo")[0]
    sites = ["q.0", "k.0", "v.0"]
    for site in sites:
        x, y = (m.forward([ids], capture=sites).activations[site] for m in (clipped, free))
        assert float(y.abs().max()) > 1.5
        assert torch.equal(x, y.clamp(-1, 1))
    assert set(free.layout.blocks[0].ports()) - set(clipped.layout.blocks[0].ports()) == {"q", "k", "v"}
    assert bool((clipped.weights("ln1.w", 0) == 1).all())
    assert clipped.info.norm_eps == 1e-5


def test_gemma_2_caps_scores_and_logits_in_float64() -> None:
    """Scores cap * tanh(q·k * scale / cap) of the turned heads, before the mask; logits likewise."""
    ids = ta.prompts("gemma2")[2]
    with ta.all_double(library("gemma2")):
        model = open_module(library("gemma2").double())
        assert gap(model, ids) <= 1e-9
        sites = ["rot_q.1", "rot_k.1", "attn_scores.1", "ln_final", "logits"]
        seen = model.forward([ids], capture=sites).activations
    largest = 0.0
    for head in range(4):
        raw = seen["rot_q.1"][0, :, head] @ seen["rot_k.1"][0, :, head // 2].T / math.sqrt(20)
        expected = 2.0 * (raw / 2.0).tanh()
        below = torch.ones_like(raw).tril().bool()
        assert largest_gap(seen["attn_scores.1"][0, head][below], expected[below]) <= 1e-12
        largest = max(largest, float((raw - expected)[below].abs().max()))
    assert largest > 1, "the cap is felt"
    raw = seen["ln_final"] @ model.weights("W_U")
    assert largest_gap(seen["logits"], 4.0 * (raw / 4.0).tanh()) <= 1e-12
    assert largest_gap(seen["logits"], raw) > 0.1


def test_gemma_2_runs_eager_for_want_of_a_fused_cap(tmp_path: Path) -> None:
    module = library("gemma2")
    module.save_pretrained(tmp_path)
    model = open_folder(tmp_path, name="tiny", source="folder", device="cpu", attention="sdpa")
    assert model.info.attention == "eager"
    assert gap(model, ta.prompts("gemma2")[2]) <= 1e-5
    module.config._attn_implementation = "sdpa"
    with pytest.raises(CapabilityError, match="fused attention cannot"):
        open_module(module)


def test_gemma_3_ignores_a_cap_on_scores_as_the_library_does() -> None:
    for attention in ("eager", "sdpa"):
        model = open_module(library("gemma3_text", attention, attn_logit_softcapping=0.5))
        assert gap(model, ta.prompts("gemma3_text")[2]) <= 1e-4


def test_gemma_3_with_vision_has_no_final_cap() -> None:
    model = open_module(library("gemma3"))
    assert model.module.config.text_config.final_logit_softcapping == 4.0
    assert float(model.forward([[1, 2, 3]]).logits.abs().max()) > 4
    assert model.info.n_layers == 3


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3_text"])
def test_gemma_without_causality_is_refused(name: str) -> None:
    module = library(name)
    module.config.use_bidirectional_attention = True
    with pytest.raises(CapabilityError, match="use_bidirectional_attention"):
        open_module(module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gemma_norm_factors_keep_what_a_narrow_dtype_cannot_hold(dtype: torch.dtype) -> None:
    """1 + w for a small w: the library adds in float32, where the narrow type would round w away."""
    module = library("gemma")
    with torch.no_grad():
        module.model.norm.weight.fill_(1e-4)
    model = open_module(module.to(dtype))
    found = model.weights("ln_final.w")
    assert found.dtype == torch.float32
    assert float(found[0]) == pytest.approx(1 + float(torch.tensor(1e-4, dtype=dtype)), abs=1e-7)
