"""The backends that come with mech: what each is, what it needs, what it can do, how to open a model in it.

One table for specs, commands, documents and Python. Importing it imports no backend.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mech_interp.errors import InputError, MissingExtraError, nearest

if TYPE_CHECKING:
    from mech_interp.backends.protocol import InstrumentedModel

DEFAULT = "huggingface"

_ALL = frozenset({"capture", "intervene", "gradients", "rows", "heads", "weights", "generate"})
_TORCH_DEVICES = ("cuda", "mps", "cpu")
_TORCH_DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class BuiltIn:
    """One backend.

    Attributes:
        name: what specs and options call it.
        module: where its `open_folder` is.
        summary: one line for lists.
        about: a paragraph for the documents.
        capabilities: `Capability` values that it has for a model with a layout.
        package, extra: the import name that it needs beside the core, and the extra that installs it.
        attention: settings that it can run, its own first.
        devices: where it can run, the preferred first.
        dtypes: number formats that it can compute in.
        models: `model_type`s that it reads itself; empty where it runs what the library loads.
        bound: largest relative difference from the default backend in float32 that parity allows.
    """

    name: str
    module: str
    summary: str
    about: str
    capabilities: frozenset[str] = _ALL
    package: str = ""
    extra: str = ""
    attention: tuple[str, ...] = ("sdpa", "eager")
    devices: tuple[str, ...] = _TORCH_DEVICES
    dtypes: tuple[str, ...] = _TORCH_DTYPES
    models: tuple[str, ...] = ()
    bound: float = 1e-4

    @property
    def installed(self) -> bool:
        """Whether the package that it needs can be imported (nothing is imported to find out)."""
        if not self.package:
            return True
        try:
            return importlib.util.find_spec(self.package) is not None
        except ImportError:  # a submodule of a package that is not there
            return False

    @property
    def install(self) -> str:
        """The command that installs it; empty for those that need nothing."""
        return f"pip install 'mech-interpretability[{self.extra}]'" if self.extra else ""

    def require(self) -> None:
        """Refuse where its package is not installed.

        Raises:
            MissingExtraError: with the install command.
        """
        if not self.installed:
            raise MissingExtraError(self.package.partition(".")[0], self.extra)

    def attention_for(self, wanted: str) -> str:
        """The attention implementation that it runs where `wanted` is asked for."""
        return wanted if wanted in self.attention else self.attention[0]

    def open_folder(
        self,
        folder: Path,
        *,
        name: str,
        source: str,
        device: str = "auto",
        dtype: str = "auto",
        attention: str = "sdpa",
        allow_pickle: bool = False,
    ) -> InstrumentedModel:
        """Open a checkpoint folder.

        Raises:
            MissingExtraError: its package is not installed; nothing has been read.
            ModelError, CapabilityError, IdentityError: see `load_model`.
        """
        self.require()
        module = importlib.import_module(self.module)
        opened: InstrumentedModel = module.open_folder(
            folder,
            name=name,
            source=source,
            device=device,
            dtype=dtype,
            attention=self.attention_for(attention) if attention in ("sdpa", "eager") else attention,
            allow_pickle=allow_pickle,
        )
        return opened


_TABLE = (
    BuiltIn(
        name=DEFAULT,
        capabilities=_ALL | {"edges"},
        module="mech_interp.backends.huggingface.checkpoint",
        summary="runs a checkpoint's own modules, piece by piece (the default)",
        about="Runs the submodules of the checkpoint's Hugging Face model one after the other, so that every "
        "site is a value in hand. Sweeps reuse what an intervention cannot change, and generation keeps "
        "keys and values. Every other backend is compared with it.",
    ),
    BuiltIn(
        name="hooks",
        module="mech_interp.backends.hooks",
        summary="plain PyTorch hooks on the unmodified library model (the reference)",
        about="Runs the library's own forward, unmodified, with plain PyTorch hooks on its submodules: slow, "
        "short and hard to get wrong, so it is the reference for the others. Architectures without a layout "
        "run on it at block level.",
    ),
    BuiltIn(
        name="transformerlens",
        module="mech_interp.backends.transformerlens",
        summary="TransformerLens 4 (TransformerBridge) around the same weights",
        about="Wraps the loaded library model in TransformerLens' `TransformerBridge`, offline, and reads "
        "and writes its hook points. The bridge computes attention step by step (`eager`) whatever is asked.",
        package="transformer_lens",
        extra="transformerlens",
        attention=("eager",),
    ),
    BuiltIn(
        name="nnsight",
        module="mech_interp.backends.nnsight",
        summary="nnsight 0.8 (tracing) around the same weights",
        about="Wraps the loaded library model in nnsight's `TransformersModel`, offline, and reads and "
        "writes module inputs and outputs inside one trace per forward.",
        package="nnsight",
        extra="nnsight",
    ),
    BuiltIn(
        name="mlx",
        module="mech_interp.backends.mlx",
        summary="MLX (Apple silicon; Linux on the CPU), from the same files",
        about="An implementation of its own in MLX, read from the same safetensors files, for GPT-2, Llama, "
        "Qwen 2, Qwen 3 and Gemma 2. Tensors cross its boundary as torch tensors. It has no gradients.",
        capabilities=_ALL - {"gradients"},
        package="mlx.core",
        extra="mlx",
        attention=("eager",),
        devices=("mps", "cpu"),
        dtypes=("float32", "bfloat16", "float16"),
        models=("gpt2", "llama", "qwen2", "qwen3", "gemma2"),
        bound=1e-3,
    ),
)

BACKENDS = {one.name: one for one in _TABLE}
"""Every built-in backend by name, the default first."""


def built_in(name: str, others: Iterable[str] = ()) -> BuiltIn:
    """The built-in backend called `name`; `others` are further names that exist elsewhere.

    Raises:
        InputError: there is none.
    """
    if name in BACKENDS:
        return BACKENDS[name]
    known = [*BACKENDS, *others]
    raise InputError(
        f"There is no backend {name!r:.80}.", nearest(name, known) or f"There are: {', '.join(known)}."
    )


def able(needs: Iterable[str]) -> list[str]:
    """Built-in backends that have all of these capabilities, in the order of the table."""
    wanted = set(needs)
    return [one.name for one in _TABLE if wanted <= one.capabilities]


def on_this_machine(devices: Iterable[str]) -> str:
    """The first of these devices that this machine has; the CPU always is."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return next((device for device in devices if there.get(device)), "cpu")
