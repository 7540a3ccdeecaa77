"""Goal: a file is replaced whole, and what lies in its place is read, absent, or told in words."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from coloctl.errors import PreconditionFailed
from coloctl.host import blocking, durable

pytestmark = pytest.mark.unit


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    assert durable.read(path, 10) is None
    durable.replace(path, b"0123456789", make_folder=True)
    assert durable.read(path, 10) == b"0123456789"
    assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o700
    with pytest.raises(PreconditionFailed, match="larger than 9 bytes"):
        durable.read(path, 9)
    assert [one.name for one in path.parent.iterdir()] == ["file"]


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(letter: bytes) -> None:
        for _ in range(20):
            durable.replace(path, letter * 5000)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"x", b"y")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_bytes() in (b"x" * 5000, b"y" * 5000)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_lies_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    path = tmp_path / "file"
    path.symlink_to("victim")
    durable.replace(path, b"new")
    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert durable.read(path, 10) == b"new" and not path.is_symlink()


def test_what_is_no_file_is_told_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to("absent")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(PreconditionFailed, match="cannot be read: "):
            durable.read(path, 10)


def test_where_nothing_can_be_written_the_old_file_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(PreconditionFailed, match="cannot be written"):
        durable.replace(tmp_path / "file" / "below", b"new", make_folder=True)
    with pytest.raises(PreconditionFailed, match="cannot be written"):
        durable.replace(tmp_path / "absent" / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "read", fail)
    with pytest.raises(PreconditionFailed, match="cannot be read: Input/output error"):
        durable.read(tmp_path / "file", 10)


def _at_work() -> bool:
    threads = [one for one in threading.enumerate() if one.name == "aside"]
    return any(one not in blocking._waiting for one in threads)


async def test_a_write_that_was_given_up_never_comes_later(tmp_path: Path) -> None:
    """The disk hangs in fsync, the write is given up, another one is done, the disk comes back."""
    path = tmp_path / "file"
    hanging, back = threading.Event(), threading.Event()
    really = os.fsync

    def fsync(fd: int) -> None:
        if threading.current_thread().name == "aside" and not hanging.is_set():
            hanging.set()
            back.wait(30)
        really(fd)

    async def play() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await blocking.replace(path, b"older", make_folder=False)
        assert hanging.is_set()
        await blocking.replace(path, b"newer", make_folder=False)
        back.set()
        while _at_work():  # noqa: ASYNC110 - threads set no event
            await asyncio.sleep(0.001)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        await play()
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]
