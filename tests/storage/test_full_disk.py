"""A disk that is full or read-only at any moment: one sentence, no half-written result, and a way on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from itertools import count

import pytest

from mech_interp.storage import atomic
from mech_interp.storage.errors import ReadOnlyError, StorageError
from mech_interp.storage.folder import RunFolder
from mech_interp.storage.index import Store
from mech_interp.storage.verify import verify

CALLS = ("write", "fsync", "replace", "open", "mkdir", "rename")


@contextmanager
def failing(monkeypatch, number, code):
    """Let the `number`-th changing call to the system fail with `code`; counts the calls in a list."""
    seen = [0]

    def wrap(name):
        real = getattr(os, name)

        def call(*arguments, **options):
            reads = name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR)
            if not reads:
                seen[0] += 1
                if seen[0] == number:
                    raise OSError(code, os.strerror(code))
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(name))
        yield seen


def leftovers(folder):
    return [path.name for path in folder.rglob(".*") if path.name not in (".lock", ".last-number")]


def raised(write, *arguments, **options):
    """The `StorageError` that a call ends in, or None."""
    try:
        write(*arguments, **options)
    except StorageError as error:
        return error
    return None


def sentence(error):
    return error.message.count(". ") == 0 and error.message.endswith(".") and error.hint.endswith(".")


@pytest.mark.parametrize(("code", "step"), [(errno.ENOSPC, 1), (errno.EROFS, 7)])
def test_finishing_fails_whole_at_any_step_and_succeeds_afterwards(
    monkeypatch, begin_run, results, code, step
):
    failures = 0
    for number in count(1, step):
        run = begin_run()
        with failing(monkeypatch, number, code) as seen:
            error = raised(run.finish, "complete", **results)
        if error:
            failures += 1
            assert sentence(error)
            assert ("disk is full" if code == errno.ENOSPC else "read-only") in error.message
            assert not run.is_finished
            assert leftovers(run.path) == []
            run.finish("complete", **results)
        assert verify(run.path) == []
        assert run.status == "complete"
        if seen[0] < number:
            break
    assert failures > 30 / step


def test_creating_fails_whole_at_every_step(monkeypatch, root, begin_run):
    begin_run()
    number = 1
    while True:
        before = sorted(path.name for path in root.glob("run-*"))
        with failing(monkeypatch, number, errno.ENOSPC) as seen:
            error = raised(RunFolder.create, root, "key", "name: x\n", {})
        if error:
            assert sentence(error)
            assert sorted(path.name for path in root.glob("run-*")) == before
            assert leftovers(root) == []
        if seen[0] < number:
            break
        number += 1
    assert number > 15
    assert len(list(root.glob("run-*"))) == len(before) + 1


def test_saving_a_unit_fails_whole_at_every_step(monkeypatch, begin_run):
    import numpy as np

    run = begin_run()
    number = 1
    while True:
        with failing(monkeypatch, number, errno.ENOSPC) as seen:
            try:
                run.save_unit("a", {"n": number}, {"x": np.full(3, number)})
            except StorageError:
                found = run.load_unit("a")
                assert found is None or found[0]["n"] == int(found[1]["x"][0]) < number
        if seen[0] < number:
            break
        assert leftovers(run.path) == []
        number += 1
    assert number > 8
    assert run.load_unit("a")[0] == {"n": number}


def test_a_real_limit_in_the_middle_of_a_file(root):
    """The system itself refuses the bytes of a tensor after its first 64 kB."""
    script = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from mech_interp.storage.errors import StorageError
from mech_interp.storage.folder import RunFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = RunFolder.create(Path(sys.argv[1]), "key", "name: x\\n", {})
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
try:
    run.finish("complete", tensors={"big": np.zeros(20000)})
except StorageError as error:
    print(error.message, run.status, sorted(p.name for p in run.path.rglob("*") if p.is_file()))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
run.finish("complete", tensors={"big": np.zeros(20000)})
print(run.status)
"""
    done = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("The disk is full, so 'big.safetensors' in ")
    assert " running " in first
    assert "result.json" not in first
    assert "tmp" not in first.partition("[")[2]
    assert second == "complete"


def test_the_file_that_was_there_survives_a_failed_write(monkeypatch, tmp_path):
    path = tmp_path / "a.json"
    atomic.write_text(path, "old")
    for number in (1, 2, 3, 4):
        with failing(monkeypatch, number, errno.ENOSPC), pytest.raises(StorageError, match="disk is full"):
            atomic.write_text(path, "new" * 1000)
        assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_bytes_reach_the_disk_before_the_name_does(monkeypatch, tmp_path):
    calls = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("flush"))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("rename"), replace(*names)))
    atomic.write_text(tmp_path / "a.json", "new")
    assert calls == ["flush", "rename", "flush"]  # the file, its name, the folder that holds the name


def test_whoever_reads_a_file_while_it_is_replaced_sees_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    atomic.write_text(path, "old" * 50_000)
    with path.open() as reader:
        first = reader.read(3)
        atomic.write_text(path, "new")
        assert first + reader.read() == "old" * 50_000
    assert path.read_text() == "new"


def test_the_root_cannot_be_a_file_or_below_one(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/below"):
        with pytest.raises(StorageError) as caught:
            Store(tmp_path / place)
        assert sentence(caught.value)


def test_a_read_only_root_can_be_read_and_says_so_when_written(monkeypatch, root, finished):
    real = os.open

    def refuse(path, flags, *rest, **options):
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(root)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    store = Store(root)
    assert store.read_only
    assert [record.id for record in store.runs("family = logit_lens")] == [finished.id]
    assert store.find("1").metrics == {"rank": 2.5}
    for write in (
        lambda: store.begin("other", "name: x\n", {}),
        lambda: store.archive(["1"]),
    ):
        with pytest.raises(ReadOnlyError) as caught:
            write()
        assert sentence(caught.value)
        assert "read-only" in caught.value.message
    assert verify(finished.path) == []


def test_an_index_without_room_loses_no_run(root, finished, results):
    from sqlalchemy import event

    store = Store(root)
    event.listen(
        store._database._engine,
        "connect",
        lambda connection, _: connection.execute("PRAGMA max_page_count = 30"),
    )
    run = store.begin("other", "name: x\n", {}).folder
    results["metrics"] = {f"metric {n:0100}": {"value": 1.0} for n in range(2000)}
    run.finish("complete", **results)
    with pytest.raises(StorageError) as caught:
        store.record(run)
    assert "the disk is full or failing" in caught.value.message
    assert sentence(caught.value)
    assert store.find(finished.id).status == "complete"
    assert len(Store(root).find(run.id).metrics) == 2000


def test_an_index_in_use_for_too_long(monkeypatch, root, finished):
    from mech_interp.storage import database

    store = Store(root)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    with store._database.writing(), pytest.raises(StorageError, match="in use by another process") as caught:
        store.record(finished)
    assert sentence(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_write_permission(root, finished):
    root.chmod(0o555)
    try:
        assert Store(root).read_only
        with pytest.raises(ReadOnlyError):
            RunFolder.create(root, "key", "name: x\n", {})
    finally:
        root.chmod(0o755)
