"""From the safetensors files of a checkpoint to the matrices that the decoder multiplies by."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import torch

from mech_interp.backends.mlx.convert import DTYPES, to_mlx
from mech_interp.backends.mlx.facts import Facts
from mech_interp.errors import ModelError

FLOATS = (mx.float16, mx.bfloat16, mx.float32)
Take = Callable[..., mx.array]


@dataclass(frozen=True)
class Parts:
    """A model's parameters, ready to multiply by: every matrix is [in, out], norm gains are factors.

    In a block: q, k, v, o, in, gate, out with biases b_*, and the gains ln1, ln2, ln1_post, ln2_post,
    q_norm, k_norm (ln1_b, ln2_b: their offsets). Outside: embed [vocabulary, d_model], positions,
    unembed [vocabulary, d_model], ln_final, ln_final_b. In a tied model embed and unembed are one.
    """

    outside: dict[str, mx.array]
    blocks: list[dict[str, mx.array]]

    def all(self) -> dict[str, mx.array]:
        """Every parameter once, by a name for messages."""
        found = dict(self.outside)
        if found.get("unembed") is found["embed"]:
            del found["unembed"]
        for layer, block in enumerate(self.blocks):
            found |= {f"{key} of layer {layer}": value for key, value in block.items()}
        return found


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files that hold the model: those that the index names, where there is one.

    Raises:
        ModelError: when there are none, or only pickled ones.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        what = f"only pickled weights ({pickled[0].name})" if pickled else "no weights"
        raise ModelError(
            f"The folder of {name} holds {what}; the mlx backend reads safetensors alone.",
            "Use a safetensors version of the checkpoint.",
        )
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return files
    try:
        named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"The index of the weights of {name} cannot be read ({error!r}).", "Fetch the checkpoint again."
        ) from None
    chosen = [file for file in files if file.name in named]
    if len(chosen) != len(named):
        gone = sorted(set(named) - {file.name for file in chosen})
        raise ModelError(f"{name} lacks the weight file {gone[0]}.", "Fetch the checkpoint again.")
    return chosen


def read_tensors(files: list[Path], name: str) -> dict[str, mx.array]:
    """All tensors of the files, by their names there.

    Raises:
        ModelError: for a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, mx.array] = {}
    for file in files:
        try:
            # Opening it checks that header and length fit together.
            with safe_open(file, framework="pt") as held:
                if any(held.get_slice(key).get_dtype() == "F64" for key in held.keys()):  # noqa: SIM118
                    found |= _read_double(held)
                    continue
            found |= mx.load(str(file))
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"The weights of {name} are damaged ({error}).", "Fetch the checkpoint again."
            ) from None
    return found


def _read_double(held: Any) -> dict[str, mx.array]:
    """A file with float64 tensors, which MLX does not read; they become float32."""
    tensors = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118
    return {k: to_mlx(t.float() if t.dtype == torch.float64 else t) for k, t in tensors.items()}


def build_parts(tensors: Mapping[str, mx.array], facts: Facts, dtype: str, name: str) -> Parts:
    """Choose, check and convert the tensors that the model computes with.

    Raises:
        ModelError: for missing, misshapen, quantised or non-finite tensors.
    """
    prefix = "transformer." if facts.model_type == "gpt2" else "model."
    # Some checkpoints were saved from the stack without its language-model head.
    bare = {key.removeprefix(prefix): value for key, value in tensors.items()}
    absent: list[str] = []

    def take(key: str, *shape: int) -> mx.array:
        value = bare.get(key)
        if value is None or tuple(value.shape) != shape:
            absent.append(key)
            return mx.zeros(shape)
        if value.dtype not in FLOATS:
            raise ModelError(
                f"The weights of {name} are quantised: {key} is {value.dtype}.", "Use an unquantised version."
            )
        return value.astype(DTYPES[dtype])

    read = _gpt2_block if facts.model_type == "gpt2" else _rotary_block
    blocks = [read(take, facts, layer) for layer in range(facts.sizes.n_layers)]
    parts = Parts(_outside(take, facts, bare), blocks)
    if absent:
        raise ModelError(
            f"The weights of {name} lack {len(absent)} tensors that its config calls for "
            f"({', '.join(absent[:3])}{', …' if len(absent) > 3 else ''}).",
            "The checkpoint is incomplete or its config.json belongs to another model.",
        )
    _refuse_non_finite(parts, name)
    return parts


def _outside(take: Take, facts: Facts, bare: Mapping[str, mx.array]) -> dict[str, mx.array]:
    sizes = facts.sizes
    table = (sizes.vocabulary, sizes.d_model)
    gpt2 = facts.model_type == "gpt2"
    embed_key = "wte.weight" if gpt2 else "embed_tokens.weight"
    # As the library ties: to whichever of the two is stored, and not at all where both are and differ.
    own = "lm_head.weight" in bare and (not facts.tied or _differ(bare, embed_key, "lm_head.weight"))
    found = {"embed": take(embed_key if own or embed_key in bare else "lm_head.weight", *table)}
    found["unembed"] = take("lm_head.weight", *table) if own or not facts.tied else found["embed"]
    if gpt2:
        found["positions"] = take("wpe.weight", sizes.context, sizes.d_model)
        found |= {
            "ln_final": take("ln_f.weight", sizes.d_model),
            "ln_final_b": take("ln_f.bias", sizes.d_model),
        }
    else:
        found["ln_final"] = _gain(take, facts, "norm.weight", sizes.d_model)
    return found


def _differ(bare: Mapping[str, mx.array], left: str, right: str) -> bool:
    if left not in bare:
        return False
    a, b = bare[left], bare[right]
    return a.shape != b.shape or not bool(mx.array_equal(a, b))


def _gain(take: Take, facts: Facts, key: str, size: int) -> mx.array:
    """A norm's factors; where they are stored less one, adding it in a narrow dtype would round them."""
    stored = take(key, size)
    return stored.astype(mx.float32) + facts.gain_offset if facts.gain_offset else stored


def _gpt2_block(take: Take, facts: Facts, layer: int) -> dict[str, mx.array]:
    d_model, d_mlp, at = facts.sizes.d_model, facts.sizes.d_mlp, f"h.{layer}."
    fused = mx.split(take(at + "attn.c_attn.weight", d_model, 3 * d_model), 3, axis=1)
    biases = mx.split(take(at + "attn.c_attn.bias", 3 * d_model), 3)
    found = dict(zip("qkv", fused, strict=True)) | dict(zip(("b_q", "b_k", "b_v"), biases, strict=True))
    for key, theirs, n_in, n_out in (
        ("o", "attn.c_proj", d_model, d_model),
        ("in", "mlp.c_fc", d_model, d_mlp),
        ("out", "mlp.c_proj", d_mlp, d_model),
    ):
        found[key] = take(f"{at}{theirs}.weight", n_in, n_out)
        found[f"b_{key}"] = take(f"{at}{theirs}.bias", n_out)
    for key, theirs in (("ln1", "ln_1"), ("ln2", "ln_2")):
        found[key] = take(f"{at}{theirs}.weight", d_model)
        found[f"{key}_b"] = take(f"{at}{theirs}.bias", d_model)
    return found


def _rotary_block(take: Take, facts: Facts, layer: int) -> dict[str, mx.array]:
    sizes, at = facts.sizes, f"layers.{layer}."
    d_model, d_mlp = sizes.d_model, sizes.d_mlp
    queries, keys = sizes.n_heads * sizes.d_head, sizes.n_kv_heads * sizes.d_head
    found: dict[str, mx.array] = {}
    for key, theirs, n_in, n_out, bias in (
        ("q", "self_attn.q_proj", d_model, queries, facts.qkv_bias),
        ("k", "self_attn.k_proj", d_model, keys, facts.qkv_bias),
        ("v", "self_attn.v_proj", d_model, keys, facts.qkv_bias),
        ("o", "self_attn.o_proj", queries, d_model, facts.out_bias),
        ("gate", "mlp.gate_proj", d_model, d_mlp, facts.mlp_bias),
        ("in", "mlp.up_proj", d_model, d_mlp, facts.mlp_bias),
        ("out", "mlp.down_proj", d_mlp, d_model, facts.mlp_bias),
    ):
        found[key] = take(f"{at}{theirs}.weight", n_out, n_in).T  # stored as [out, in]
        if bias:
            found[f"b_{key}"] = take(f"{at}{theirs}.bias", n_out)
    norms = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
    if facts.post_norms:
        norms |= {"ln1_post": "post_attention_layernorm", "ln2": "pre_feedforward_layernorm"}
        norms["ln2_post"] = "post_feedforward_layernorm"
    found |= {key: _gain(take, facts, f"{at}{theirs}.weight", d_model) for key, theirs in norms.items()}
    if facts.qk_norms:
        for key in ("q_norm", "k_norm"):
            found[key] = _gain(take, facts, f"{at}self_attn.{key}.weight", sizes.d_head)
    return found


def _refuse_non_finite(parts: Parts, name: str) -> None:
    for key, value in parts.all().items():
        if not bool(mx.isfinite(value).all()):
            raise ModelError(
                f"The weights of {name} are damaged: {key} contains NaN or infinite values.",
                "Fetch the checkpoint again, or load it in a wider dtype if it overflowed.",
            )
