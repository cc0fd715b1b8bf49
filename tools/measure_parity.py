"""Measure parity of the bundled models on every backend, for docs/backends.md: writes docs/parity.json.

Needs every backend installed (`pip install 'mech-interpretability[interp]'`), and refuses to write a record
in which a bound is missed.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mech_interp.backends import architectures
from mech_interp.backends.huggingface.layouts import supported
from mech_interp.backends.registry import BACKENDS, DEFAULT
from mech_interp.config.settings import resolve_settings
from mech_interp.orchestration.parity import parity
from mech_interp.orchestration.session import Session

RECORD = Path(__file__).parents[1] / "docs" / "parity.json"
MODELS = ("tinyworld", "tinyworld-llama")
PACKAGES = ("torch", "transformers", "transformer_lens", "nnsight", "mlx")


def measure() -> dict[str, Any]:
    """The whole record."""
    for one in BACKENDS.values():
        one.require()
    with tempfile.TemporaryDirectory() as scratch:
        session = Session(resolve_settings({"home": Path(scratch) / "runs", "device": "cpu"})[0])
        try:
            reports = {name: _kept(parity(name, session).to_dict()) for name in MODELS}
        finally:
            session.close()
    return {
        "machine": f"{platform.system()} on {platform.machine()}, CPU",
        "versions": {package: version(package) for package in PACKAGES},
        "models": reports,
        "architectures": {name: _architectures(name) for name in BACKENDS if name != DEFAULT},
    }


def _kept(report: dict[str, Any]) -> dict[str, Any]:
    """What the page shows: the worst of each kind of site and of each family."""
    kept = {key: report[key] for key in ("holds", "dtype", "prompt_lengths", "families")}
    kept["backends"] = {one["backend"]: _worst(one) for one in report["backends"]}
    return kept


def _worst(one: dict[str, Any]) -> dict[str, Any]:
    families: dict[str, float] = {}
    for name, found in one["metrics"].items():
        family = name.partition(".")[0]
        families[family] = max(families.get(family, 0.0), _short(found["gap"]))
    return {
        **{key: one[key] for key in ("package", "holds", "bound", "tokens_equal", "continuations_equal")},
        "kl": _short(one["kl"]),
        "sites": {kind: [_short(found["gap"]), found["layer"]] for kind, found in one["sites"].items()},
        "families": families,
    }


def _short(value: float | None) -> float:
    """Two digits; what is not finite stays so."""
    return float("inf") if value is None else float(f"{value:.1e}")


def _architectures(backend: str) -> dict[str, dict[str, Any]]:
    """What one backend shows of each architecture, beside the default one."""
    found: dict[str, dict[str, Any]] = {}
    default = {one.model_type: set(one.missing_kinds) for one in architectures.every()}
    for model_type in supported():
        info, refused = architectures.shown_by(backend, model_type)
        if refused is not None:
            found[model_type] = {"refused": refused}
        elif info is None:
            found[model_type] = {}
        else:
            lacking = {k: why for k, why in info.missing_kinds.items() if k not in default[model_type]}
            own = {"lacks": dict(sorted(lacking.items())), "capture_only": dict(info.capture_only)}
            found[model_type] = {key: value for key, value in own.items() if value}
    return found


def main() -> int:
    """Measure and write; 1 (and nothing written) where a bound is missed."""
    record = measure()
    missed = [name for name, report in record["models"].items() if not report["holds"]]
    if missed:
        print(f"A bound is missed on {', '.join(missed)}; see: mech parity {missed[0]}")
        return 1
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
