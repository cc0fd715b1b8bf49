"""Runs on disk: folders that are the truth, and an index that can be rebuilt from them.

    from mech_interp.storage import Store
    store = Store("artifacts")
    begun = store.begin(key, spec_yaml, receipt)     # new, continued, or already there
    begun.folder.save_unit("pair-0", {"effect": 0.4})
    begun.folder.finish("complete", metrics={"effect": {"value": 0.4, "n": 1}})
    store.record(begun.folder)
    store.runs("family = logit_lens and metric.effect > 0.3")

Names are imported when first used: the database library loads when a store is opened, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mech_interp.storage.errors import StorageError
    from mech_interp.storage.export import export_json, export_zip, metrics_csv
    from mech_interp.storage.folder import RunFolder
    from mech_interp.storage.index import Begun, Store, rebuild
    from mech_interp.storage.receipt import environment
    from mech_interp.storage.records import RunRecord
    from mech_interp.storage.verify import Problem

_HOMES = {
    "StorageError": "errors",
    "export_json": "export",
    "export_zip": "export",
    "metrics_csv": "export",
    "RunFolder": "folder",
    "RunRecord": "records",
    "Begun": "index",
    "Store": "index",
    "rebuild": "index",
    "environment": "receipt",
    "Problem": "verify",
}

__all__ = [
    "Begun",
    "Problem",
    "RunFolder",
    "RunRecord",
    "StorageError",
    "Store",
    "environment",
    "export_json",
    "export_zip",
    "metrics_csv",
    "rebuild",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mech_interp.storage' has no attribute {name!r}")
    return getattr(import_module(f"mech_interp.storage.{_HOMES[name]}"), name)
