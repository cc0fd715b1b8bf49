"""Wrapping a library model in TransformerLens' bridge, offline and without touching the model itself."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mech_interp.errors import CapabilityError, MissingExtraError

PACKAGE, EXTRA = "transformer_lens", "transformerlens"


def require_package() -> None:
    """Refuse where TransformerLens is not installed.

    Raises:
        MissingExtraError: with the install command.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingExtraError(PACKAGE, EXTRA)


def wrap(module: Any, name: str, *, own_weights: bool = False) -> Any:
    """A `TransformerBridge` around a copy of `module` that shares its weights.

    The bridge replaces submodules, gives the unembedding a bias and switches attention to eager, all in
    place. On a copy of the module tree none of that reaches the caller's model; parameters and buffers are
    the caller's own tensors, so that the copy takes no memory. With `own_weights` they are copied too.

    Raises:
        CapabilityError: when TransformerLens cannot wrap the architecture.
    """
    require_package()
    _refuse_composite(module, name)
    shared = {} if own_weights else {id(x): x for x in (*module.parameters(), *module.buffers())}
    own = copy.deepcopy(module, shared)
    own.set_attn_implementation("eager")  # fused attention shows no scores and no pattern
    with quiet():
        # Not `boot_transformers`, which adds nothing for a loaded model but look-ups on the hub (of a
        # tokenizer, of processors) and, for image models, even installs packages to make them.
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        try:
            bridge = build_bridge_from_module(
                own, type(module).__name__, hf_config=copy.deepcopy(own.config), model_name=name
            )
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CapabilityError(
                f"TransformerLens cannot wrap {name} ({type(module).__name__}): {line:.200}",
                "Use backend: huggingface.",
            ) from error
    # Projections that the bridge cuts out of fused ones are new parameters.
    for part in bridge.modules():
        for weight in part.parameters(recurse=False):
            weight.requires_grad_(False)
    bridge.eval()
    return bridge


def unsupported_reason(model_type: str) -> str:
    """Why TransformerLens cannot wrap an architecture; empty where it can.

    It is found by wrapping a tiny model of it, which takes about a second.

    Raises:
        MissingExtraError: when TransformerLens is not installed.
    """
    from mech_interp.backends.huggingface.layouts import tiny_module

    require_package()
    try:
        wrap(tiny_module(model_type), model_type)
    except CapabilityError as error:
        return error.message
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the package's warnings and log lines off the terminal; what matters is raised instead.

    Importing it also lowers the level of another library's logger; that is put back.
    """
    library, root, silent = logging.getLogger("transformers"), logging.getLogger(), logging.NullHandler()
    level, disabled = library.level, root.manager.disable
    root.addHandler(silent)  # a root logger without handlers would be given one for good
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(silent)
        library.setLevel(level)


def _refuse_composite(module: Any, name: str) -> None:
    """Text models inside image or sound models have other module paths than the bridge's text models."""
    config = module.config
    if config.get_text_config() is not config:
        raise CapabilityError(
            f"TransformerLens wraps {name} ({type(module).__name__}) only together with its image or sound "
            "processor.",
            "Use backend: huggingface, or load the text model by itself.",
        )
