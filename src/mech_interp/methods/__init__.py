"""The science: pure functions from a model and prompts to a typed result with its controls.

Methods read no files, know no database and print nothing. Effects are computed per prompt first and
then summarised over groups of prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mech_interp.methods.dla import direct_logit_attribution
    from mech_interp.methods.lens import logit_lens
    from mech_interp.methods.patching import activation_patching
    from mech_interp.methods.tracing import causal_tracing

_HOMES = {
    "activation_patching": "patching",
    "causal_tracing": "tracing",
    "direct_logit_attribution": "dla",
    "logit_lens": "lens",
}

__all__ = ["activation_patching", "causal_tracing", "direct_logit_attribution", "logit_lens"]


def __getattr__(name: str) -> Any:
    """Import a method when it is first used, so that importing the package stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
