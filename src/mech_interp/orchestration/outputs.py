"""What of a result is kept: tensors within the policy, figures, the report."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mech_interp.reports.run_report import Picture, Told, run_report
from mech_interp.storage import contents
from mech_interp.storage.contents import Contents

if TYPE_CHECKING:
    from mech_interp.config.spec import ArtifactPolicy
    from mech_interp.experiments.result import Result
    from mech_interp.storage import RunFolder
    from mech_interp.storage.reading import RunReader
    from mech_interp.views import View

ACTIVATIONS = "activations"
"""Tensors of this name, or `activations.…`, are captured activations, kept only if the policy says so."""

Event = Callable[..., None]


@dataclass(frozen=True)
class Kept:
    """Contents within the policy, and the tensors that were left out because of their size."""

    contents: Contents
    left_out: tuple[str, ...]

    def facts(self, policy: ArtifactPolicy) -> dict[str, Any]:
        """What `result.json` says about what was kept."""
        return {
            "activation_tensors": policy.retain_activation_tensors,
            "max_artifact_bytes": int(policy.max_artifact_bytes),
            "left_out": list(self.left_out),
        }


def keep(
    result: Result,
    run: RunFolder,
    spec: Mapping[str, Any],
    policy: ArtifactPolicy,
    pictures: Mapping[str, bytes],
) -> Kept:
    """Everything that the run is to store.

    The report is made last, from what is kept. Tensors give way when the files would be larger than the
    policy allows, the largest first; numbers never do.
    """
    whole = result.contents(figures=pictures)
    whole = replace(whole, notes={**whole.notes, "notes": _noted(run)})
    if not policy.retain_activation_tensors:
        small = {name: array for name, array in whole.tensors.items() if not is_activation(name)}
        whole = replace(whole, tensors=small)
    whole, left_out = _within(whole, int(policy.max_artifact_bytes))
    for name in left_out:
        run.event("left_out", tensor=name, limit=int(policy.max_artifact_bytes))
    if policy.write_report:
        told = told_of(whole, run.id, result.status, spec, run.receipt(), left_out)
        whole = replace(whole, report=run_report(told))
    return Kept(whole, left_out)


def is_activation(name: str) -> bool:
    """Whether a tensor of this name holds captured activations."""
    return name == ACTIVATIONS or name.startswith(f"{ACTIVATIONS}.")


def holds(run: RunReader, policy: ArtifactPolicy) -> bool:
    """Whether a stored run kept what this policy asks for."""
    kept = run.result().get("kept", {})
    if policy.retain_activation_tensors and not kept.get("activation_tensors", False):
        return False
    return not (kept.get("left_out") and int(policy.max_artifact_bytes) > kept.get("max_artifact_bytes", 0))


def figures(views: Mapping[str, View], event: Event) -> dict[str, bytes]:
    """A PNG of every view; a view that cannot be drawn is left to its data, and said so in the events."""
    drawn: dict[str, bytes] = {}
    for name, view in views.items():
        try:
            drawn[name] = _png(view)
        except Exception as error:
            event("warning", message=f"the view {name} could not be drawn: {type(error).__name__}: {error}")
    return drawn


def told_of(
    whole: Contents,
    run: str,
    status: str,
    spec: Mapping[str, Any],
    receipt: Mapping[str, Any],
    left_out: tuple[str, ...] = (),
) -> Told:
    """What the report of these contents says."""
    listing = contents.encode(replace(whole, tensors={})).listing
    views = whole.views

    def about(name: str) -> Mapping[str, Any]:
        return views[name] if isinstance(views.get(name), Mapping) else {}

    return Told(
        run=run,
        status=status,
        spec=spec,
        receipt=receipt,
        metrics=whole.metrics,
        findings=whole.findings,
        controls=whole.controls,
        notes=whole.notes,
        pictures=[
            Picture(
                name, place["path"], str(about(name).get("title", name)), str(about(name).get("note", ""))
            )
            for name, place in listing["figures"].items()
        ],
        tables={name: place["path"] for name, place in listing["tables"].items()},
        left_out=left_out,
    )


def told_again(run: RunReader, up: str = "") -> Told:
    """What the report of a stored run says; `up` leads from the report's folder to the run's.

    Raises:
        StorageError: the run is unfinished or damaged.
    """
    result, findings = run.result(), run.findings()
    listing = result.get("contents", {})

    def picture(name: str, path: str) -> Picture:
        view = run.view(name) if name in run.names("views") else {}
        return Picture(name, f"{up}{path}", str(view.get("title", name)), str(view.get("note", "")))

    return Told(
        run=run.id,
        status=run.status,
        spec=run.spec(),
        receipt=run.receipt(),
        metrics=run.metrics(),
        findings=findings.get("findings", ()),
        controls=findings.get("controls", ()),
        notes=findings.get("notes", {}),
        pictures=[picture(name, place["path"]) for name, place in listing.get("figures", {}).items()],
        tables={name: f"{up}{place['path']}" for name, place in listing.get("tables", {}).items()},
        left_out=tuple(result.get("kept", {}).get("left_out", ())),
    )


def _noted(run: RunReader) -> list[str]:
    """What the family noted, in this process or in one that was interrupted."""
    texts = [str(event.get("text")) for event in run.events() if event["event"] == "note"]
    return list(dict.fromkeys(texts))


def _within(whole: Contents, limit: int) -> tuple[Contents, tuple[str, ...]]:
    tensors = dict(whole.tensors)
    size = contents.encode(replace(whole, tensors={})).size + sum(map(_bytes, tensors.values()))
    left_out = []
    for name in sorted(tensors, key=lambda name: _bytes(tensors[name]), reverse=True):
        if size <= limit:
            break
        size -= _bytes(tensors.pop(name))
        left_out.append(name)
    return replace(whole, tensors=tensors), tuple(left_out)


def _bytes(array: Any) -> int:
    """Bytes of a tensor's file, its header included."""
    return int(array.nbytes) + 128


def _png(view: View) -> bytes:
    from mech_interp.rendering.figure import figure

    out = io.BytesIO()
    figure(view).savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()
