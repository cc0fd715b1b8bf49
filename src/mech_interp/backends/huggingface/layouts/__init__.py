"""One small file per architecture family: where its parts are and how they are joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mech_interp.errors import CapabilityError

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.layouts.base import Layout


def supported() -> tuple[str, ...]:
    """The `model_type`s that have a layout."""
    return tuple(sorted(_registry()))


def layout_for(module: Any) -> Layout:
    """The layout of a loaded Hugging Face causal language model.

    Raises:
        CapabilityError: when the architecture has no layout yet.
    """
    model_type = getattr(module.config, "model_type", "")
    factory = _registry().get(model_type)
    if factory is None:
        raise CapabilityError(
            f"The architecture {model_type!r} has no layout in this version.",
            f"Architectures that can be opened: {', '.join(supported())}.",
        )
    return factory(module)


def _registry() -> dict[str, Callable[[Any], Layout]]:
    from mech_interp.backends.huggingface.layouts.gpt2 import GPT2Layout
    from mech_interp.backends.huggingface.layouts.llama import LlamaLayout

    return {layout.model_type: layout for layout in (GPT2Layout, LlamaLayout)}
