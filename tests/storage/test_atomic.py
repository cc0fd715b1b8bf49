"""Atomic writes replace files, follow links, and leave everything that is not a file alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mech_interp.storage.atomic import write_bytes
from mech_interp.storage.errors import StorageError


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    for data in (b"one", b"two"):
        write_bytes(target, data)
        assert target.read_bytes() == data
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_a_pipe_is_refused_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="a device or pipe"):
        write_bytes(pipe, b"data")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="a folder"):
        write_bytes(tmp_path / "folder", b"data")


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_link_to_a_pipe_is_refused(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with pytest.raises(StorageError, match="a device or pipe"):
        write_bytes(link, b"data")
    assert link.is_symlink()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
