"""A parity report on disk: one JSON file beside the runs, with what decided its numbers."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp.config.canonical import digest

if TYPE_CHECKING:
    from mech_interp.orchestration.parity_result import ParityReport
    from mech_interp.orchestration.session import Session

FOLDER = "parity"
FORMAT = "mech-parity/1"


def record(report: ParityReport, session: Session) -> dict[str, Any]:
    """The document: when and where it was measured, the report, and a hash of all that."""
    from mech_interp.orchestration.prepare import ENGINE_VERSION
    from mech_interp.storage import redact

    measured = report.to_dict()
    measured["model"] = {**measured["model"], "name": redact.text(str(measured["model"]["name"]))}
    content = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine_version": ENGINE_VERSION,
        "environment": session.environment(),
        "report": measured,
    }
    return {**content, "sha256": digest(content)}


def is_intact(document: dict[str, Any]) -> bool:
    """Whether a stored document is the one that was written."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return document.get("sha256") == digest(content)


def store(document: dict[str, Any], home: Path) -> Path:
    """Write the document into the folder `parity` of the store; returns the file.

    Raises:
        StorageError: the folder cannot be written.
    """
    from mech_interp.storage import atomic

    model = re.sub(r"[^A-Za-z0-9._-]+", "-", str(document["report"]["model"]["name"])).strip("-.") or "model"
    stamp = re.sub(r"[^0-9T]", "", str(document["created"]).partition("+")[0])
    path = home / FOLDER / f"{model[-60:]}-{stamp}-{str(document['sha256'])[:8]}.json"
    atomic.write_json(path, document)
    return path
