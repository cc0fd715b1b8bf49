"""The index: found again by every name, equal to a rebuilt one, and honest about what it cannot read."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest
from sqlalchemy import create_engine

from mech_interp.storage import migrations, tables
from mech_interp.storage.database import Database
from mech_interp.storage.errors import DamagedIndexError, StorageError
from mech_interp.storage.folder import RunFolder
from mech_interp.storage.index import Store, rebuild
from mech_interp.storage.records import dump
from mech_interp.storage.summary import summarise
from mech_interp.storage.verify import verify

SPEC = "name: demo\nfamily: logit_lens\nmodel: gpt2\ntags: [paper]\n"


def contents(store):
    with store._database.reading() as connection:
        return dump(connection)


@pytest.fixture
def store(root):
    return Store(root)


@pytest.fixture
def some_runs(begin_run, store, results):
    """Four runs in every state that lasts, and one that is being executed."""
    receipt = {
        "created": "2026-03-01T12:00:00+01:00",
        "model": {"id": "gpt2", "weights": "aa"},
        "datasets": {"facts": {"sha256": "bb"}, "more": "cc"},
        "sites": ["resid_pre.3"],
        "seed": 7,
        "device": "cpu",
        "matrix": {"id": "m1"},
    }
    parameters = {"layers": [1, 2], "hook_sites": ["blocks.5.attn.hook_z[1]", "odd"], "deep": {"on": True}}
    runs = [begin_run(f"key{n}", receipt, parameters=parameters, tags=["paper", n]) for n in range(5)]
    runs[0].finish("complete", facts={"datasets": {"made": "dd"}}, **results)
    runs[1].finish("failed", error="no")
    runs[2].finish("void")
    runs[3].release()
    store.refresh()
    return runs


def test_what_is_kept_of_a_run(some_runs, store):
    record = store.find("1")
    assert (record.model, record.seed, record.device, record.matrix) == ("gpt2", 7, "cpu", "m1")
    assert (record.created, record.status, record.key) == ("2026-03-01T11:00:00.000Z", "complete", "key0")
    assert record.metrics == {"rank": 2.5}
    assert record.tags == ("0", "paper")
    assert json.loads(json.dumps(record.to_dict()))["id"] == record.id
    summary = summarise(record.path)
    assert [(row["site"], row["layer"]) for row in summary.sites] == [
        ("blocks.3.hook_resid_pre", 3),
        ("blocks.5.attn.hook_z[1]", 5),
        ("layer 1", 1),
        ("layer 2", 2),
        ("odd", None),
    ]
    assert [(row["name"], row["sha256"]) for row in summary.datasets] == [
        ("facts", "bb"),
        ("made", "dd"),
        ("more", "cc"),
    ]
    assert {"name": "deep.on", "text": "true", "number": None} in summary.parameters
    assert summary.metrics[0] == {
        "name": "rank",
        "value": 2.5,
        "low": 1.0,
        "high": 4.0,
        "n": 32,
        "unit": "rank",
        "better": "lower",
    }
    assert len(summary.files) == 10


def test_states_are_those_of_the_folders(some_runs, store):
    assert [record.status for record in sorted(store.runs(), key=lambda record: record.number)] == [
        "complete",
        "failed",
        "void",
        "interrupted",
        "running",
    ]
    some_runs[4].release()  # as when its process is killed
    assert [record.number for record in Store(store.root).runs("status = interrupted")] == [5, 4]


def test_runs_come_newest_first_and_limited(some_runs, store):
    assert [record.number for record in store.runs(limit=2)] == [5, 4]
    assert [
        record.number for record in store.runs("metric.rank < 3 and site = resid_pre.3 and layer = 2")
    ] == [1]
    assert [record.number for record in store.runs("has error")] == [2]


def test_a_run_is_found_by_whatever_names_it(some_runs, store, monkeypatch):
    run = some_runs[1]
    suffix = run.id[-8:]
    for text in (
        "2",
        "000002",
        "run-000002",
        run.id,
        suffix,
        suffix[:6],
        run.id[:-2],
        str(run.path),
        f" {run.id} ",
    ):
        assert store.find(text).id == run.id, text
    monkeypatch.chdir(store.root)
    assert store.find(run.id + "/").id == run.id
    for text in ("99", "zzzz", "", "/", "..", "-1", "run", "9" * 30, "\x00", "\ud800"):
        with pytest.raises(StorageError, match="There is no run") as caught:
            store.find(text)
        assert run.id in caught.value.hint or "latest" in caught.value.hint


def test_a_name_that_fits_several_runs_lists_them(some_runs, store):
    copy = store.root / "run-000002-0123abcd"
    shutil.copytree(some_runs[1].path, copy)
    store.refresh()
    with pytest.raises(StorageError, match=r"'2' fits 2 runs: run-000002-\w+, run-000002-\w+\."):
        store.find("2")
    assert store.find("0123abcd").number == 2


def test_copied_and_deleted_folders_are_seen(some_runs, store):
    shutil.rmtree(some_runs[2].path)
    (store.root / "run-000009-0123abcd").mkdir()
    store.refresh()
    assert sorted(record.number for record in store.runs()) == [1, 2, 4, 5]
    assert list(store.unreadable) == ["run-000009-0123abcd"]
    assert "does not exist" in store.unreadable["run-000009-0123abcd"]


def test_a_rebuilt_index_equals_the_index(some_runs, store):
    store.archive(["1"])
    store.tag("2", add=["later"])
    before = contents(store)
    assert len(before["runs"]) == 5
    assert all(before.values())
    assert store.rebuild().recorded == 5
    assert contents(store) == before
    store.close()
    for path in store.root.glob("index.sqlite*"):
        path.unlink()
    assert contents(Store(store.root)) == before


def test_a_rebuild_corrects_a_wrong_index(some_runs, store):
    before = contents(store)
    with store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE runs SET family = 'wrong', archived = 1")
        connection.exec_driver_sql("DELETE FROM metrics")
    assert contents(store) != before
    store.rebuild()
    assert contents(store) == before


def test_a_rebuild_does_not_launder_a_forgery(some_runs, store):
    from mech_interp.storage import seal

    path = some_runs[0].path / "result.json"
    content = json.loads(path.read_text())
    del content["digest"]
    forged = seal.result_bytes({**content, "status": "void"})
    path.write_bytes(forged)
    path.with_name("seal.json").write_bytes(seal.seal_bytes(forged, some_runs[0].id))
    assert verify(some_runs[0].path) == []
    found = rebuild(store.root)
    assert found.changed == [some_runs[0].id]
    known = store.find("1").result_sha256
    assert [problem.path for problem in verify(some_runs[0].path, known)] == ["result.json"]


def test_begin_gives_the_stored_run_or_continues_or_starts(store):
    first = store.begin("k", SPEC, {})
    assert first.how == "new"
    with pytest.raises(StorageError, match="is being executed"):
        store.begin("k", SPEC, {})
    first.folder.save_unit("a", {"x": 1})
    first.folder.release()
    second = store.begin("k", SPEC, {}, environment={"python": "3.12"})
    assert (second.how, second.folder.id) == ("continued", first.folder.id)
    assert second.folder.events()[-1]["environment"] == {"python": "3.12"}
    assert second.folder.load_unit("a") == ({"x": 1}, {})
    second.folder.finish("complete")
    third = store.begin("k", SPEC, {})
    assert (third.how, third.folder.id) == ("stored", first.folder.id)
    assert store.begin("other", SPEC, {}).how == "new"
    assert store.begin("k", SPEC, {}, accept=lambda folder: bool(folder.names("tensors"))).how == "new"


def test_force_runs_again_and_continues_only_what_was_interrupted(store):
    store.begin("k", SPEC, {}).folder.finish("complete")
    forced = store.begin("k", SPEC, {}, force=True)
    assert (forced.how, store.find(forced.folder.id).number) == ("new", 2)
    assert store.begin("k", SPEC, {}, force=True).how == "new"  # the second is being executed
    forced.folder.release()
    again = store.begin("k", SPEC, {}, force=True)
    assert (again.how, again.folder.id) == ("continued", forced.folder.id)


def test_failed_runs_are_run_again(store):
    store.begin("k", SPEC, {}).folder.finish("failed", error="no memory")
    assert store.begin("k", SPEC, {}).how == "new"


def test_archived_runs_are_hidden_until_asked_for(some_runs, store):
    assert [record.id for record in store.archive(["1", "2"])] == [run.id for run in some_runs[:2]]
    assert sorted(record.number for record in store.runs()) == [3, 4, 5]
    assert sorted(record.number for record in store.runs("archived = true")) == [1, 2]
    assert len(store.runs(include_archived=True)) == 5
    assert verify(some_runs[0].path) == []
    store.archive(["1"], archived=False)
    assert sorted(record.number for record in store.runs()) == [1, 3, 4, 5]


def test_tags_can_be_added_and_taken_away_later(some_runs, store):
    assert store.tag("1", add=["b", "a"]).tags == ("0", "a", "b", "paper")
    assert store.tag("1", remove=["a", "paper"]).tags == ("0", "b", "paper")
    (some_runs[0].path / "derived" / "labels.json").write_text("[]")
    assert store.record(some_runs[0]).tags == ("0", "paper")
    assert [record.number for record in store.runs("tag = paper and tag = 3")] == [4]


def test_folders_elsewhere_are_not_recorded(store, tmp_path, finished):
    shutil.copytree(finished.path, tmp_path / finished.path.name)
    with pytest.raises(StorageError, match="is not in"):
        store.record(tmp_path / finished.path.name)
    with pytest.raises(StorageError, match="does not exist"):
        store.record(store.root / "run-000099-0123abcd")


def test_a_run_with_damaged_files_is_still_listed(some_runs, store):
    for name in ("spec.yaml", "metrics.json", "result.json"):
        (some_runs[0].path / name).write_text("{")
    assert store.record(some_runs[0]).status == "damaged"
    assert store.find("1").family is None
    (some_runs[0].path / "receipt.json").write_text('{"format": 2}')
    found = store.rebuild()
    assert found.recorded == 4
    assert "format 2" in found.unreadable[some_runs[0].id]


def test_advice_names_the_nearest_metric(some_runs, store):
    assert store.advice("metric.rnk < 2 and metric.rank < 2 and parameter.deep.on = true") == (
        "No run has metric.rnk. Did you mean rank?"
    )


def test_a_newer_index_is_refused_in_one_sentence(store):
    with store._database.writing() as connection:
        connection.exec_driver_sql("INSERT INTO migrations VALUES (99, 'later')")
    for opening in (Store, rebuild):
        with pytest.raises(StorageError) as caught:
            opening(store.root)
        assert (
            "was written by a newer mech (index version 99, this one reads up to 1)." in caught.value.message
        )
        assert caught.value.hint.startswith("Upgrade mech")


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_index_is_told_and_rebuilt(finished, root, damage):
    before = contents(Store(root))
    for path in root.glob("index.sqlite*"):
        path.unlink()
    (root / "index.sqlite").write_bytes(damage)
    with pytest.raises(DamagedIndexError, match="is damaged") as caught:
        Store(root)
    assert "mech store rebuild" in caught.value.hint
    assert rebuild(root).recorded == 1
    assert contents(Store(root)) == before
    assert (root / "index.sqlite.damaged").read_bytes() == damage


def test_a_root_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="There is no folder"):
        Store(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


def test_the_index_is_in_wal_mode(store):
    with sqlite3.connect(store.root / "index.sqlite") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_steps_reach_the_tables(store):
    """Every column of `tables.py`, with its type and key, is what the migrations make."""

    def shape(connection):
        return {
            table: connection.exec_driver_sql(f"PRAGMA table_info({table})").all()
            for table in sorted(tables.metadata.tables)
        }

    def indexes(connection):
        query = "SELECT name, tbl_name FROM sqlite_master WHERE type = 'index' AND name NOT LIKE 'sqlite_%'"
        return sorted(connection.exec_driver_sql(query).all())

    engine = create_engine("sqlite://")
    tables.metadata.create_all(engine)
    with store._database.reading() as migrated, engine.connect() as declared:
        assert shape(migrated) == shape(declared)
        assert indexes(migrated) == indexes(declared)


def test_an_older_index_is_brought_up_to_date_once_and_whole(root, finished, monkeypatch):
    Store(root).close()
    before = migrations.STEPS
    bad = (*before, ("ALTER TABLE runs ADD COLUMN extra TEXT", "ALTER TABLE nowhere ADD COLUMN extra TEXT"))
    monkeypatch.setattr(migrations, "STEPS", bad)
    with pytest.raises(StorageError):
        Database(root)
    good = (*before, ("ALTER TABLE runs ADD COLUMN extra TEXT",), ("CREATE TABLE other (id TEXT)",))
    monkeypatch.setattr(migrations, "STEPS", good)  # works only if the failed step left nothing behind
    for _ in range(2):
        with Database(root).reading() as connection:
            assert connection.exec_driver_sql("SELECT version FROM migrations").scalars().all() == [1, 2, 3]
            assert connection.exec_driver_sql("SELECT id, extra FROM runs").all() == [(finished.id, None)]


def test_runs_that_were_never_indexed_are_found(root, begin_run):
    """A process killed between finishing a run and indexing it."""
    store = Store(root)
    run = begin_run()
    store.record(run)
    assert store.find("1").status == "running"
    run.finish("complete", metrics={"rank": {"value": 1.0}})
    begin_run().finish("complete")
    assert [record.status for record in Store(root).runs()] == ["complete", "complete"]
    assert Store(root).find("1").metrics == {"rank": 1.0}
    assert RunFolder(run.path).status == "complete"
