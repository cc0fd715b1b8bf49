"""Circuit graphs are files of a run: where they lie, under the seal, and read back as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mech_interp.storage.contents import Contents, encode
from mech_interp.storage.folder import RunFolder
from mech_interp.storage.reading import RunReader
from mech_interp.storage.verify import verify

TEXTS = {"circuit.json": '{"a": "ü"}', "circuit.dot": "digraph {}", "circuit.eap-ig.json": "{}"}


def test_every_graph_keeps_its_name_and_its_bytes() -> None:
    done = encode(Contents(graphs=TEXTS))
    assert {name: place["path"] for name, place in done.listing["graphs"].items()} == {
        name: f"graphs/{name}" for name in TEXTS
    }
    for name, text in TEXTS.items():
        assert done.files[f"graphs/{name}"].decode("utf-8") == text


def test_names_that_a_file_system_would_not_take_are_changed_and_kept_apart() -> None:
    done = encode(Contents(graphs={"a/b.json": "1", "a:b.json": "2", "A_b.json": "3"}))
    paths = [place["path"] for place in done.listing["graphs"].values()]
    assert len({path.casefold() for path in paths}) == 3
    assert all(path.count("/") == 1 and path.endswith(".json") for path in paths)
    assert [done.files[path] for path in paths] == [b"1", b"2", b"3"]


def test_a_stored_run_gives_the_path(begin_run: Callable[..., RunFolder], results: dict[str, Any]) -> None:
    run = begin_run()
    run.finish("complete", **{**results, "graphs": TEXTS})
    reader = RunReader(run.path)
    assert sorted(reader.names("graphs")) == sorted(TEXTS)
    assert reader.graph("circuit.dot").read_text(encoding="utf-8") == "digraph {}"
    assert "graphs/circuit.dot" in reader.result()["files"]
    assert verify(run.path) == []
    reader.graph("circuit.dot").write_text("digraph {a}", encoding="utf-8")
    assert verify(run.path)
