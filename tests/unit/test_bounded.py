"""Logs of others are bounded in place, and what is kept stays where it was."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloctl import bounded
from coloctl.host.console import GuestConsole
from coloctl.host.local import LocalHost
from coloctl.host.local_files import read_log
from coloctl.host.records import LogPiece

pytestmark = pytest.mark.unit

MIB = 1 << 20


@pytest.fixture(params=["disk", "memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A log on the filesystem of the tests, and one on a tmpfs such as /run is."""
    if request.param == "disk":
        yield tmp_path / "console.log"
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder) / "console.log"


def taken(path: Path) -> int:
    return path.stat().st_blocks * 512


def appending(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def test_a_flood_takes_no_more_than_its_bound_and_what_is_kept_stays_in_its_place(
    log: Path,
) -> None:
    line = b"%-127d\n"
    writer = appending(log)
    try:
        for turn in range(16):
            block = b"".join(line % number for number in range(turn * 8192, (turn + 1) * 8192))
            os.write(writer, block)
            bounded.bound(log)
            assert taken(log) <= bounded.LIMIT
        assert log.stat().st_size == 16 * MIB  # every byte counts where it was written
        piece = read_log(log, 16 * MIB - bounded.KEEP, bounded.KEEP)
    finally:
        os.close(writer)
    begin, data = piece.begin, piece.data
    assert begin == 16 * MIB - bounded.KEEP and len(data) == bounded.KEEP
    assert data[:128] == line % (begin // 128) and data[-128:] == line % (16 * 8192 - 1)


def test_a_small_log_is_left_alone(log: Path) -> None:
    log.write_bytes(b"x" * bounded.KEEP)
    assert bounded.bound_all([log, log.with_name("not-there")]) == 0
    assert log.read_bytes() == b"x" * bounded.KEEP


def test_where_room_is_scarce_less_is_kept(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_bytes(b"x" * MIB)
    assert bounded.bound(log) == 0
    monkeypatch.setattr(bounded, "SCARCE_ROOM", 1 << 60)
    assert bounded.bound(log) > 0
    assert taken(log) <= bounded.KEEP // bounded.SCARCE + 4096


async def test_without_holes_the_file_is_emptied_and_a_writer_goes_on_at_its_beginning(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "_PUNCH_HOLE", 0x80)  # the kernel refuses what it does not know
    console, writer = GuestConsole(LocalHost(), log), appending(log)
    try:
        os.write(writer, b"x" * 5 * MIB)
        console.boots_from = 3 * MIB
        assert not await console.says("ready")
        assert bounded.bound(log) > 0 and log.stat().st_size == 0
        os.write(writer, b"\nready\n")
        assert await console.says("ready") and await console.read(MIB) == LogPiece(
            0, b"\nready\n", 7
        )
    finally:
        os.close(writer)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * 5 * MIB)
    (tmp_path / "console.log").symlink_to(precious)
    assert bounded.bound_all([tmp_path / "console.log"]) == 0
    assert taken(precious) >= 5 * MIB


async def test_a_console_finds_its_text_behind_what_is_gone_and_remembers_it(log: Path) -> None:
    console, writer = GuestConsole(LocalHost(), log), appending(log)
    try:
        os.write(writer, b"ready\n")
        console.boots_from = await console.size()
        os.write(writer, b"x" * 5 * MIB)
        bounded.bound(log)
        assert not await console.says("ready")  # that of an earlier life, and gone at that
        os.write(writer, b"rea")
        assert not await console.says("ready")
        os.write(writer, b"dy")
        assert await console.says("ready")
        os.write(writer, b"x" * 5 * MIB)
        bounded.bound(log)
        assert await console.says("ready") and not await console.says("never")
        console.boots_from = await console.size()
        assert not await console.says("ready")
    finally:
        os.close(writer)
