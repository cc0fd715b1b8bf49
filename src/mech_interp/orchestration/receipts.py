"""The receipt: everything about a run's inputs and environment, written before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mech_interp.config.canonical import digest
from mech_interp.orchestration.prepare import ENGINE_VERSION

if TYPE_CHECKING:
    from mech_interp.orchestration.models import FoundModel
    from mech_interp.orchestration.prepare import Prepared
    from mech_interp.orchestration.session import Session


def receipt_of(prepared: Prepared, session: Session, matrix: Mapping[str, Any]) -> dict[str, Any]:
    """The receipt of a run that is about to start (the run folder adds its id, key and time)."""
    spec, place = prepared.spec, prepared.place
    receipt: dict[str, Any] = {
        "name": spec.name,
        "family": prepared.family.name,
        "family_version": prepared.family.version,
        "engine_version": ENGINE_VERSION,
        "backend": prepared.backend.name,
        "device": place.device,
        "dtype": place.dtype,
        "attention": place.attention,
        "seed": spec.seed,
        "seeds": {"run": spec.seed},
        "model": about_model(prepared.model),
        "datasets": dict(prepared.datasets),
        "sites": [] if spec.hook_site is None else [spec.hook_site],
        "spec_sha256": digest(spec.to_dict()),
        "environment": environment_of(prepared, session),
    }
    if matrix:
        receipt["matrix"] = dict(matrix)
    if spec.parent_run is not None:
        receipt["parent_run"] = spec.parent_run
    return receipt


def environment_of(prepared: Prepared, session: Session) -> dict[str, Any]:
    """The environment with what this run decides itself: device, number format, threads."""
    environment = session.environment()
    decided = {"device": prepared.place.device.partition(":")[0], "dtype": prepared.place.dtype}
    if prepared.threads is not None:
        decided["threads"] = prepared.threads  # type: ignore[assignment]
    return {**environment, **decided}


def about_model(model: FoundModel) -> dict[str, Any]:
    """Which model it is: by name, by origin and by content."""
    from mech_interp.storage import redact

    return {
        "id": redact.text(model.name),
        "source": redact.text(model.source),
        "revision": model.commit or model.revision,
        "weights_sha256": model.weights_hash,
        "tokenizer_sha256": model.tokenizer_hash,
        "folder": redact.text(str(model.folder.absolute())),
    }
