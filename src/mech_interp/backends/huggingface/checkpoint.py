"""Opening a checkpoint folder: safetensors only, no remote code, nothing fetched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mech_interp.backends.block_level import BlockLevelModel
from mech_interp.backends.huggingface.layouts import layouts, supported
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.errors import CapabilityError, InputError, ModelError, nearest

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Loaded:
    """A library model in memory, with what is known about where it came from."""

    module: Any
    tokenizer: Any
    name: str
    source: str
    weights_hash: str
    tokenizer_hash: str


def load_folder(
    folder: Path,
    *,
    name: str,
    source: str,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "sdpa",
    allow_pickle: bool = False,
) -> Loaded:
    """Load a folder in Hugging Face or HookedTransformer form, for any backend; see `load_model`.

    Raises:
        ModelError: for missing, damaged, incomplete or pickled files, or an architecture that needs
            remote code.
        CapabilityError: for an architecture that the library does not know, or that comes with code.
    """
    place = resolve_device(device)
    if attention not in ("sdpa", "eager"):
        raise InputError(f"There is no attention implementation {attention!r}.", "Use sdpa or eager.")
    stated = hooked_options(folder)
    config_file, config = stated or (folder / "config.json", _read_config(folder, name))
    files = _weight_files(folder, name, allow_pickle)
    wanted = _torch_dtype(dtype, place, config)
    if stated:
        module = _load_hooked(config, files, name, attention).to(wanted)
    else:
        module = _load_module(folder, name, config, wanted, attention, allow_pickle)
    return Loaded(
        module=module.to(place),
        tokenizer=load_tokenizer(folder, name),
        name=name,
        source=source,
        weights_hash=files_hash([config_file, *files]),
        tokenizer_hash=files_hash(sorted(folder.glob("tokenizer*.json"))),
    )


def open_folder(folder: Path, **options: Any) -> HuggingFaceModel | BlockLevelModel:
    """Load a folder and open it in the default engine, at block level if it has no layout.

    Raises:
        ModelError, CapabilityError: see `load_folder`.
        IdentityError: when an identity of `backends.checks` fails.
    """
    loaded = load_folder(folder, **options)
    return open_module(
        loaded.module,
        loaded.tokenizer,
        name=loaded.name,
        source=loaded.source,
        weights_hash=loaded.weights_hash,
        tokenizer_hash=loaded.tokenizer_hash,
    )


def resolve_device(device: str) -> str:
    """`auto` to the best device there is; others checked."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kinds = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = device.partition(":")[0]
    if kind not in kinds:
        raise InputError(
            f"There is no device {device!r}.", nearest(device, kinds) or "Use auto, cpu, cuda or mps."
        )
    if not kinds[kind]:
        raise InputError(
            f"This machine has no {kind} device that PyTorch can use.", "Use --device auto or cpu."
        )
    return device


def files_hash(files: list[Path]) -> str:
    """SHA-256 over the names and contents of files, in order."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(
            f"The config.json of {name} cannot be read ({error}).", "Fetch the checkpoint again."
        ) from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not kind:
        raise ModelError(
            f"The config.json of {name} names no model_type.", "Is it a Hugging Face checkpoint?"
        )
    if kind not in supported() and ("auto_map" in config or not _in_library(kind)):
        code = " It comes with code of its own, which is never run." if "auto_map" in config else ""
        raise CapabilityError(
            f"{name} has the architecture {kind!r}, which has no layout in this version.{code}",
            "Those with all their sites: "
            f"{', '.join(supported())}. Other causal language models of the library open at block level.",
        )
    return config


def _in_library(kind: str) -> bool:
    """Whether the library itself has a causal language model of this `model_type`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def hooked_options(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The options file of a folder in HookedTransformer form and what it says; None for other folders."""
    for file in (folder / "config.json", folder / "cfg.json"):
        try:
            options = json.loads(file.read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError):
            continue
        own = isinstance(options, dict) and "model_type" not in options
        if own and {"n_ctx", "d_vocab", "d_model"} <= set(options):
            return file, options
    return None


def _load_hooked(options: dict[str, Any], files: list[Path], name: str, attention: str) -> Any:
    from mech_interp.backends.huggingface.hooked_convert import from_hooked, read_state

    return from_hooked(options, read_state(files, name), attention=attention)


def _weight_files(folder: Path, name: str, allow_pickle: bool) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickled and allow_pickle:
        return pickled
    if pickled:
        raise ModelError(
            f"{name} has only pickled weights ({pickled[0].name}), which can run code when opened.",
            "Use a safetensors version, or pass allow_pickle=True if you trust the file.",
        )
    raise ModelError(f"The folder of {name} holds no weights.", "It should contain model.safetensors.")


def _load_module(
    folder: Path, name: str, config: dict[str, Any], dtype: torch.dtype, attention: str, allow_pickle: bool
) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if config["model_type"] in layouts():
        layouts()[config["model_type"]].register()
    try:
        with _quiet():
            module, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=available_attention(folder, attention),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=not allow_pickle or None,
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise ModelError(
            f"The weights of {name} are damaged ({error}).", "Fetch the checkpoint again."
        ) from None
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{name} cannot be loaded: {line}", "Fetch the checkpoint again.") from error
    absent = sorted(report["missing_keys"]) + sorted(str(k) for k in report.get("mismatched_keys", ()))
    if absent:
        raise ModelError(
            f"The weights of {name} lack {len(absent)} tensors that its config calls for "
            f"({', '.join(absent[:3])}{', …' if len(absent) > 3 else ''}).",
            "The checkpoint is incomplete or its config.json belongs to another model.",
        )
    return module


def available_attention(folder: Path, attention: str) -> str:
    """The attention asked for, or eager where the library has no other for the architecture.

    Fused attention can, for example, not cap scores.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError):  # loading says what is wrong with it
        return attention
    made = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return attention if getattr(made, "_supports_sdpa", True) else "eager"


def _torch_dtype(dtype: str, device: str, config: dict[str, Any]) -> torch.dtype:
    if dtype == "auto":
        stated = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        return torch.float32 if device == "cpu" else DTYPES.get(stated, torch.float32)
    if dtype not in DTYPES:
        raise InputError(
            f"There is no dtype {dtype!r}.", nearest(dtype, DTYPES) or f"Use {', '.join(DTYPES)}."
        )
    return DTYPES[dtype]


def load_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer in a folder, or None where it holds none.

    Raises:
        ModelError: when it cannot be read.
    """
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / file).is_file() for file in names):
        return None
    from transformers import AutoTokenizer

    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"The tokenizer of {name} cannot be read ({type(error).__name__}).", "Fetch the checkpoint again."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars and notices off the terminal; what matters is raised instead."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
