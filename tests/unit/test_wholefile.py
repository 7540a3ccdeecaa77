"""A reader of a replaced file sees the old content or the new, and an error leaves the old one."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from coloctl import wholefile

pytestmark = pytest.mark.unit


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    contents = {bytes([letter]) * 300_000 for letter in b"abc"}
    wholefile.replace(file, b"a" * 300_000)
    seen: set[bytes] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(30):
            for content in contents:
                wholefile.replace(file, content)
    finally:
        over.set()
        reader.join()
    assert seen
    assert seen <= contents
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def refuse(fd: int) -> None:
        assert os.fstat(fd).st_size == 3
        raise OSError("the disk has failed")

    with pytest.raises(OSError, match="the disk has failed"):
        wholefile.replace(file, b"new", before=refuse)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(FileNotFoundError):
        wholefile.replace(tmp_path / "missing" / "file", b"new")


def test_the_mode_is_that_of_the_new_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    file.chmod(0o666)
    wholefile.replace(file, b"new", mode=0o600)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
