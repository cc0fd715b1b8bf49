"""From a checkpoint folder to a verified `MLXModel`."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

from mech_interp.backends.checks import verify
from mech_interp.backends.huggingface.checkpoint import files_hash, load_folder, load_tokenizer
from mech_interp.backends.huggingface.layouts import supported
from mech_interp.backends.huggingface.opening import library_logits
from mech_interp.backends.mlx.convert import DTYPES
from mech_interp.backends.mlx.decoder import Decoder
from mech_interp.backends.mlx.facts import READERS, Facts, facts_of
from mech_interp.backends.mlx.files import build_parts, read_tensors, weight_files
from mech_interp.backends.mlx.model import MLXModel
from mech_interp.backends.mlx.twin import check_twin
from mech_interp.backends.protocol import Capability, ModelInfo
from mech_interp.errors import CapabilityError, InputError, ModelError, nearest
from mech_interp.sites import KINDS

# Up to this size the library's model of the same files is loaded as well, once, to compare logits.
LIBRARY_BYTES = 50_000_000


def open_checkpoint(
    folder: Path, *, name: str, source: str, device: str, dtype: str, attention: str
) -> MLXModel:
    """See `mlx.open_folder`.

    The identities of `backends.checks` say nothing about rotary angles, activations, scales or caps. So
    logits are compared with the library's as well, in float32: those of the checkpoint itself where it
    is small, otherwise those of a tiny random model with the checkpoint's config.
    """
    config = read_config(folder, name)
    place, chosen = resolve_device(device), resolve_dtype(dtype, device, config)
    if attention not in ("sdpa", "eager"):
        raise InputError(f"There is no attention implementation {attention!r}.", "Use sdpa or eager.")
    facts, explicit = facts_of(config, name), attention == "eager"
    files = weight_files(folder, name)
    known = {
        "name": name,
        "source": source,
        # The same files as every other backend hashes, whichever of them are read.
        "weights_hash": files_hash([folder / "config.json", *sorted(folder.glob("*.safetensors"))]),
        "tokenizer_hash": files_hash(sorted(folder.glob("tokenizer*.json"))),
    }
    with mx.stream(place):
        tensors = read_tensors(files, name)
        decoder = Decoder(facts, build_parts(tensors, facts, chosen, name), explicit=explicit)
    stops = stop_ids(folder, config)
    model = MLXModel(describe(decoder, place, **known), load_tokenizer(folder, name), decoder, place, stops)
    if sum(file.stat().st_size for file in files) <= LIBRARY_BYTES:
        module = load_folder(
            folder, name=name, source=source, device="cpu", dtype="float32", attention="eager"
        ).module
        with mx.stream(place):
            parts = build_parts(tensors, facts, "float32", name)
        wide = Decoder(facts, parts, explicit=explicit)
        verify(
            MLXModel(describe(wide, place, **known), None, wide, place),
            lambda tokens: library_logits(module, tokens),
        )
    else:
        check_twin(config, name, place, explicit=explicit)
    verify(model)
    return model


def read_config(folder: Path, name: str) -> Any:
    """The library's config object of a folder, of an architecture that this backend runs.

    Raises:
        ModelError: when it cannot be read.
        CapabilityError: naming the architectures there are, and the backends that run this one.
    """
    from transformers import AutoConfig

    try:
        stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = stated.get("model_type") if isinstance(stated, dict) else None
        if kind in READERS:
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library checks a config's fields with errors of many kinds
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"The config.json of {name} cannot be read ({line}).", "Fetch the checkpoint again."
        ) from None
    if not kind:
        raise ModelError(
            f"The config.json of {name} names no model_type.", "Is it a Hugging Face checkpoint?"
        )
    others = "The backends huggingface, hooks and nnsight run it." if kind in supported() else ""
    raise CapabilityError(
        f"{name} has the architecture {kind!r}, which the mlx backend does not run: it runs "
        f"{', '.join(READERS)}.",
        others or "No backend of this version has a layout for it.",
    )


def resolve_device(device: str) -> Any:
    """MLX's device for ours: ``auto``, ``cpu`` or ``mps`` (the GPU of Apple silicon)."""
    if device == "auto":
        return mx.default_device()
    if device not in ("cpu", "mps"):
        raise InputError(
            f"The mlx backend does not run on {device!r}.",
            "Use --device auto, cpu or mps, or another backend.",
        )
    if device == "mps" and not mx.metal.is_available():
        raise InputError(
            "This machine has no GPU of Apple silicon, so MLX computes on the CPU.",
            "Use --device auto or cpu.",
        )
    return mx.Device(mx.gpu if device == "mps" else mx.cpu)


def resolve_dtype(dtype: str, device: str, config: Any) -> str:
    """``auto`` is the checkpoint's own dtype on a GPU, float32 on a CPU; others are checked."""
    if dtype == "auto":
        stated = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
        on_cpu = resolve_device(device) == mx.Device(mx.cpu)
        return "float32" if on_cpu or stated not in DTYPES else stated
    if dtype == "float64":
        raise CapabilityError(
            "The mlx backend does not compute in float64.",
            f"Use {', '.join(DTYPES)}, or the backend huggingface.",
        )
    if dtype not in DTYPES:
        raise InputError(
            f"There is no dtype {dtype!r}.", nearest(dtype, DTYPES) or f"Use {', '.join(DTYPES)}."
        )
    return dtype


def stop_ids(folder: Path, config: Any) -> list[int]:
    """The end-of-text ids: those of generation_config.json where there is one, else of the config."""
    stops = config.eos_token_id
    with suppress(OSError, ValueError, AttributeError):  # as the library: else the config speaks
        stops = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id")
    if stops is None:
        return []
    return [int(stop) for stop in stops] if isinstance(stops, list) else [int(stops)]


def describe(
    decoder: Decoder, place: Any, *, name: str, source: str, weights_hash: str = "", tokenizer_hash: str = ""
) -> ModelInfo:
    """What the platform is told about the model; `place` is where MLX computes."""
    facts: Facts = decoder.facts
    sizes = facts.sizes
    on_gpu = place != mx.Device(mx.cpu)
    return ModelInfo(
        name=name,
        backend="mlx",
        architecture=facts.architecture,
        n_layers=sizes.n_layers,
        n_heads=sizes.n_heads,
        n_kv_heads=sizes.n_kv_heads,
        d_model=sizes.d_model,
        d_head=sizes.d_head,
        d_mlp=sizes.d_mlp,
        vocabulary=sizes.vocabulary,
        context=sizes.context,
        dtype=str(decoder.dtype).removeprefix("mlx.core."),
        device="cpu",  # where the torch tensors lie; MLX shares memory with the CPU
        attention="eager" if decoder.explicit else "sdpa",
        n_parameters=sum(value.size for value in decoder.parts.all().values()),
        weights_hash=weights_hash,
        tokenizer_hash=tokenizer_hash,
        capabilities=frozenset(Capability) - {Capability.GRADIENTS, Capability.EDGES},
        site_kinds=frozenset(KINDS) - frozenset(facts.missing),
        missing_kinds=facts.missing,
        windows=facts.windows,
        source=source,
        norm=facts.norm,
        norm_eps=facts.eps,
        notice="MLX computes on the GPU; tensors are handed over on the CPU." if on_gpu else "",
    )
