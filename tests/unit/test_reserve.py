"""Room is given back before something is written, and taken again when there is plenty."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coloctl.journal import Journal
from coloctl.model.event import Kind, Record
from coloctl.reserve import FULL, ROOM, Reserve

pytestmark = pytest.mark.unit


class Filesystem:
    """Of so many bytes, for all files but the reserve; the reserve's size is real."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.path, self.size, self.used = path, size, 0
        monkeypatch.setattr(Reserve, "_free", lambda _: self.free)

    @property
    def kept(self) -> int:
        return self.path.stat().st_size

    @property
    def free(self) -> int:
        return self.size - self.used - self.kept


@pytest.fixture
def filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filesystem:
    return Filesystem(tmp_path / "reserve", monkeypatch, 64 * FULL)


def test_it_gives_room_piece_by_piece_until_nothing_is_left(filesystem: Filesystem) -> None:
    reserve = Reserve(filesystem.path)
    assert filesystem.kept == FULL
    seen = []
    for _ in range(6):
        filesystem.used += filesystem.free  # somebody takes it all
        reserve.see_to_room()
        seen.append(filesystem.free)
    assert seen == [ROOM] * 4 + [0] * 2
    filesystem.used = 0
    reserve.see_to_room()
    assert filesystem.kept == FULL
    reserve.close()


def test_it_takes_no_room_where_there_is_little(filesystem: Filesystem) -> None:
    filesystem.size = 4 * FULL
    reserve = Reserve(filesystem.path)
    assert filesystem.kept == 0
    filesystem.size += 1
    reserve.see_to_room()
    assert filesystem.kept == FULL
    reserve.close()


def test_what_an_earlier_owner_kept_is_kept(filesystem: Filesystem) -> None:
    Reserve(filesystem.path).close()
    filesystem.used += filesystem.free - ROOM  # enough for now, and little for others
    reserve = Reserve(filesystem.path)
    assert (filesystem.kept, filesystem.free) == (FULL, ROOM)
    reserve.close()


def test_there_may_be_none(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "missing" / "reserve")
    reserve.see_to_room()
    reserve.close()


def test_a_filesystem_that_refuses_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    reserve = Reserve(tmp_path / "reserve")
    assert reserve.path.stat().st_size == 0
    reserve.close()


def test_a_journal_sees_to_room_for_what_must_last(filesystem: Filesystem, tmp_path: Path) -> None:
    filesystem.path = tmp_path / "journal.jsonl.reserve"
    with Journal(tmp_path / "journal.jsonl") as journal:
        filesystem.used += filesystem.free
        passing, lasting = Record(Kind.OBSERVATION), Record(Kind.INTENT)
        assert not passing.durable and lasting.durable
        journal.append(passing)
        assert filesystem.free == 0
        journal.append(lasting)
        assert filesystem.free == ROOM
