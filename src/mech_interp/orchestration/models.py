"""The model that a spec names, found and hashed without loading its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mech_interp.errors import ModelError
from mech_interp.orchestration.hashes import FileHashes

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class FoundModel:
    """A checkpoint on this machine.

    Attributes:
        name: what the spec calls it.
        source: what that name stands for (an alias resolved).
        folder: where its files are.
        config: its `config.json` (of a checkpoint in HookedTransformer form, what it is read as).
        weights_hash, tokenizer_hash: SHA-256 of its files, as a loaded model states them.
        weight_bytes: size of the weight files.
    """

    name: str
    source: str
    revision: str | None
    folder: Path
    config: Mapping[str, Any]
    weights_hash: str
    tokenizer_hash: str
    weight_bytes: int

    @property
    def commit(self) -> str | None:
        """The commit of a hub checkpoint, which the hub's cache names its folder by."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, or None where it has none; loaded when first asked for."""
        if not any((self.folder / name).is_file() for name in _TOKENIZER_FILES):
            return None
        return _tokenizer(self.folder, self.name)


def find_model(
    name: str,
    *,
    revision: str | None = None,
    aliases: Mapping[str, str] | None = None,
    offline: bool = False,
    hashes: FileHashes | None = None,
) -> FoundModel:
    """Find a model's files (fetching a hub id unless `offline`) and hash them.

    Raises:
        ModelError: it cannot be found, reached or read, or holds no safetensors weights.
    """
    from mech_interp.backends.loading import find_folder

    source = (aliases or {}).get(name, name)
    hashes = hashes or FileHashes()
    with _offline(offline):
        folder = find_folder(source, revision)
    files = _weight_files(folder, name)
    config_file, config = _stated(folder, name)
    return FoundModel(
        name=name,
        source=source,
        revision=revision,
        folder=folder,
        config=config,
        weights_hash=hashes.together([config_file, *files]),
        tokenizer_hash=hashes.together(sorted(folder.glob("tokenizer*.json"))),
        weight_bytes=sum(file.stat().st_size for file in files),
    )


def _weight_files(folder: Path, name: str) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise ModelError(
            f"{name} has only pickled weights, which can run code when opened, so specs never load them.",
            "Use a safetensors version of it.",
        )
    raise ModelError(f"The folder of {name} holds no weights.", "It should contain model.safetensors.")


def _stated(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """The file that describes the model, and its config; of a HookedTransformer the one it is read as."""
    file = folder / "config.json"
    config = _config(folder, name)
    if "model_type" in config:
        return file, config
    from mech_interp.backends.huggingface.checkpoint import hooked_options

    hooked = hooked_options(folder)
    if hooked is None:
        return file, config
    from mech_interp.backends.huggingface.hooked_convert import config_of

    return hooked[0], dict(config_of(hooked[1]).to_dict())


def _config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"The config.json of {name} cannot be read ({error}).", "Fetch the checkpoint again."
        ) from None
    if not isinstance(config, dict):
        raise ModelError(f"The config.json of {name} holds no object.", "Is it a Hugging Face checkpoint?")
    return config


def _tokenizer(folder: Path, name: str) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"The tokenizer of {name} cannot be read ({type(error).__name__}).", "Fetch the checkpoint again."
        ) from error
    finally:
        logging.set_verbosity(level)


@contextmanager
def _offline(on: bool) -> Iterator[None]:
    """Keep the hub's library from reaching out, by the variable that it and our loader obey."""
    before = os.environ.get("HF_HUB_OFFLINE")
    if on:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if on and before is None:
            del os.environ["HF_HUB_OFFLINE"]
        elif on and before is not None:
            os.environ["HF_HUB_OFFLINE"] = before
