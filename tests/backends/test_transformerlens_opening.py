"""Opening a model in TransformerLens: what is refused, what is left alone, and compatibility mode."""

from __future__ import annotations

import importlib.util
import logging
import socket
import subprocess
import warnings
from typing import Any

import pytest
import tiny_architectures as ta
import torch
from tiny_models import largest_gap

from mech_interp.backends.huggingface import layouts
from mech_interp.backends.huggingface.opening import library_logits, open_module, tensors_hash
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, IdentityError, InputError, MissingExtraError
from mech_interp.interventions import Add, Intervention, Zero
from mech_interp.sites import KINDS, Site

pytest.importorskip("transformer_lens")

from bridge_cases import REFUSED, WRAPPED, loaded, pair

from mech_interp.backends import transformerlens as tl
from mech_interp.backends import transformerlens_bridge, transformerlens_sites


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_the_bridge_cannot_wrap_is_refused_with_the_reason(name: str) -> None:
    module = ta.library_model(name)
    with pytest.raises(CapabilityError, match=REFUSED[name]) as caught:
        tl.open_loaded(loaded(module, name))
    assert "huggingface" in caught.value.hint
    open_module(module)  # the refusal left nothing behind


def test_an_architecture_without_a_layout_is_refused() -> None:
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    config = GPTBigCodeConfig(vocab_size=97, n_positions=24, n_embd=32, n_layer=2, n_head=4)
    with pytest.raises(CapabilityError, match="no layout"):
        tl.open_loaded(loaded(GPTBigCodeForCausalLM(config).eval()))


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
    """The bridge's `hook_resid_mid` lies past where the stream goes on: an edit there alone is half lost."""
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


def test_padding_draws_no_warning_from_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    masks: list[Any] = []
    monkeypatch.setattr(
        PreTrainedModel,
        "warn_if_padding_and_no_attention_mask",
        lambda self, input_ids, attention_mask: masks.append(attention_mask),
    )
    _, model = pair("gpt2")
    model.forward([[1, 2, 3], [4]])
    assert masks
    assert all(mask is not None for mask in masks)
