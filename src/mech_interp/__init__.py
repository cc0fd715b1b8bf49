"""mech: open up a language model, run a controlled experiment, leave behind a result others can check.

    from mech_interp import load_model, logit_lens
    model = load_model("tinyworld")            # or "gpt2", or a folder
    result = logit_lens(model, "The capital of France is", " Paris")
    result.crossover_layer; result.plot()

Names are imported when first used, so that importing the package stays instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.opening import open_module
    from mech_interp.backends.loading import load_model
    from mech_interp.backends.protocol import Row
    from mech_interp.datasets import task
    from mech_interp.errors import MechError
    from mech_interp.interventions import Intervention
    from mech_interp.methods.dla import direct_logit_attribution
    from mech_interp.methods.lens import logit_lens
    from mech_interp.methods.patching import activation_patching
    from mech_interp.methods.tracing import causal_tracing
    from mech_interp.sites import Site
    from mech_interp.workspace import open

_HOMES = {
    "load_model": "backends.loading",
    "open": "workspace",
    "open_module": "backends.huggingface.opening",
    "Row": "backends.protocol",
    "task": "datasets",
    "MechError": "errors",
    "Intervention": "interventions",
    "direct_logit_attribution": "methods.dla",
    "logit_lens": "methods.lens",
    "activation_patching": "methods.patching",
    "causal_tracing": "methods.tracing",
    "Site": "sites",
}

__all__ = [
    "Intervention",
    "MechError",
    "Row",
    "Site",
    "activation_patching",
    "causal_tracing",
    "direct_logit_attribution",
    "load_model",
    "logit_lens",
    "open",
    "open_module",
    "task",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mech_interp' has no attribute {name!r}")
    value = getattr(import_module(f"mech_interp.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
