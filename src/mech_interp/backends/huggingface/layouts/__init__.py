"""One small file per architecture family: where its parts are and how they are joined.

To add one, write a module here with a `Layout` for each `model_type`; it is found by itself.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

from mech_interp.errors import CapabilityError

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.layouts.base import Layout


def supported() -> tuple[str, ...]:
    """The `model_type`s that have a layout."""
    return tuple(sorted(layouts()))


def layout_for(module: Any) -> Layout:
    """The layout of a loaded Hugging Face causal language model.

    Raises:
        CapabilityError: when the architecture has no layout, or this checkpoint uses an option of it
            that the layout does not cover.
    """
    model_type = getattr(module.config, "model_type", "")
    factory = layouts().get(model_type)
    if factory is None:
        raise CapabilityError(
            f"The architecture {model_type!r} has no layout in this version.",
            f"Architectures that can be opened: {', '.join(supported())}.",
        )
    return factory(module)  # type: ignore[call-arg]  # every concrete layout is made from its module


def tiny_module(model_type: str, **changes: Any) -> Any:
    """A tiny library model with random weights: the layout's own options with some changed.

    Raises:
        CapabilityError: when the architecture has no layout.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if model_type not in layouts():
        raise CapabilityError(f"The architecture {model_type!r} has no layout in this version.")
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    layouts()[model_type].register()
    options = copy.deepcopy({**ends, **layouts()[model_type].tiny, **changes})  # configs edit them in place
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options)).eval()


@cache
def layouts() -> dict[str, type[Layout]]:
    """The layout of each `model_type`: every class with one in the modules of this package."""
    found: dict[str, type[Layout]] = {}
    for entry in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            model_type = vars(value).get("model_type") if own else None
            if model_type is not None:
                found[model_type] = value
    return found
