"""Reads HookedTransformer checkpoints (an options dict and a state dict) into `PlantedForCausalLM`.

Options that change what is computed are carried over, or refused by their name; others have no effect here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mech_interp.backends.huggingface.hooked import ACTIVATIONS, PlantedConfig, PlantedForCausalLM
from mech_interp.errors import CapabilityError, ModelError

NORMS = {None: "none", "LN": "layer", "LNPre": "layer", "RMS": "rms", "RMSPre": "rms"}
# Options that are carried over only at the values given here (unset always counts as such).
FIXED: dict[str, tuple[Any, ...]] = {
    "positional_embedding_type": ("standard",),
    "attention_dir": ("causal", "bidirectional"),
    "normalization_type": tuple(NORMS),
    "act_fn": ACTIVATIONS,
    "gated_mlp": (False,),
    "parallel_attn_mlp": (False,),
    "use_local_attn": (False,),
    "use_qk_norm": (False,),
    "use_normalization_before_and_after": (False,),
    "post_embedding_ln": (False,),
    "attn_scores_soft_cap": (0, -1),
    "output_logits_soft_cap": (0, -1),
    "num_experts": (0,),
    "load_in_4bit": (False,),
}
# State that is no parameter: masks that older checkpoints carry along.
BUFFERS = (".attn.mask", ".attn.IGNORE")


def config_of(options: Mapping[str, Any]) -> PlantedConfig:
    """The same architecture in `PlantedConfig`'s terms.

    Raises:
        CapabilityError: naming the option that is not covered.
        ModelError: when a size is absent or makes no sense.
    """
    for name, allowed in FIXED.items():
        _check_fixed(name, options.get(name), allowed)
    d_model, n_layers, n_ctx, d_vocab = (
        _size(options, k) for k in ("d_model", "n_layers", "n_ctx", "d_vocab")
    )
    d_head = _size(options, "d_head", d_model // max(1, options.get("n_heads") or 1))
    n_heads = _size(options, "n_heads", d_model // d_head)
    _check_fixed("n_key_value_heads", options.get("n_key_value_heads"), (n_heads,))
    norm = NORMS[options.get("normalization_type", "LN")]
    attention_only = bool(options.get("attn_only"))
    if not attention_only and options.get("act_fn") is None:
        raise ModelError("The options name no act_fn, but the model has MLPs.", "State it, or attn_only.")
    return PlantedConfig(
        vocab_size=d_vocab,
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        head_dim=d_head,
        intermediate_size=0 if attention_only else _size(options, "d_mlp", 4 * d_model),
        hidden_act=options.get("act_fn") or "relu",
        max_position_embeddings=n_ctx,
        norm=norm,
        final_norm="rms" if options.get("final_rms") and norm != "none" else norm,
        norm_eps=float(options.get("eps") or 1e-5),
        causal=options.get("attention_dir", "causal") == "causal",
        attention_scales=_scales(options, n_layers, d_head),
        n_outputs=_size(options, "d_vocab_out", d_vocab),
    )


def from_hooked(
    options: Mapping[str, Any], state: Mapping[str, Tensor], *, attention: str = "sdpa"
) -> PlantedForCausalLM:
    """The model with the weights of a HookedTransformer's state dict, in their own dtype.

    Raises:
        CapabilityError: for an option that is not covered.
        ModelError: when tensors are absent, of another shape, or unknown.
    """
    config = config_of(options)
    wanted = _parameters(config)
    given = {name: value for name, value in state.items() if not name.endswith(BUFFERS)}
    unknown = sorted(set(given) - set(wanted) - _fillable(config, options))
    if unknown:
        raise ModelError(
            f"The state dict has {len(unknown)} tensors that its options do not call for "
            f"({', '.join(unknown[:3])}).",
            "Do options and weights belong together?",
        )
    found: dict[str, Tensor] = {}
    for name, (target, shape) in wanted.items():
        value = given.get(name)
        if value is None and name in _fillable(config, options):
            value = torch.ones(shape) if name.endswith(".w") else torch.zeros(shape)
        if value is None:
            raise ModelError(f"The state dict lacks {name}.", "The checkpoint is incomplete.")
        if tuple(value.shape) != shape:
            raise ModelError(
                f"{name} has the shape {tuple(value.shape)}, where the options call for {shape}.",
                "Do options and weights belong together?",
            )
        found[target] = _stored(name, value)
    config._attn_implementation = attention
    module = PlantedForCausalLM(config)
    module.to(_common_dtype(found))
    module.load_state_dict(found)
    module.eval()
    return module


def read_state(files: list[Path], name: str) -> dict[str, Tensor]:
    """The state dict in safetensors files, or in one pickle of tensors alone.

    Raises:
        ModelError: for a damaged file, or one that holds anything but tensors by name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                found = load_file(file)
            else:
                found = torch.load(file, map_location="cpu", weights_only=True)
            twice = sorted(set(state) & set(found))
            state.update(found)
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, EOFError, KeyError) as error:
            raise ModelError(f"The weights of {name} are damaged ({error}).", "Fetch them again.") from None
        except Exception as error:  # what unpickling raises for objects that it refuses to make
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{file.name} of {name} is no plain state dict: {line}", "Save one.") from None
        if twice:
            raise ModelError(f"Two files of {name} hold {twice[0]}.", "Keep the one that is meant.")
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"The weights of {name} hold more than tensors.", "Save the state dict by itself.")
    return state


def _check_fixed(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value is not None and value not in allowed:
        names = ", ".join(str(one) for one in allowed if one is not None)
        raise CapabilityError(
            f"A HookedTransformer with {name}={value!r} cannot be opened in this version.",
            f"Covered: {names}.",
        )


def _size(options: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = options.get(name)
    value = default if value is None or value == -1 else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"The option {name} of the HookedTransformer is {value!r}.", "It must be a count.")
    return value


def _scales(options: Mapping[str, Any], n_layers: int, d_head: int) -> list[float]:
    """What q·k is multiplied by in each layer; the options give what it is divided by."""
    by = 1.0
    if options.get("use_attn_scale", True):
        given = options.get("attn_scale")
        by = float(d_head) ** 0.5 if given is None or given == -1 else float(given)
    inverse = bool(options.get("scale_attn_by_inverse_layer_idx"))
    return [1.0 / (by * (layer + 1 if inverse else 1)) for layer in range(n_layers)]


def _parameters(config: PlantedConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Each tensor of the state dict: our name of it, and its shape there."""
    d, heads, size = config.hidden_size, config.num_attention_heads, config.head_dim
    outputs = config.n_outputs
    found: dict[str, tuple[str, tuple[Any, ...]]] = {
        "embed.W_E": ("embed.weight", (config.vocab_size, d)),
        "pos_embed.W_pos": ("positions.weight", (config.max_position_embeddings, d)),
        "unembed.W_U": ("unembed.weight", (d, outputs)),
        "unembed.b_U": ("unembed.bias", (outputs,)),
    }
    found |= _norm_parameters("ln_final", "final_norm", config.final_norm, d)
    for layer in range(config.num_hidden_layers):
        old, new = f"blocks.{layer}", f"layers.{layer}"
        for part in "QKV":
            target = f"{new}.attention.{part.lower()}"
            found[f"{old}.attn.W_{part}"] = (f"{target}.weight", (heads, d, size))
            found[f"{old}.attn.b_{part}"] = (f"{target}.bias", (heads, size))
        found[f"{old}.attn.W_O"] = (f"{new}.attention.o.weight", (heads, size, d))
        found[f"{old}.attn.b_O"] = (f"{new}.attention.o.bias", (d,))
        found |= _norm_parameters(f"{old}.ln1", f"{new}.norm1", config.norm, d)
        if not config.intermediate_size:
            continue
        hidden = config.intermediate_size
        found[f"{old}.mlp.W_in"] = (f"{new}.mlp.up.weight", (d, hidden))
        found[f"{old}.mlp.b_in"] = (f"{new}.mlp.up.bias", (hidden,))
        found[f"{old}.mlp.W_out"] = (f"{new}.mlp.down.weight", (hidden, d))
        found[f"{old}.mlp.b_out"] = (f"{new}.mlp.down.bias", (d,))
        found |= _norm_parameters(f"{old}.ln2", f"{new}.norm2", config.norm, d)
    return found


def _norm_parameters(
    old: str, new: str, norm: str | None, d_model: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    if norm != "none":
        found[f"{old}.w"] = (f"{new}.weight", (d_model,))
    if norm == "layer":
        found[f"{old}.b"] = (f"{new}.bias", (d_model,))
    return found


def _fillable(config: PlantedConfig, options: Mapping[str, Any]) -> set[str]:
    """The norm parameters that norms without any (LNPre, RMSPre) stand for: factor 1, bias 0."""
    if not str(options.get("normalization_type")).endswith("Pre"):
        return set()
    return {name for name in _parameters(config) if name.startswith("ln_final") or ".ln" in name}


def _stored(name: str, value: Tensor) -> Tensor:
    """A tensor as the library stores it: linear weights as [out, in], heads flattened."""
    kind = name.rpartition(".")[2]
    if kind in ("W_Q", "W_K", "W_V"):
        value = value.permute(0, 2, 1).flatten(0, 1)
    elif kind == "W_O":
        value = value.flatten(0, 1).T
    elif kind in ("W_in", "W_out", "W_U"):
        value = value.T
    elif kind in ("b_Q", "b_K", "b_V"):
        value = value.flatten()
    return value.contiguous()


def _common_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    found = torch.float32
    kinds = {value.dtype for value in state.values() if value.is_floating_point()}
    if kinds:
        found = kinds.pop()
        for kind in kinds:
            found = torch.promote_types(found, kind)
    return found
