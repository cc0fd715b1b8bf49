"""The life of a run folder: created, worked on, interrupted, continued, finished."""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading

import numpy as np
import pytest
import yaml

from mech_interp.errors import InputError
from mech_interp.storage import naming, units
from mech_interp.storage.contents import decode_table, encode_table
from mech_interp.storage.errors import StorageError
from mech_interp.storage.folder import RunFolder, settle


def test_a_new_run_has_its_receipt_and_reads_as_running(begin_run, root):
    run = begin_run("abc", {"seed": 3, "run": "not this", "key": "nor this"})
    assert naming.split(run.id) == (1, run.id[-8:])
    assert sorted(path.name for path in run.path.iterdir()) == [
        "events.jsonl",
        "receipt.json",
        "run.lock",
        "spec.yaml",
        "state.json",
    ]
    receipt = run.receipt()
    assert (receipt["run"], receipt["key"], receipt["seed"]) == (run.id, "abc", 3)
    assert run.spec() == yaml.safe_load((run.path / "spec.yaml").read_text())
    assert run.state()["pid"] == os.getpid()
    other = RunFolder(run.path)
    assert (run.status, other.status) == ("running", "running")
    assert [event["event"] for event in run.events()] == ["created"]


def test_a_run_let_go_is_interrupted_and_can_be_claimed_once(begin_run):
    run = begin_run()
    with pytest.raises(StorageError, match=r"is being executed by another process \(pid \d+\)"):
        RunFolder(run.path).claim(timeout=0.05)
    run.release()
    assert run.status == "interrupted"
    again = RunFolder(run.path).claim(environment={"python": "3.11"})
    assert again.status == "running"
    assert again.events()[-1]["event"] == "resumed"
    assert again.events()[-1]["environment"] == {"python": "3.11"}
    with pytest.raises(StorageError, match="not held by this process"):
        run.event("progress")
    with again:
        assert again.claim() is again
    assert again.status == "interrupted"


def test_whoever_only_asks_does_not_stand_in_the_way_of_a_claim(begin_run):
    run = begin_run()
    run.release()
    descriptor = os.open(run.path / "run.lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # a process that was stopped in the middle of asking
    asking = threading.Timer(0.3, os.close, [descriptor])
    asking.start()
    assert run.status == "interrupted"
    assert run.claim(timeout=0.01).status == "running"
    asking.join()


def test_numbers_are_never_given_twice(begin_run, root):
    first, second = begin_run(), begin_run()
    assert [naming.split(run.id)[0] for run in (first, second)] == [1, 2]
    second.release()
    for path in second.path.iterdir():
        path.unlink()
    second.path.rmdir()
    assert naming.split(begin_run().id)[0] == 3
    (root / ".last-number").write_text("no number")
    (root / "run-000041-0123abcd").mkdir()  # copied here from elsewhere
    assert naming.split(begin_run().id)[0] == 42


def test_drafts_of_killed_creators_are_swept(begin_run, root):
    begin_run()
    (root / ".draft-0").mkdir()
    (root / ".draft-0" / "spec.yaml").write_text("x")
    (root / ".new-0.tmp").write_text("x")
    begin_run()
    assert sorted(path.name for path in root.glob(".*")) == [".last-number", ".lock"]


def test_units_come_back_as_they_were_saved(begin_run):
    run = begin_run()
    arrays = {
        "whole": np.arange(12).reshape(3, 4).T,  # not contiguous
        "none": np.zeros((0, 3), np.float16),
        "one": np.float64(0.1) * np.ones(()),
        "yes": np.array([True, False]),
    }
    payload = {
        "effect": 0.1 + 0.2,
        "nan": math.nan,
        "pair": (1, np.int64(2)),
        "text": "é\ud800",
        "none": None,
    }
    returned = run.save_unit("pair 1/é", payload, arrays)
    loaded = RunFolder(run.path).load_unit("pair 1/é")
    for found in (returned, loaded):
        assert found is not None
        assert {name: value for name, value in found[0].items() if name != "nan"} == {
            "effect": 0.1 + 0.2,
            "pair": [1, 2],
            "text": "é\ud800",
            "none": None,
        }
        assert math.isnan(found[0]["nan"])
        assert set(found[1]) == set(arrays)
        for name, array in arrays.items():
            assert found[1][name].dtype == array.dtype
            assert np.array_equal(found[1][name], array)
            assert found[1][name].shape == array.shape
    assert run.units() == ["pair 1/é"]
    assert run.load_unit("pair 2") is None
    run.save_unit("pair 1/é", {"effect": 2})
    assert run.load_unit("pair 1/é") == ({"effect": 2}, {})


def test_a_unit_with_any_changed_or_missing_byte_reads_as_absent(begin_run):
    run = begin_run()
    run.save_unit("a", {"effect": 0.5}, {"x": np.arange(4.0)})
    run.save_unit("b", {"effect": 0.5}, {"x": np.arange(4.0) + 1})
    place = run.path / "units" / units.stem("a")
    for path in (place.with_suffix(".json"), place.with_suffix(".safetensors")):
        whole = path.read_bytes()
        for index in range(len(whole)):
            path.write_bytes(whole[:index] + bytes([whole[index] ^ 4]) + whole[index + 1 :])
            assert run.load_unit("a") is None, (path.name, index)
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            assert run.load_unit("a") is None
        path.write_bytes((path.parent / units.stem("b")).with_suffix(path.suffix).read_bytes())
        assert run.load_unit("a") is None  # whole, but of another unit
        path.unlink()
        assert run.load_unit("a") is None
        path.write_bytes(whole)
    assert run.load_unit("a") is not None
    (place.with_suffix(".json")).write_text("[" * 50_000)
    assert run.units() == ["b"]


@pytest.mark.parametrize("payload", [{"x": {1, 2}}, {"x": np.ones(2)}, {1: "x"}, {"x": object()}])
def test_a_payload_json_cannot_hold_is_refused(begin_run, payload):
    with pytest.raises(TypeError):
        begin_run().save_unit("a", payload)


def test_arrays_the_format_lacks_are_refused(begin_run):
    with pytest.raises(TypeError, match="x: object"):
        begin_run().save_unit("a", {}, {"x": np.array([object()])})


def test_a_torn_event_is_left_out_and_the_next_has_its_own_line(begin_run):
    run = begin_run()
    run.event("progress", done=1, share=math.nan)
    run.release()
    path = run.path / "events.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": "2026", "event": "progr')
    assert [event["event"] for event in run.events()] == ["created", "progress"]
    run.claim()
    run.event("progress", done=2)
    assert [event["event"] for event in run.events()] == ["created", "progress", "resumed", "progress"]
    assert run.events()[1]["share"] is None


def test_a_finished_run_reads_back_what_was_given(finished, results):
    run = RunFolder(finished.path)
    assert run.status == "complete"
    assert run.metrics() == results["metrics"]
    assert run.findings() == {name: results[name] for name in ("findings", "controls", "notes")}
    assert run.table("by_layer") == results["tables"]["by_layer"]
    name = "blocks.1.attn.hook_z[7]"
    assert np.array_equal(run.array(name), results["tensors"][name])
    assert run.array(name).dtype == np.float32
    assert run.view("ranks") == results["views"]["ranks"]
    assert run.figure("ranks").read_bytes() == results["figures"]["ranks"]
    assert run.report() == results["report"]
    assert run.names("tensors") == [name]
    assert run.result()["key"] == "key"
    with pytest.raises(InputError, match=r"no table 'by_laier'\. Did you mean by_layer\?"):
        run.table("by_laier")
    assert not (run.path / "state.json").exists()
    assert not (run.path / "run.lock").exists()


def test_nothing_can_be_added_to_a_finished_run(finished):
    for write in (
        lambda: finished.event("more"),
        lambda: finished.save_unit("x", {}),
        lambda: finished.claim(),
        lambda: finished.finish("complete"),
    ):
        with pytest.raises(StorageError, match="is finished and sealed"):
            write()


def test_units_are_dropped_unless_kept(begin_run, finished):
    run = begin_run()
    run.save_unit("a", {})
    run.finish("void", error="a control failed", facts={"family_version": 2})
    assert not (run.path / "units").exists()
    assert (run.status, run.result()["error"], run.result()["family_version"]) == (
        "void",
        "a control failed",
        2,
    )
    assert finished.load_unit("pair 0") is not None


def test_what_a_kill_left_after_the_seal_is_tidied_but_kept_units_are_not(begin_run, finished):
    run = begin_run()
    run.finish("complete")
    (run.path / "units").mkdir()
    (run.path / "units" / "x.json").write_text("{}")
    (run.path / "run.lock").write_text("")
    for one in (run, finished):
        settle(one.path)
    assert not (run.path / "units").exists()
    assert not (run.path / "run.lock").exists()
    assert finished.load_unit("pair 0") is not None


def test_numbers_that_are_not_finite_become_null_and_are_told(begin_run):
    run = begin_run()
    run.finish("complete", metrics={"rank": {"value": math.nan, "interval": [1.0, math.inf]}})
    assert run.metrics() == {"rank": {"value": None, "interval": [1.0, None]}}
    warning = next(event for event in run.events() if event["event"] == "warning")
    assert warning["places"] == ["metrics.rank.value", "metrics.rank.interval[1]"]


def test_results_over_the_limit_are_refused_before_anything_is_written(begin_run, results):
    run = begin_run()
    results["tensors"] = {"big": np.zeros(5000)}
    with pytest.raises(StorageError, match=r"the largest is tensors/big\.safetensors with 40,"):
        run.finish("complete", max_bytes=9000, **results)
    assert not (run.path / "metrics.json").exists()
    run.finish("complete", max_bytes=60_000, **results)
    assert run.status == "complete"


def test_a_finish_that_was_cut_short_leaves_nothing_stale(begin_run, results):
    run = begin_run()
    (run.path / "tables").mkdir()
    (run.path / "tables" / "of_another_version.csv").write_text("a\n")
    (run.path / "seal.json").write_text("{}")
    run.finish("complete", **results)
    assert [path.name for path in (run.path / "tables").iterdir()] == ["by_layer.csv"]


def test_names_that_file_systems_confuse_get_files_of_their_own(begin_run):
    names = ["a", "A", "a/b", "a:b", "../a", "", "é" * 200, "CON", ".hidden", "a" * 300]
    run = begin_run()
    run.finish("complete", tables={name: [{"name": name}] for name in names})
    paths = [facts["path"] for facts in run.result()["contents"]["tables"].values()]
    assert len({path.casefold() for path in paths}) == len(names)
    assert all(path.startswith("tables/") and ".." not in path and len(path) < 120 for path in paths)
    assert [run.table(name) for name in names] == [[{"name": name}] for name in names]


def test_an_unknown_status_is_a_fault_of_the_caller(begin_run):
    with pytest.raises(ValueError, match="running"):
        begin_run().finish("running")


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{}],
        [{"a": 1}, {"b": "x"}],
        [{"a": 1, "b": 0.1}, {"a": 2, "b": 3}],
        [{"a": True}, {"a": None}],
        [{"a": ""}, {"a": 'line\nend, and "quotes"'}, {"a": "\r"}],
        [{"a": ""}, {"a": None}, {"a": "null"}],
        [{"a": 1}, {"a": "1"}, {"a": True}, {"a": [1, {"x": None}]}, {"a": None}],
        [{"a": float("inf")}, {"a": 1e-300}],
        [{"a": None}],
        [{"a": None}, {"a": None}],
    ],
)
def test_tables_keep_their_types(rows):
    text, types = encode_table(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    full = [{name: row.get(name) for name in columns} for row in rows]
    found = decode_table(text, types)
    assert found == full
    if rows and rows != [{"a": 1, "b": 0.1}, {"a": 2, "b": 3}]:
        assert [list(map(type, row.values())) for row in found] == [
            list(map(type, row.values())) for row in full
        ]


def test_a_damaged_table_is_told(finished):
    finished.table("by_layer")
    path = finished.path / "tables" / "by_layer.csv"
    path.write_text("layer,rank\n0,high\n")
    with pytest.raises(StorageError, match="A table is damaged"):
        finished.table("by_layer")


def test_damaged_files_give_sentences(finished, begin_run):
    (finished.path / "result.json").write_text("{")
    assert finished.status == "damaged"
    with pytest.raises(StorageError, match="is not JSON"):
        finished.metrics()
    (finished.path / "spec.yaml").write_text("a: [")
    with pytest.raises(StorageError, match="is not YAML"):
        finished.spec()
    (finished.path / "receipt.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(StorageError, match=r"format 9; this version of mech reads 1"):
        finished.receipt()
    with pytest.raises(StorageError, match="has not finished"):
        begin_run().metrics()
    with pytest.raises(StorageError, match="does not exist"):
        RunFolder(finished.path / "nowhere").receipt()


def test_working_time_leaves_out_the_time_between_sessions(begin_run):
    run = begin_run()
    run.release()
    lines = [
        {"time": "2026-01-01T00:00:00.000Z", "event": "created"},
        {"time": "2026-01-01T00:00:10.000Z", "event": "progress"},
        {"time": "2026-01-02T00:00:00.000Z", "event": "resumed"},
        {"time": "2026-01-02T00:00:05.000Z", "event": "progress"},
    ]
    (run.path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    from mech_interp.storage.events import working_seconds

    assert working_seconds(run.events()) == 15.0
