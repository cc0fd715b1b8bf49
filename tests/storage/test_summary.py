"""What the index reads from a folder, whatever the folder says."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from mech_interp.storage import tables
from mech_interp.storage.database import Database
from mech_interp.storage.index import Store
from mech_interp.storage.records import fetch, put
from mech_interp.storage.summary import summarise


@pytest.fixture
def store(root):
    return Store(root)


ODD = ["blocks.3.hook_resid_pre", "z.1.2", "resid_pre.99999999999999999999999", "2026-01-01", "\ud800"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    "name",
    "family",
    "tags",
    "parameters",
    "model",
    "seed",
    "created",
    "datasets",
    "sites",
    "matrix",
    "hook_site",
]
SAID = st.dictionaries(st.sampled_from(NAMES), ANYTHING)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SAID, SAID, ANYTHING)
def test_whatever_a_folder_says_it_can_be_indexed(root, spec, receipt, value):
    """Receipts, specs and metrics of other versions, or edited by hand."""
    folder = root / "run-000001-0123abcd"
    (folder / "derived").mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(json.dumps(spec))
    for name, content in {
        "receipt.json": {**receipt, "format": 1, "run": folder.name, "key": "k"},
        "result.json": {"format": 1, "status": "complete", "files": value, "seconds": value},
        "metrics.json": value if isinstance(value, dict) else {"rank": value, "other": {"value": value}},
        "derived/labels.json": {"tags": value, "archived": value},
    }.items():
        (folder / name).write_text(json.dumps(content))
    with Database(root, in_memory=True).writing() as connection:
        assert put(connection, summarise(folder))
        [record] = fetch(connection, root, select(tables.runs))
    assert (record.number, record.status) == (1, "complete")
    json.dumps(record.to_dict(), allow_nan=False).encode("utf-8")


def test_specs_in_yaml_that_json_lacks(begin_run, store):
    run = begin_run()
    (run.path / "spec.yaml").write_text(
        "name: 2026-01-01\nfamily: !!binary aGk=\nparameters: {1: 2, null: [x], s: !!set {a, b}}\n"
    )
    record = store.record(run)
    assert record.name == "2026-01-01"
    assert [found.number for found in store.runs("parameter.1 = 2 and parameter.null = x")] == [1]


def test_long_parameters_are_cut_short(begin_run, store):
    run = begin_run(parameters={"prompts": ["x" * 5000, *map(str, range(3000))]})
    rows = summarise(run.path).parameters
    assert len(rows) == 500
    assert max(len(row["text"]) for row in rows) == 500
