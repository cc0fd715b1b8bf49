"""Layouts near Llama that are wrong in one thing: each is refused at load."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from tiny_architectures import changed as library
from torch import Tensor

from mech_interp.backends.huggingface import layouts, opening
from mech_interp.backends.huggingface.layouts import gemma2
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.errors import IdentityError


def on_blocks(change: Callable[[Any], Any]) -> Callable[[Any], None]:
    return lambda layout: [change(block) for block in layout.blocks] and None


def put(**facts: Any) -> Callable[[Any], None]:
    return on_blocks(lambda block: [setattr(block, name, value) for name, value in facts.items()])


def swapped(name: str) -> Callable[[Any], None]:
    """The fact of the first two layers exchanged."""

    def change(layout: Any) -> None:
        first, second = layout.blocks[:2]
        assert getattr(first, name) != getattr(second, name)
        one, two = getattr(first, name), getattr(second, name)
        setattr(first, name, two)
        setattr(second, name, one)

    return change


def unscaled(layout: Any) -> None:
    real, size = layout.embed, math.sqrt(layout.sizes.d_model)
    layout.embed = lambda ids: real(ids) / size


def gate_swapped(block: Any) -> None:
    real = block.mlp_in
    block.mlp_in = lambda x: real(x)[::-1]


def unclipped(block: Any) -> None:
    # The projections without the class's own clipping.
    block.qkv = lambda x: super(type(block), block).qkv(x)


def turned_everywhere(layout: Any) -> None:
    for block in layout.blocks:
        block.rotary_kind = "default"


FAULTS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "gemma: embedding not scaled": ("gemma", unscaled),
    "gemma2: no norm after attention": ("gemma2", put(post_attention=None)),
    "gemma2: no norm after the MLP": ("gemma2", put(post_mlp=None)),
    "gemma2: no norm before attention": ("gemma2", put(norm1=lambda x: x)),
    "gemma2: local and global swapped": ("gemma2", swapped("window")),
    "gemma2: no cap on scores": ("gemma2", put(score_cap=None)),
    "gemma2: no cap on logits": ("gemma2", lambda layout: setattr(layout, "softcap", lambda x: x)),
    "gemma2: scale from the head size": ("gemma2", put(scale=12**-0.5)),
    "gemma3_text: windows swapped": ("gemma3_text", swapped("window")),
    "gemma3_text: rotary bases swapped": ("gemma3_text", swapped("rotary_kind")),
    "gemma3_text: no q/k norm": ("gemma3_text", put(norm_qk=lambda q, k: (q, k))),
    "gemma3_text: no cap on logits": ("gemma3_text", lambda layout: setattr(layout, "softcap", lambda x: x)),
    "mistral: window one too long": ("mistral", put(window=6)),
    "qwen2: window in the wrong layer": ("qwen2", swapped("window")),
    "qwen3: no q/k norm": ("qwen3", put(norm_qk=lambda q, k: (q, k))),
    "phi3: gate and linear branch swapped": ("phi3", on_blocks(gate_swapped)),
    "smollm3: positions in every layer": ("smollm3", turned_everywhere),
    "olmo: not clipped": ("olmo", on_blocks(unclipped)),
    "olmo2: no norm after attention": ("olmo2", put(post_attention=None)),
    "olmo2: q/k norm per head": ("olmo2", on_blocks(lambda block: setattr(block, "norm_qk", per_head))),
}


def per_head(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    q, k = (x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    return q, k


@pytest.mark.parametrize("fault", FAULTS)
def test_a_layout_wrong_in_one_thing_is_refused(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, spoil = FAULTS[fault]
    module = library(name)
    open_module(module)
    layout = layouts.layout_for(module)
    spoil(layout)
    monkeypatch.setattr(opening, "layout_for", lambda _: layout)
    with pytest.raises(IdentityError, match="fails the identity"):
        open_module(module)


def test_norm_factors_without_the_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of post-norms are held against what the sublayers add."""
    monkeypatch.setattr(gemma2, "factor", lambda norm: norm.weight)
    with pytest.raises(IdentityError, match="through ln1_post"):
        open_module(library("gemma2"))
