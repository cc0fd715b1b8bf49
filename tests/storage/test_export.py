"""Runs as one file."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from mech_interp.storage.errors import StorageError
from mech_interp.storage.export import export_json, export_zip, metrics_csv
from mech_interp.storage.folder import RunFolder
from mech_interp.storage.verify import verify


def test_a_zip_holds_the_whole_run_and_verifies_where_it_is_unpacked(finished, tmp_path):
    (finished.path / "derived").mkdir()
    (finished.path / "derived" / "more.md").write_text("later")
    target = export_zip(finished.path, tmp_path / "out" / "run.zip")
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "there")
    copy = RunFolder(tmp_path / "there" / finished.id)
    assert verify(copy.path) == []
    assert copy.metrics() == finished.metrics()
    assert copy.receipt() == finished.receipt()
    assert not (copy.path / "derived").exists()
    export_zip(finished.path, target, derived=True)
    assert f"{finished.id}/derived/more.md" in zipfile.ZipFile(target).namelist()


def test_the_same_run_gives_the_same_bytes(finished, tmp_path):
    first = export_zip(finished.path, tmp_path / "a.zip").read_bytes()
    copy = tmp_path / "copy" / finished.id
    shutil.copytree(finished.path, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    assert export_zip(copy, tmp_path / "b.zip").read_bytes() == first


def test_unfinished_and_changed_runs_are_not_exported(finished, begin_run, tmp_path):
    with pytest.raises(StorageError, match="has not finished"):
        export_zip(begin_run().path, tmp_path / "a.zip")
    (finished.path / "report.md").write_text("better")
    with pytest.raises(StorageError, match=r"no longer what was sealed: report\.md: changed"):
        export_zip(finished.path, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_one_json_document(finished, results):
    bundle = json.loads(json.dumps(export_json(finished.path), allow_nan=False))
    assert bundle["metrics"] == results["metrics"]
    assert bundle["tables"] == results["tables"]
    assert bundle["views"] == results["views"]
    assert bundle["findings"] == results["findings"]
    assert bundle["spec"]["family"] == "logit_lens"
    assert bundle["result"]["contents"]["tensors"]["blocks.1.attn.hook_z[7]"]["shape"] == [2, 3]
    assert [event["event"] for event in bundle["events"]] == ["created", "finished"]


def test_metrics_of_many_runs_as_csv(finished, begin_run):
    other = begin_run(receipt={"model": {"id": "other, model"}})
    other.finish("complete", metrics={"a": {"value": None}, "b": {"value": 1e-17, "n": 3}})
    rows = list(csv.DictReader(io.StringIO(metrics_csv([finished.path, other.path]))))
    assert [(row["run"], row["metric"], row["value"], row["low"], row["high"]) for row in rows] == [
        (finished.id, "rank", "2.5", "1.0", "4.0"),
        (other.id, "a", "", "", ""),
        (other.id, "b", "1e-17", "", ""),
    ]
    assert [row["model"] for row in rows] == ["gpt2", "other, model", "other, model"]


def test_reading_runs_loads_neither_the_database_nor_torch(finished):
    """Only opening a store loads the database library; numpy waits for the first array."""
    code = (
        "import sys, mech_interp.storage as s; from mech_interp.storage.verify import verify; "
        f"run = s.RunFolder({str(finished.path)!r}); assert run.metrics() and not verify(run.path); s.Store; "
        "print([n for n in ('sqlalchemy', 'torch', 'numpy', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
