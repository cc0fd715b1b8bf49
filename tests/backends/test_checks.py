"""A layout that is wrong in any one thing is refused, and the failing identity is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import hf_gpt2, hf_llama
from torch import Tensor

from mech_interp.backends.checks import measure_identities, verify
from mech_interp.backends.huggingface.layouts.gpt2 import GPT2Block, GPT2Layout
from mech_interp.backends.huggingface.layouts.llama import LlamaBlock
from mech_interp.backends.huggingface.opening import library_logits, open_engine, open_module
from mech_interp.errors import CapabilityError, IdentityError, ModelError

LOGITS = "logits = the library's own forward"


def swap_q_and_k(real: Any) -> Any:
    def qkv(self: Any, x: Tensor) -> Any:
        q, k, v = real(self, x)
        return (k, q, v) if k.shape == q.shape else (q.flip(2), k, v)

    return qkv


def replaced(value: Any) -> Callable[[Any], Any]:
    return lambda real: value


def without(*names: str) -> Callable[[Any], Any]:
    return lambda real: lambda self: {k: w for k, w in real(self).items() if k not in names}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return lambda real: lambda self: {k: change(w) if k == name else w for k, w in real(self).items()}


GPT2_FAULTS = [
    (GPT2Block, "qkv", swap_q_and_k, LOGITS),
    (GPT2Block, "norm2", lambda real: lambda self, x: self.module.ln_1(x), LOGITS),
    (GPT2Block, "norm1", lambda real: lambda self, x: x, LOGITS),
    (GPT2Block, "mlp_activation", lambda real: lambda self, pre, linear: pre.relu(), LOGITS),
    (
        GPT2Block,
        "attention_output",
        lambda real: lambda self, z: real(self, z) - self.attention.c_proj.bias,
        LOGITS,
    ),
    (GPT2Layout, "pos_embed", lambda real: lambda self, positions: None, LOGITS),
    (GPT2Layout, "softcap", lambda real: lambda self, x: 5 * torch.tanh(x / 5), LOGITS),
    (GPT2Block, "weights", without("b_O"), "sum over heads of z W_O"),
    (GPT2Block, "weights", without("b_out"), "mlp_post W_out"),
    (GPT2Block, "weights", changed("W_O", lambda w: w.flip(0)), "sum over heads of z W_O"),
    (GPT2Block, "weights", changed("W_out", lambda w: 2 * w), "mlp_post W_out"),
    (GPT2Block, "post_attention", replaced(staticmethod(lambda out: 1.01 * out)), LOGITS),
    (GPT2Block, "post_mlp", replaced(staticmethod(lambda out: 1.01 * out)), LOGITS),
]
LLAMA_FAULTS = [
    (LlamaBlock, "qkv", swap_q_and_k, LOGITS),
    (LlamaBlock, "rotate", lambda real: lambda self, q, k, rotary: (q, k), LOGITS),
    (LlamaBlock, "norm2", lambda real: lambda self, x: self.module.input_layernorm(x), LOGITS),
    (LlamaBlock, "mlp_in", lambda real: lambda self, x: real(self, x)[::-1], LOGITS),
    (LlamaBlock, "weights", changed("W_O", lambda w: w.mT.reshape(w.shape)), "sum over heads of z W_O"),
]


@pytest.mark.parametrize(("part", "name", "fault", "identity"), GPT2_FAULTS + LLAMA_FAULTS)
def test_a_wrong_layout_is_refused(
    monkeypatch: pytest.MonkeyPatch, part: type, name: str, fault: Any, identity: str
) -> None:
    module = hf_gpt2() if part in (GPT2Block, GPT2Layout) else hf_llama()
    open_module(module)
    monkeypatch.setattr(part, name, fault(getattr(part, name, None)))
    with pytest.raises(IdentityError) as caught:
        open_module(module, name="mine")
    assert "mine fails the identity" in caught.value.message
    assert identity in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("make", [hf_gpt2, hf_llama])
def test_a_wrong_scale_is_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make()
    part = GPT2Block if make is hf_gpt2 else LlamaBlock
    real = part.__init__

    def init(self: Any, *arguments: Any) -> None:
        real(self, *arguments)
        self.scale *= 1.01

    monkeypatch.setattr(part, "__init__", init)
    with pytest.raises(IdentityError, match=LOGITS):
        open_module(module)


def test_sums_are_caught_without_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The identities inside a block do not need the library's forward."""
    model = open_module(hf_gpt2())
    assert all(identity.holds for identity in measure_identities(model))
    verify(model)
    monkeypatch.setattr(GPT2Block, "mlp_out", lambda self, post: self.module.mlp.c_proj(post) + 0.01)
    failing = [identity for identity in measure_identities(model) if not identity.holds]
    assert {identity.name for identity in failing} == {"mlp_post W_out + b_out = mlp.hook_out"}
    assert {identity.layer for identity in failing} == {0, 1, 2}
    with pytest.raises(IdentityError, match="in layer 0"):
        verify(model)


def test_what_is_measured(model: Any) -> None:
    found = measure_identities(model, lambda tokens: library_logits(model.module, tokens))
    names = {identity.name for identity in found}
    assert len(names) == 9
    assert len(found) == 1 + 8 * 3
    assert all(identity.holds and identity.deviation < 1e-5 for identity in found)


def test_the_sums_hold_in_float64(exact: Any) -> None:
    found = measure_identities(exact, lambda tokens: library_logits(exact.module, tokens))
    assert max(identity.deviation for identity in found) < 1e-12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    module = hf_gpt2()
    with torch.no_grad():
        module.transformer.h[1].mlp.c_fc.bias[3] = value
    with pytest.raises(ModelError, match=r"damaged: transformer.h.1.mlp.c_fc.bias contains NaN or infinite"):
        open_module(module, name="mine")


def test_an_overflow_on_the_way_is_refused() -> None:
    """Finite weights whose products are not: the identities see NaN as a failure, not as agreement."""
    module = hf_llama()
    with torch.no_grad():
        module.model.layers[0].mlp.up_proj.weight.mul_(1e38)
        module.model.layers[0].mlp.down_proj.weight.mul_(1e38)
    with pytest.raises(IdentityError, match="off by inf"):
        open_module(module)


def test_an_unknown_architecture_is_refused_with_those_that_can_be_opened() -> None:
    """It opens at block level, but not where a layout is needed."""
    from transformers import NemotronConfig, NemotronForCausalLM

    config = NemotronConfig(
        vocab_size=11,
        hidden_size=8,
        head_dim=4,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with pytest.raises(CapabilityError, match="'nemotron' has no layout") as caught:
        open_engine(NemotronForCausalLM(config))
    assert "gpt2" in caught.value.hint
    assert "llama" in caught.value.hint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [hf_gpt2, hf_llama])
def test_half_precision_opens(make: Any, dtype: torch.dtype) -> None:
    module = make()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not ("ln_" in name or "norm" in name):
                parameter.mul_(0.5)
    model = open_module(module.to(dtype))
    assert model.info.dtype == str(dtype).removeprefix("torch.")
    assert model.forward([[1, 2, 3]]).logits.dtype is dtype


def test_opening_freezes_weights_and_leaves_their_values() -> None:
    module = hf_gpt2()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.train()
    open_module(module)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_facts(gpt2: Any, llama: Any) -> None:
    for model, kv_heads, architecture in ((gpt2, 4, "GPT2LMHeadModel"), (llama, 2, "LlamaForCausalLM")):
        info = model.info
        assert (info.n_layers, info.n_heads, info.n_kv_heads, info.d_model, info.d_head) == (
            3,
            4,
            kv_heads,
            32,
            8,
        )
        assert (info.d_mlp, info.vocabulary, info.context) == (40, 97, 24)
        assert (info.architecture, info.dtype, info.device) == (architecture, "float32", "cpu")
        assert (info.heads("k"), info.heads("z")) == (kv_heads, 4)
        assert info.n_parameters == sum(p.numel() for p in model.module.parameters())
    assert gpt2.info.weights_hash == open_module(hf_gpt2()).info.weights_hash
    assert gpt2.info.weights_hash != open_module(hf_gpt2(seed=1)).info.weights_hash
