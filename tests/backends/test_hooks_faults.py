"""A layout whose ports point at the wrong place is refused by the hooks backend when a model is opened."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import hf_gpt2, hf_llama
from torch import Tensor

from mech_interp.backends.hooks import open_loaded
from mech_interp.backends.huggingface.checkpoint import Loaded
from mech_interp.backends.huggingface.layouts.base import Port, in_heads
from mech_interp.backends.huggingface.layouts.gpt2 import GPT2Block, GPT2Layout
from mech_interp.backends.huggingface.layouts.llama import LlamaBlock
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.errors import IdentityError, MechError, ModelError


def hooked(module: Any) -> Any:
    """The module opened with plain hooks, which checks it."""
    return open_loaded(Loaded(module, None, "mine", "memory", "", ""))


def ports_with(changes: dict[str, Any]) -> Any:
    """A patch of `ports` that replaces some."""
    return lambda real: lambda self: real(self) | {kind: make(self) for kind, make in changes.items()}


def interleaved(x: Tensor) -> Tensor:
    """Four heads cut out as if their features took turns."""
    return in_heads(8)(x).mT


FAULTS = [
    (GPT2Block, {"ln1": lambda b: Port(b.module.ln_2)}),
    (GPT2Block, {"mlp_pre": lambda b: Port(b.module.mlp.act)}),
    (GPT2Block, {"resid_mid": lambda b: Port(b.module.ln_2)}),
    (GPT2Block, {"resid_mid": lambda b: Port(b.module.attn)}),
    (GPT2Block, {"attn_out": lambda b: Port(b.module.ln_1)}),
    (GPT2Block, {"resid_post": lambda b: Port(b.module, "input")}),
    (GPT2Block, {"z": lambda b: Port(b.attention.c_proj, "input", interleaved)}),
    (GPT2Layout, {"embed": lambda layout: Port(layout.module.transformer.wpe)}),
    (GPT2Layout, {"ln_final": lambda layout: Port(layout.module.transformer.ln_f, "input")}),
    (LlamaBlock, {"q": lambda b: Port(b.attention.q_proj, "output", interleaved)}),
    (LlamaBlock, {"k": lambda b: Port(b.attention.v_proj, "output", in_heads(2))}),
    (LlamaBlock, {"mlp_pre": lambda b: Port(b.module.mlp.up_proj)}),
    (LlamaBlock, {"mlp_pre_linear": lambda b: Port(b.module.mlp.gate_proj)}),
    (LlamaBlock, {"ln2": lambda b: Port(b.module.input_layernorm)}),
    (LlamaBlock, {"mlp_post": lambda b: Port(b.module.mlp.act_fn)}),
]  # fmt: skip


@pytest.mark.parametrize(("part", "changes"), FAULTS)
def test_a_port_that_points_at_the_wrong_place_is_refused(
    monkeypatch: pytest.MonkeyPatch, part: type, changes: dict[str, Any]
) -> None:
    module = hf_llama() if part is LlamaBlock else hf_gpt2()
    hooked(module)
    monkeypatch.setattr(part, "ports", ports_with(changes)(part.ports))
    open_module(module)  # the default engine needs no ports, so it cannot notice
    with pytest.raises((IdentityError, ModelError)) as caught:
        hooked(module)
    assert caught.value.hint
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_a_port_that_is_never_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = torch.nn.Linear(32, 32)
    monkeypatch.setattr(GPT2Block, "ports", ports_with({"ln2": lambda b: Port(idle)})(GPT2Block.ports))
    with pytest.raises(MechError, match="ln2"):
        hooked(hf_gpt2())


def test_a_view_that_is_a_copy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"z": lambda b: Port(b.attention.c_proj, "input", lambda x: 1 * x.view(*x.shape[:-1], 4, -1))}
    monkeypatch.setattr(GPT2Block, "ports", ports_with(changes)(GPT2Block.ports))
    with pytest.raises(ModelError, match="is a copy"):
        hooked(hf_gpt2())
