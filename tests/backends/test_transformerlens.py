"""The TransformerLens backend against the default engine: the same numbers, or a refusal."""

from __future__ import annotations

import functools
import importlib.util
import logging
import socket
import subprocess
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import tiny_architectures as ta
import torch
from cases import combinations, one_of_each
from tiny_models import largest_gap
from torch import Tensor

from mech_interp.backends.huggingface import layouts
from mech_interp.backends.huggingface.checkpoint import Loaded
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.opening import library_logits, open_module, tensors_hash
from mech_interp.backends.metrics import Logits
from mech_interp.backends.protocol import Capability, Row
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, IdentityError, InputError, MissingExtraError, NotFiredError
from mech_interp.interventions import Add, FromRun, Intervention, Replace, Scale, Zero
from mech_interp.sites import KINDS, Site

pytest.importorskip("transformer_lens")

from mech_interp.backends import transformerlens as tl
from mech_interp.backends import transformerlens_bridge, transformerlens_sites

# Sites that a model has and the bridge does not carry, by case; all others are offered by both.
_NATIVE = {"attn_scores", "pattern", "result"}  # attention left to the library's module
_ROUTER = {"router_logits", "expert_indices", "expert_weights"}
LOST: dict[str, set[str]] = {
    "bloom": {"result"},
    "bloom with six heads": {"result"},
    "falcon": {"rot_q", "rot_k"},
    "gpt_neo": _NATIVE,
    "gpt_neo all global": _NATIVE,
    "gpt_neox": {"rot_q", "rot_k"},
    "gpt_neox full rotary": {"rot_q", "rot_k"},
    "gpt_neox sequential": {"rot_q", "rot_k"},
    "gptj": {*_NATIVE, "rot_q", "rot_k"},
    "mixtral": _ROUTER,
    "mpt": {"attn_scores"},
    "mpt clipped": {"attn_scores", "q", "k", "v"},
    "mpt with six heads": {"attn_scores"},
    "olmo": {"q", "k", "v"},
    "olmoe": _ROUTER,
    "opt": _NATIVE,
    "opt without biases": _NATIVE,
    "phi3": {"rot_q", "rot_k"},
    "phi3 plain": {"rot_q", "rot_k"},
    "qwen3_moe": _ROUTER,
}
# What the bridge cannot wrap, with a part of the reason.
REFUSED: dict[str, str] = {
    "falcon 2": "ln_attn",
    "falcon 40b": "split_with_sizes",
    "gemma3": "image or sound processor",
    "gpt_neox without biases": "cannot wrap",
    "mech-planted": "Unsupported architecture",
    "phi with q/k norm": "q_layernorm",
}
ELSEWHERE = {"falcon rw", "falcon parallel alibi"}  # the default engine refuses their eager form itself
WRAPPED = tuple(name for name in ta.NAMES if name not in REFUSED and name not in ELSEWHERE)
BOUND = 2e-5


def loaded(module: Any, name: str = "tiny") -> Loaded:
    return Loaded(module, None, name, "memory", "", "")


@functools.cache
def pair(name: str) -> tuple[HuggingFaceModel, tl.TransformerLensModel]:
    """The default engine and the bridge over one library model."""
    module = ta.library_model(name)
    return open_module(module, name="tiny"), tl.open_loaded(loaded(module))


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
        with pytest.raises(InputError, match="TransformerLens' bridge.*use the backend huggingface"):
            model.forward([[1, 2]], capture=[Site(kind, 0)])
    for kind, why in engine.info.missing_kinds.items():
        assert model.info.missing_kinds[kind] == why
    assert model.info.backend == "transformerlens"
    assert model.info.attention == "eager"
    assert model.info.capabilities == frozenset(Capability)


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


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_the_bridge_cannot_wrap_is_refused_with_the_reason(name: str) -> None:
    module = ta.library_model(name)
    with pytest.raises(CapabilityError, match=REFUSED[name]) as caught:
        tl.open_loaded(loaded(module, name))
    assert "huggingface" in caught.value.hint
    open_module(module)  # the refusal left nothing behind


def test_reasons_by_model_type() -> None:
    refused = {kind: tl.unsupported_reason(kind) for kind in layouts.supported()}
    assert {kind for kind, why in refused.items() if why} == {"gemma3", "mech-planted"}
    assert "processor" in refused["gemma3"]


def fingerprint(module: Any) -> tuple[Any, ...]:
    """Everything about a library model that wrapping could change."""
    parts = [(name, id(part), type(part)) for name, part in module.named_modules()]
    settings = (module.config._attn_implementation, module.config.to_json_string())
    parameters = [name for name, _ in module.named_parameters()]
    return parts, settings, parameters, [name for name, _ in module.named_buffers()], tensors_hash(module)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_callers_model_is_never_changed(name: str) -> None:
    attention = ta.implementations(name)[-1]
    module = ta.library_model(name, attention)
    assert module.config._attn_implementation == attention
    tokens = Tokens.from_lists([[3, 1, 4, 1, 5], [9, 2]])
    before, logits = fingerprint(module), library_logits(module, tokens)
    with tl.open_loaded(loaded(module)) as model:
        model.forward(tokens, capture=["result.0"] if "result" in model.info.site_kinds else ["z.0"])
        assert fingerprint(module) == before
        assert all(map(torch.equal, library_logits(module, tokens), logits))
    assert fingerprint(module) == before
    assert all(map(torch.equal, library_logits(module, tokens), logits))
    # Nor is the library itself: a new model of the same class computes the same.
    assert all(map(torch.equal, library_logits(ta.library_model(name, attention), tokens), logits))


def test_the_weights_are_shared_and_not_copied() -> None:
    module = ta.library_model("llama")
    model = tl.open_loaded(loaded(module))
    own = model.bridge.blocks[0].mlp.gate.original_component.weight
    assert own.data_ptr() == module.model.layers[0].mlp.gate_proj.weight.data_ptr()


def test_nothing_is_fetched_installed_or_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("reached out")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    library, root = logging.getLogger("transformers"), logging.getLogger()
    before = (library.level, list(root.handlers), root.manager.disable, list(warnings.filters))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tl.open_loaded(loaded(ta.library_model("gpt2")))
        model.forward([[1, 2, 3]], capture=["result.0"], interventions=[Intervention("resid_mid.0", Zero())])
        tl.open_loaded(loaded(ta.library_model("gpt2")), compatibility=True)
        with pytest.raises(CapabilityError):
            tl.open_loaded(loaded(ta.library_model("gemma3")))
    assert (library.level, list(root.handlers), root.manager.disable, list(warnings.filters)) == before
    assert capfd.readouterr() == ("", "")


def test_without_the_package_the_install_command_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for attempt in (
        lambda: tl.open_folder(tmp_path / "nowhere", name="x", source="x"),
        lambda: tl.open_loaded(loaded(None)),
        lambda: tl.unsupported_reason("gpt2"),
    ):
        with pytest.raises(
            MissingExtraError, match=r"pip install 'mech-interpretability\[transformerlens\]'"
        ):
            attempt()


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("attn_out", "mlp.hook_out"),
        ("q", "attn.k.hook_out"),
        ("resid_pre", "hook_out"),
        ("ln1", "ln1.hook_normalized"),
        ("mlp_post", "mlp.in.hook_out"),
        ("resid_post", "ln1.hook_in"),
        ("z", "attn.hook_nothing"),
    ],
)
def test_a_site_tied_to_the_wrong_hook_is_refused_at_load(
    monkeypatch: pytest.MonkeyPatch, kind: str, wrong: str
) -> None:
    monkeypatch.setitem(transformerlens_sites.HOOKS, kind, (wrong,))
    module = ta.library_model("gpt2")
    model = tl.open_loaded(loaded(module))
    assert kind in model.info.missing_kinds
    with pytest.raises(InputError, match="TransformerLens' bridge shows"):
        model.forward([[1, 2]], capture=[Site(kind, 0)])


def test_a_hook_that_shows_the_right_value_to_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bridge's `hook_resid_mid` lies past where the stream goes on: alone, an edit there is lost in part."""
    monkeypatch.setattr(
        tl._RunHooks,
        "_shown",
        lambda self, kind, layer, value: value if kind == "shift" else self.tap(kind, layer, value),
    )
    model = tl.open_loaded(loaded(ta.library_model("gpt2")))
    assert "changing what TransformerLens' bridge shows" in model.info.missing_kinds["resid_mid"]
    assert set(model.info.missing_kinds) - set(open_module(ta.library_model("gpt2")).info.missing_kinds) == {
        "resid_mid"
    }


def test_wrong_values_that_get_past_the_probe_fail_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformerlens_sites, "_same", lambda *_: True)
    monkeypatch.setattr(transformerlens_sites, "_without_effect", lambda *_: set())
    monkeypatch.setitem(transformerlens_sites.HOOKS, "attn_out", ("mlp.hook_out",))
    with pytest.raises(IdentityError, match="attn_out"):
        tl.open_loaded(loaded(ta.library_model("gpt2")))


def test_a_bridge_with_other_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(*arguments: Any, **options: Any) -> Any:
        bridge = transformerlens_bridge.wrap(*arguments, **options)
        bridge.unembed.original_component.bias[3] += 0.5
        return bridge

    monkeypatch.setattr(tl, "wrap", spoiled)
    with pytest.raises(IdentityError, match="the library's own forward"):
        tl.open_loaded(loaded(ta.library_model("gpt2")))


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


COMPATIBLE = ("gpt2", "llama", "gemma2", "gpt_neox", "qwen2", "opt", "olmo2", "mixtral", "bloom")


@pytest.mark.parametrize("name", COMPATIBLE)
def test_compatibility_mode_predicts_the_same_in_other_coordinates(name: str) -> None:
    module = ta.library_model(name)
    before = fingerprint(module)
    model = tl.open_loaded(loaded(module), compatibility=True)
    assert fingerprint(module) == before
    assert "constant per position" in model.info.notice
    engine = open_module(module, name="tiny")
    prompts = ta.prompts(name)
    right, found = (one.forward(prompts).logits for one in (engine, model))
    for row, prompt in enumerate(prompts):
        a, b = found[row, : len(prompt)], right[row, : len(prompt)]
        assert largest_gap(a.log_softmax(-1), b.log_softmax(-1)) <= 5e-5 * max(1.0, float(b.abs().max()))
        assert torch.equal(a.argmax(-1), b.argmax(-1))
        shift = (b - a).mean(-1, keepdim=True)
        assert largest_gap(b - a, shift.expand_as(a)) <= 5e-5 * max(1.0, float(b.abs().max()))
    # Its own unembedding goes with its own stream.
    last = model.forward(prompts, capture=[f"resid_post.{engine.info.n_layers - 1}"])
    resid = last.activations[f"resid_post.{engine.info.n_layers - 1}"]
    assert largest_gap(model.unembed(resid)[2], last.logits[2]) <= 1e-4 * float(last.logits.abs().max())
    assert model.generate(prompts[:1], max_new_tokens=4, stop_ids=()) == engine.generate(
        prompts[:1], max_new_tokens=4, stop_ids=()
    )


def test_compatibility_mode_is_what_it_says_for_gpt2() -> None:
    """Centred stream and unembedding, norms of gain one; and every edit acts once."""
    model = tl.open_loaded(loaded(ta.library_model("gpt2")), compatibility=True)
    prompts = ta.prompts("gpt2")[:1]
    seen = model.forward(prompts, capture=["resid_post.1", "ln_final"])
    assert float(seen.activations["resid_post.1"].mean(-1).abs().max()) < 1e-5
    assert float(seen.logits.mean(-1).abs().max()) < 1e-4
    assert largest_gap(model.weights("ln1.w", 0), torch.ones(32)) == 0
    assert float(model.weights("W_U").mean(-1).abs().max()) < 1e-6
    push = torch.randn(32, generator=torch.Generator().manual_seed(3))
    for kind, after in (("attn_out", "resid_mid"), ("mlp_out", "resid_post"), ("resid_mid", "resid_mid")):
        site = Site(after, 1)
        edit = Intervention(Site(kind, 1), Add(push))
        plain = model.forward(prompts, capture=[site]).activations[site]
        pushed = model.forward(prompts, capture=[site], interventions=[edit]).activations[site]
        assert largest_gap(pushed - plain, push.expand_as(plain)) < 1e-5, kind


def test_the_raw_and_the_compatible_stream_differ() -> None:
    """The claim of the notice: the coordinates are others, so this is no switch to flip unseen."""
    _, raw = pair("gpt2")
    model = tl.open_loaded(loaded(ta.library_model("gpt2")), compatibility=True)
    assert raw.info.notice == ""
    a, b = (
        one.forward([[1, 2, 3]], capture=["resid_post.2"]).activations["resid_post.2"] for one in (raw, model)
    )
    assert largest_gap(a, b) > 0.1
    assert largest_gap(raw.weights("W_Q", 0), model.weights("W_Q", 0)) > 0.01


def test_keys_and_kinds_cover_every_site() -> None:
    """A new kind of site must be given its candidates (or be none of the bridge's)."""
    assert set(KINDS) - set(transformerlens_sites.HOOKS) == {"logits"}
