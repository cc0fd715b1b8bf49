"""Which architectures and sites TransformerLens' bridge is known to carry, and models opened in it."""

from __future__ import annotations

import functools
from typing import Any

import tiny_architectures as ta

from mech_interp.backends import transformerlens as tl
from mech_interp.backends.huggingface.checkpoint import Loaded
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.opening import open_module

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


def loaded(module: Any, name: str = "tiny") -> Loaded:
    return Loaded(module, None, name, "memory", "", "")


@functools.cache
def pair(name: str) -> tuple[HuggingFaceModel, tl.TransformerLensModel]:
    """The default engine and the bridge over one library model."""
    module = ta.library_model(name)
    engine = open_module(module, name="tiny")
    assert isinstance(engine, HuggingFaceModel)
    return engine, tl.open_loaded(loaded(module))
