"""A certificate on disk: one JSON file beside the runs, with what decided its numbers."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp.config.canonical import digest

if TYPE_CHECKING:
    from mech_interp.methods.circuits.certificate.result import Certificate
    from mech_interp.orchestration.session import Session

FOLDER = "certificates"
FORMAT = "mech-certificate/1"


def record(certificate: Certificate, session: Session) -> dict[str, Any]:
    """The document: when and where it was measured, the certificate, and a hash of all that."""
    from mech_interp.orchestration.prepare import ENGINE_VERSION

    content = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine_version": ENGINE_VERSION,
        "environment": session.environment(),
        "certificate": certificate.to_dict(),
    }
    return {**content, "sha256": digest(content)}


def is_intact(document: dict[str, Any]) -> bool:
    """Whether a stored document is the one that was written."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return document.get("sha256") == digest(content)


def store(document: dict[str, Any], home: Path) -> Path:
    """Write the document into the folder `certificates` of the store; returns the file.

    Raises:
        StorageError: the folder cannot be written.
    """
    from mech_interp.storage import atomic

    stamp = re.sub(r"[^0-9T]", "", str(document["created"]).partition("+")[0])
    scope = document["certificate"]["scope"]
    path = home / FOLDER / f"{scope}-{stamp}-{str(document['sha256'])[:8]}.json"
    atomic.write_json(path, document)
    return path
