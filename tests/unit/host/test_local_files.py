"""Files of this machine by its host: logs, folders, registers, and what a binary is known by."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from coloctl import bounded, probe_cache
from coloctl.errors import PreconditionFailed
from coloctl.host import LocalHost
from coloctl.host.console import GuestConsole
from coloctl.host.records import Contact, LogPiece
from coloctl.procfs import boot_id, machine_id

pytestmark = pytest.mark.unit


async def test_a_log_is_read_by_pieces_and_from_where_it_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "qemu.log"
    async with LocalHost() as host:
        assert await host.read_log(log, 5, 10) == LogPiece(0, b"", 0)
        assert await host.read_tail(log) == ""
        assert await host.read_tail(tmp_path) == "", "a folder has no last line"
        log.write_bytes(b"one\ntwo\nthree\n")
        assert await host.read_log(log, 4, 3) == LogPiece(4, b"two", 14)
        assert await host.read_log(log, 14, 3) == LogPiece(14, b"", 14)
        assert await host.read_log(log, 99, 3) == LogPiece(0, b"one", 14), "it was emptied"
        assert await host.read_tail(log, 2) == "two\nthree"


async def test_a_log_that_grew_too_long_keeps_its_offsets(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(bytes([65]) * (bounded.LIMIT + (1 << 20)))
    async with LocalHost() as host:
        await host.keep_bounded([log, tmp_path / "absent.log"])
        piece = await host.read_log(log, 0, 10)
    assert piece.size == log.stat().st_size
    assert piece.begin == 0 or piece.data == b"A" * 10
    assert log.stat().st_blocks * 512 <= bounded.LIMIT


async def test_a_console_is_searched_from_the_last_boot_on(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    async with LocalHost() as host:
        console = GuestConsole(host, path)
        assert (await console.size(), await console.says("login:")) == (0, False)
        path.write_bytes(b"login: of an earlier life\n")
        console.boots_from = await console.size()
        assert not await console.says("login:")
        with path.open("ab") as file:
            file.write(b"booting\nlog")
            file.flush()
            assert not await console.says("login:")
            file.write(b"in:")
        assert await console.says("login:")
        path.write_bytes(b"")
        assert await console.says("login:"), "once seen, until the next boot"
        console.boots_from = 99
        path.write_bytes(b"login: after it was emptied")
        assert not await console.says("none")
        assert console.boots_from == 0 or not await console.says("login:")


async def test_programs_and_files_are_found_or_the_reason_is_given(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    async with LocalHost() as host:
        found = await host.which("sh")
        assert found is not None and found.is_file()
        assert await host.which("no-such-program-of-any-kind") is None
        assert await host.which(str(plain)) is None
        assert await host.usable(plain, os.R_OK) == ""
        assert await host.usable(plain, os.X_OK) == "Permission denied"
        assert await host.usable(tmp_path / "absent", os.R_OK) == "No such file or directory"
        assert await host.fingerprint(plain) == probe_cache.identity(plain)


async def test_folders_are_made_private_swept_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "web" / "a"
    async with LocalHost() as host:
        await host.make_private(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for name in ("qemu.log", "qmp.sock", "active.qcow2"):
            (folder / name).write_text("x")
        await host.sweep(folder)
        assert [path.name for path in folder.iterdir()] == ["qemu.log"]
        await host.sweep(folder, logs=True)
        assert not folder.exists()
        await host.sweep(folder, logs=True)
        async with host.workspace("coloctl-test-") as made:
            assert stat.S_IMODE(made.stat().st_mode) == 0o700
            (made / "file").write_text("x")
        assert not made.exists()


async def test_a_file_is_put_as_a_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "made" / "plugin.so"
    async with LocalHost() as host:
        await host.put(path, b"old", 0o600)
        await host.put(path, b"new", 0o755)
        assert path.read_bytes() == b"new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        (tmp_path / "folder").mkdir(mode=0o700)
        with pytest.raises(PreconditionFailed, match="cannot be written"):
            await host.put(tmp_path / "folder", b"x", 0o600)
        assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "made"]


async def test_of_exchanges_at_once_exactly_one_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    async with LocalHost() as host:
        tries = [host.exchange(path, None, str(i).encode()) for i in range(8)]
        assert sum(await asyncio.gather(*tries)) == 1
        first = path.read_bytes()
        assert not await host.exchange(path, b"another", b"no")
        assert path.read_bytes() == first
        assert await host.exchange(path, first, b"second")
        assert path.read_bytes() == b"second"
        with pytest.raises(PreconditionFailed, match="cannot be locked"):
            await host.exchange(tmp_path / "absent" / "claim.json", None, b"x")


async def test_this_machine_is_known_and_here() -> None:
    async with LocalHost() as host:
        assert (host.machine.machine_id, host.machine.boot_id) == (machine_id(), boot_id())
        assert host.machine.pair_dir("web") == host.machine.state_dir / "web"
        assert host.reach.contact is Contact.HERE and not host.reach.out
        await host.ready(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await host.reached(host.reach)
        done = await host.run([*host.machine.programs, "this"], deadline_s=30)
        assert done.code == 0, "a module is run by it"
