"""The demo's three measurements as stored runs: anyone can verify, replay and compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp.config.spec import Spec
from mech_interp.experiments import registry
from mech_interp.orchestration import backends
from mech_interp.orchestration.prepare import place_of
from mech_interp.orchestration.progress import Listener
from mech_interp.orchestration.runner import RunOutcome, run_spec, shared_session
from mech_interp.orchestration.session import Session

if TYPE_CHECKING:
    from mech_interp.backends.protocol import InstrumentedModel
    from mech_interp.config.settings import Settings

TEMPLATE = "The capital of {COUNTRY} is"
MOST = 500
"""More prompts than there are countries: every country that suits the tokenizer is asked."""

_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "direct_logit_attribution": ("Which components write the capital into the logits?", {}),
    "logit_lens": ("After which layer does the residual stream name the capital?", {}),
    "circuit_patching": (
        "Which heads carry the country to the last token?",
        {"kind": "z", "positions": "last", "normalise": "auto", "control_cells": None},
    ),
}


def demo_specs(
    model: str, *, device: str = "auto", dtype: str = "auto", backend: str = "huggingface"
) -> list[Spec]:
    """The specs of the demo, one for each family that it shows."""
    data = {"task": "facts", "n": MOST, "task_options": {"templates": [TEMPLATE]}}
    return [
        Spec.from_dict(
            {
                "name": f"demo-{family.replace('_', '-')}",
                "family": family,
                "description": question,
                "model": model,
                "backend": backend,
                "device": device,
                "dtype": dtype,
                "parameters": {**data, **more},
                "tags": ["demo"],
            }
        )
        for family, (question, more) in _FAMILIES.items()
    ]


def open_for_demo(
    model: str, settings: Settings, *, backend: str, device: str = "auto", dtype: str = "auto"
) -> InstrumentedModel:
    """The model on the backend; refused before it is loaded where a method of the demo could not run.

    Raises:
        CapabilityError, MissingExtraError: the backend cannot, or is not installed.
        ModelError: the model cannot be found or opened.
    """
    chosen = backends.backend(backend)
    for spec in demo_specs(model, backend=backend):
        backends.require(chosen, registry.get(spec.family).needs, spec.family)
    session = Session(settings)
    try:
        found = session.find(model, None)
    finally:
        session.close()
    chosen.check(found)
    if Path(found.source).expanduser().is_dir():
        found = replace(found, name=found.folder.resolve().name)  # a title is no place for a path
    wanted = (settings.device if device == "auto" else device, settings.dtype if dtype == "auto" else dtype)
    return chosen.load(found, place_of(*wanted, "sdpa", found, chosen))


def store_demo_runs(
    model_name: str,
    settings: Settings,
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "huggingface",
    model: InstrumentedModel | None = None,
    progress: Listener | None = None,
    session: Session | None = None,
) -> list[str]:
    """Run the demo's specs, or find the runs that have their numbers; returns the run ids.

    Args:
        model_name: as for `load_model`.
        model: the same model already opened, so that it is not loaded twice.

    Raises:
        MechError: a run cannot be made; see `run_spec`.
    """
    return [
        str(done.run_id)
        for done in demo_outcomes(
            demo_specs(model_name, device=device, dtype=dtype, backend=backend),
            settings,
            model,
            progress,
            session,
        )
    ]


def demo_outcomes(
    specs: Sequence[Spec],
    settings: Settings,
    model: InstrumentedModel | None,
    progress: Listener | None,
    session: Session | None,
) -> list[RunOutcome]:
    """What became of each spec."""
    with shared_session(settings, session) as shared:
        if model is not None:
            shared.adopt(model)
        return [run_spec(spec, settings, progress=progress, session=shared) for spec in specs]
