"""Any changed byte of any file of a run is found, and the file is named."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from mech_interp.storage import seal
from mech_interp.storage.plain import dumps
from mech_interp.storage.verify import verify

EVERY_KIND = {
    "spec.yaml",
    "receipt.json",
    "events.jsonl",
    "metrics.json",
    "findings.json",
    "report.md",
    "result.json",
    "seal.json",
    "tables",
    "tensors",
    "views",
    "figures",
    "units",
}


def files(run):
    return sorted(path for path in run.path.rglob("*") if path.is_file())


def test_an_untouched_run_has_no_problems(finished):
    assert verify(finished.path) == []
    assert {path.relative_to(finished.path).parts[0] for path in files(finished)} == EVERY_KIND


def test_one_flipped_byte_in_every_file_is_found_and_named(finished):
    chance = random.Random(3)
    for path in files(finished):
        whole = path.read_bytes()
        assert whole
        for place in {0, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(6))}:
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ chance.randint(1, 255)]) + whole[place + 1 :]
            )
            named = {problem.path for problem in verify(finished.path)}
            # A result.json that no longer lists its files cannot vouch for them either.
            assert path.relative_to(finished.path).as_posix() in named
            if path.name != "result.json":
                assert named == {path.relative_to(finished.path).as_posix()}
        path.write_bytes(whole)
    assert verify(finished.path) == []


@pytest.mark.parametrize(("name", "step"), [("result.json", 11), ("seal.json", 1)])
def test_bytes_all_over_the_manifest_count(finished, name, step):
    path = finished.path / name
    whole = path.read_bytes()
    for place in range(0, len(whole), step):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert name in {problem.path for problem in verify(finished.path)}, place


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\n", lambda data: b""])
def test_cut_and_grown_files(finished, change):
    for path in files(finished):
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        assert path.relative_to(finished.path).as_posix() in {
            problem.path for problem in verify(finished.path)
        }
        path.write_bytes(whole)


def test_removed_and_added_files_and_links(finished):
    for path in files(finished):
        whole = path.read_bytes()
        path.unlink()
        name = path.relative_to(finished.path).as_posix()
        assert (name, "missing") in {(problem.path, problem.kind) for problem in verify(finished.path)}
        path.write_bytes(whole)
    (finished.path / "tables" / "new.csv").write_text("a\n")
    (finished.path / "linked").symlink_to(finished.path / "tables", target_is_directory=True)
    assert [(p.path, p.kind) for p in verify(finished.path)] == [
        ("linked", "extra"),
        ("tables/new.csv", "extra"),
    ]


def test_a_file_replaced_by_a_link_to_its_copy_is_named(finished, tmp_path):
    report = finished.path / "report.md"
    (tmp_path / "copy.md").write_bytes(report.read_bytes())
    report.unlink()
    report.symlink_to(tmp_path / "copy.md")
    assert [(p.path, p.kind) for p in verify(finished.path)] == [("report.md", "changed")]


def test_what_is_derived_later_breaks_nothing(finished):
    (finished.path / "derived" / "deep").mkdir(parents=True)
    (finished.path / "derived" / "deep" / "more.md").write_text("later")
    assert verify(finished.path) == []
    (finished.path / "tables" / "derived").mkdir()
    (finished.path / "tables" / "derived" / "x").write_text("not the one at the top")
    assert [p.path for p in verify(finished.path)] == ["tables/derived/x"]


def test_a_whole_forgery_shows_in_the_index(finished):
    """Rewritten consistently, seal and all: only the hash kept elsewhere tells."""
    known = hashlib.sha256((finished.path / "result.json").read_bytes()).hexdigest()
    metrics = finished.path / "metrics.json"
    metrics.write_text(metrics.read_text().replace("2.5", "1.5"))
    content = json.loads((finished.path / "result.json").read_text())
    del content["digest"]
    content["files"]["metrics.json"] = seal.fingerprint(metrics)
    forged = seal.result_bytes(content)
    (finished.path / "result.json").write_bytes(forged)
    assert [p.path for p in verify(finished.path)] == ["result.json"]  # the seal still tells
    (finished.path / "seal.json").write_bytes(seal.seal_bytes(forged, finished.id))
    assert verify(finished.path) == []
    assert [(p.path, p.kind) for p in verify(finished.path, known)] == [("result.json", "changed")]


def test_unfinished_and_senseless_results(begin_run, finished):
    run = begin_run()
    assert [(p.path, p.kind) for p in verify(run.path)] == [("result.json", "missing")]
    path = finished.path / "result.json"
    for text in ["[]", "{}", "nonsense", dumps({"files": []}), '{"files": {"report.md": 3}}', "[" * 50_000]:
        path.write_text(text)
        assert "result.json" in {problem.path for problem in verify(finished.path)}
