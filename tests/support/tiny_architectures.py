"""A tiny random model of every architecture with a layout, and of the forms an architecture comes in.

`NAMES` is what the conformance suite runs over: each `model_type` that has a layout under its own name,
and every entry of `VARIANTS` whose `model_type` has one.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import random_ids
from torch import Tensor

from mech_interp.backends.huggingface import layouts
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.protocol import Row
from mech_interp.backends.tokens import Tokens
from mech_interp.interventions import Add, FromRun, Intervention, Operation, Replace, Scale
from mech_interp.sites import KINDS, Site

VOCABULARY, CONTEXT, LAYERS = 97, 24, 3
_MPT = {"attn_type": "multihead_attention"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2 with scale by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "llama 3 rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            }
        },
    ),
    "llama linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama dynamic rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama yarn rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 6,
            }
        },
    ),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "gemma2 without caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "olmo without clipping": ("olmo", {"clip_qkv": None}),
    "phi3 plain": (
        "phi3",
        {"rope_parameters": None, "max_position_embeddings": 24, "sliding_window": None},
    ),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "gpt_neo all global": ("gpt_neo", {"attention_types": [[["global"], 3]]}),
    "gpt_neox sequential": ("gpt_neox", {"use_parallel_residual": False, "hidden_act": "gelu_fast"}),
    "gpt_neox without biases": ("gpt_neox", {"attention_bias": False}),
    "gpt_neox full rotary": ("gpt_neox", {"rotary_pct": 1.0}),
    "phi with q/k norm": ("phi", {"qk_layernorm": True, "num_key_value_heads": 2}),
    "opt without biases": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "bloom with six heads": ("bloom", {"hidden_size": 48, "n_head": 6}),
    "falcon 40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon 2": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon rw": (
        "falcon",
        {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "falcon parallel alibi": ("falcon", {"alibi": True, "bias": True}),
    "mpt clipped": ("mpt", {"attn_config": {**_MPT, "clip_qkv": 0.7, "softmax_scale": 0.5}}),
    "mpt with six heads": ("mpt", {"d_model": 48, "n_heads": 6}),
    "stablelm parallel": (
        "stablelm",
        {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": False},
    ),
}
NAMES: tuple[str, ...] = (
    *layouts.supported(),
    *(name for name, (model_type, _) in VARIANTS.items() if model_type in layouts.supported()),
)

# What an architecture is, by hand, so that a layout's own facts are checked: positions (rotary, learned or
# alibi), gated, parallel, shared (one norm for both sublayers), unnormed (sublayers read the stream as it
# is), experts, clipped (q, k and v), capped (logits), fused (only that attention can be opened). The
# default is Llama's.
FACTS: dict[str, str] = {
    "gpt2": "learned",
    "gpt_neo": "learned",
    "gpt_neox": "rotary parallel",
    "gpt_neox sequential": "rotary",
    "gptj": "rotary parallel shared",
    "phi": "rotary parallel shared",
    "opt": "learned",
    "bloom": "alibi",
    "mpt": "alibi",
    "mpt clipped": "alibi clipped",
    "falcon": "rotary parallel shared",
    "falcon 40b": "rotary parallel",
    "falcon 2": "rotary parallel shared",
    "falcon rw": "alibi fused",
    "falcon parallel alibi": "alibi fused parallel shared",
    "stablelm parallel": "rotary gated parallel shared",
    "mixtral": "rotary experts",
    "qwen3_moe": "rotary experts",
    "olmoe": "rotary experts",
    "mech-planted": "learned",
    "gemma2": "rotary gated capped",
    "gemma3_text": "rotary gated capped",
    "gemma2 without caps": "rotary gated",
    "olmo": "rotary gated clipped",
    "olmo without clipping": "rotary gated",
    "olmo2": "rotary gated unnormed",
}


def type_of(name: str) -> str:
    """The `model_type` of a case."""
    return VARIANTS[name][0] if name in VARIANTS else name


def facts(name: str) -> set[str]:
    """What is true of a case; see `FACTS`."""
    return set(FACTS.get(name, FACTS.get(type_of(name), "rotary gated")).split())


def missing_kinds(name: str) -> set[str]:
    """The site kinds that a case lacks in every layer, from its facts."""
    true = facts(name)
    lacks = {
        "learned": {"pos_embed"},
        "rotary": {"rot_q", "rot_k"},
        "gated": {"mlp_pre_linear"},
        "experts": {"router_logits", "expert_indices", "expert_weights"},
    }
    found = {kind for fact, kinds in lacks.items() if fact not in true for kind in kinds}
    has = {"parallel": {"resid_mid"}, "shared": {"ln2"}, "experts": {"mlp_pre", "mlp_post"}}
    has["unnormed"] = {"ln1", "ln2"}
    return found | {kind for fact, kinds in has.items() if fact in true for kind in kinds}


def all_devices() -> dict[str, bool]:
    """Every kind of device that the suite knows, and whether this machine has it."""
    mps = getattr(torch.backends, "mps", None)
    return {"cpu": True, "cuda": torch.cuda.is_available(), "mps": mps is not None and mps.is_available()}


def devices() -> list[str]:
    """The kinds of device that this machine has."""
    return [device for device, there in all_devices().items() if there]


@functools.cache
def implementations(name: str) -> tuple[str, ...]:
    """The attention implementations that the library has for a case."""
    if "fused" in facts(name):
        return ("sdpa",)
    library = type(_bare(name, "eager"))
    return ("eager", "sdpa") if getattr(library, "_supports_sdpa", False) else ("eager",)


def _bare(name: str, attention: str) -> Any:
    changes = VARIANTS[name][1] if name in VARIANTS else {}
    return layouts.tiny_module(type_of(name), attn_implementation=attention, **changes)


def library_model(name: str, attention: str = "", *, seed: int = 0) -> Any:
    """The library's model with generic weights, float32, on the CPU; by default with its first attention."""
    return randomise(_bare(name, attention or implementations(name)[0]), seed)


@functools.cache
def opened(name: str, attention: str, dtype: torch.dtype, device: str) -> HuggingFaceModel:
    """The model, opened (which verifies its identities). With float64 use it inside `all_double`."""
    module = library_model(name, attention).to(dtype).to(device)
    return open_module(module, name=f"tiny {name}")


def changed(model_type: str, attention: str = "eager", **changes: Any) -> Any:
    """A tiny random library model with some options of its `model_type` changed."""
    return randomise(layouts.tiny_module(model_type, attn_implementation=attention, **changes), seed=0)


def randomise(module: Any, seed: int) -> Any:
    """Give every parameter generic values; those of norms near what they start from (1, or 0 for 1 + w)."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for part in module.modules() if "Norm" in type(part).__name__ for p in part.parameters()}
    with torch.no_grad():
        for parameter in module.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.2 * draw if id(parameter) in norms else 0.25 * draw)
    return module.eval()


class _DoubleTorch(types.ModuleType):
    """`torch` for code that casts to float32 by name: the name then means float64."""

    float32 = torch.float64
    float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def all_double(module: Any) -> Iterator[None]:
    """While open, the library's own code for a model keeps to float64 where it would cast to float32.

    Both sides run those parts (norms, softmax, scores), so comparisons are then exact to rounding.
    """
    homes = {type(part).__module__ for part in module.modules()}
    plain = torch.Tensor.float

    def keep(self: Tensor, *args: Any, **options: Any) -> Tensor:
        return self if self.dtype == torch.float64 else plain(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for home in sorted(home for home in homes if home.startswith("transformers.")):
            for place in _with_bases(home, module):
                if vars(sys.modules[place]).get("torch") is torch:
                    patch.setattr(sys.modules[place], "torch", _DoubleTorch("torch"))
        patch.setattr(torch.Tensor, "float", keep)
        yield


def _with_bases(home: str, module: Any) -> set[str]:
    parts = [part for part in module.modules() if type(part).__module__ == home]
    return {
        base.__module__ for part in parts for base in type(part).__mro__ if "modeling_" in base.__module__
    }


@contextmanager
def exact(name: str, device: str, attention: str = "") -> Iterator[tuple[Any, float]]:
    """The model in float64 throughout with a bound of 1e-9; in float32 where a device has no float64."""
    attention = attention or implementations(name)[0]
    if device == "mps":
        yield opened(name, attention, torch.float32, device), 1e-4
        return
    with all_double(library_model(name)):
        yield opened(name, attention, torch.float64, device), 1e-9


def library_logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.module(torch.tensor([ids], device=model.info.device), use_cache=False).logits
    return logits[0]


def prompts(name: str) -> list[list[int]]:
    """Ragged prompts: one token, a few, and the whole context (so longer than any window)."""
    return random_ids((7, 1, CONTEXT), seed=len(name))


def three_runs(name: str) -> dict[str, Tokens]:
    """`base` (ragged), `other` (one token changed at position 2), `far` (all changed, one token longer)."""
    base = random_ids((7, 5, 14), seed=len(name))
    other = [[(token + 1) % VOCABULARY if at == 2 else token for at, token in enumerate(row)] for row in base]
    far = random_ids((8, 6, 15), seed=2)
    return {run: Tokens.from_lists(rows) for run, rows in (("base", base), ("other", other), ("far", far))}


def every_site(model: Any) -> list[Site]:
    """Every site the model has, whole."""
    found = []
    for kind in sorted(model.info.site_kinds):
        layers = range(model.info.n_layers) if KINDS[kind].in_block else (None,)
        found += [Site(kind, at) for at in layers if (kind, at) not in model.info.missing_sites]
    return found


def rows_everywhere(model: Any) -> list[Row]:
    """One edit at every site of every kind, with positions, heads, runs and operations taken in turn."""
    found = []
    for at, site in enumerate(every_site(model)):
        whole = site.kind == "expert_indices"  # numbers of experts cannot be scaled
        operations: list[Operation] = [Replace(FromRun("other")), Scale(-0.5), Add(FromRun("far"), 0.5)]
        operation = operations[0 if whole else at % 3]
        positions = [(2,), (-1,), None, (0, 3), (1,)][at % 5]
        n_heads = model.info.heads(site.kind) if site.spec.heads else 0
        heads = None if not n_heads or at % 2 else (at % n_heads,)
        edit = Intervention(site, operation, positions=positions, heads=heads)
        found.append(Row(at % 3, (edit,), "far" if at % 7 == 3 else "base"))
    return found
