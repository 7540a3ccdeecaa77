"""A program behind a wrapper: the process that answers counts, and all of them end together.

The QEMU is played by a script that greets whoever connects to the socket that it inherited; how it
comes to run is what differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from coloctl import procfs
from coloctl.chaos.evidence.remains import processes
from coloctl.errors import FencingFailed, Unreachable
from coloctl.host import Identity, LocalHost, identity_of
from coloctl.host.process_tree import ProcessTree
from coloctl.host.program import Program
from coloctl.host.recorded_program import adopt_program
from coloctl.machine import accel
from coloctl.model.launch import Launch
from coloctl.model.observation import Life

pytestmark = pytest.mark.unit


async def test_what_is_watched_of_a_process_is_known(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_text("login:")
    async with LocalHost() as host:
        process = await host.launch(Launch(("sleep", "300")), stderr=tmp_path / "log")
        try:
            assert (process.console_bytes(), process.life()) == (0, Life.ALIVE)
            process.watch(threads=[process.identity.pid])
            process.watch(console=console)
            assert process.console_bytes() == 6
            times = process.worked()
            assert times is not None and len(times.threads) == 1
            process.watch(threads=[1 << 22])
            assert process.worked() is None, "a thread that is gone"
            known = host.known(process.identity, node="a")
            assert known.life() is Life.ALIVE
            known.close()
        finally:
            await process.kill(5)
        assert process.life() is Life.DEAD
        assert process.console_bytes() == 6, "the file stays"
        gone = host.known(process.identity, node="a")
        assert gone.life() is Life.DEAD
        assert (await gone.kill(1)).how == "identity-gone"


QEMU = """
    import os, socket, sys, time
    disk = open(sys.argv[2], "a") if len(sys.argv) > 2 else None
    listening = socket.socket(fileno=int(sys.argv[1]))
    kept = []
    while True:
        client, _ = listening.accept()
        kept.append(client)
        client.send(b"%d\\n" % os.getpid())
"""

#: What a site's script does with ``$QEMU ARGUMENT...``, and how many processes that makes.
WRAPPERS = {
    "exec": ('exec $QEMU "$@"', 1),
    "child": ('$QEMU "$@"; exit $?', 2),
    "logged": ('$QEMU "$@" 2>&1 | while read -r line; do echo "$line"; done', 3),
    "own-session": ('setsid --wait $QEMU "$@"; exit $?', 2),
    "daemon": ('setsid --fork $QEMU "$@"; exit 0', 1),
    "restarting": ('while true; do $QEMU "$@"; done', 2),
    "with-helper": ('bash -c "exec $1>&-; while sleep 1; do :; done; : $0" "$0" &'
                    ' $QEMU "$@"; exit $?', 3),
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder that stands on every command line, so that what is left there can be seen."""
    (tmp_path / "qemu.py").write_text(dedent(QEMU))
    yield tmp_path
    left = processes([tmp_path])
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left


def wrapper(home: Path, kind: str) -> list[str]:
    script = home / f"{kind}.sh"
    script.write_text(
        f"#!/bin/sh\nQEMU='{sys.executable} -S {home}/qemu.py'\n{WRAPPERS[kind][0]}\n"
    )
    script.chmod(0o755)
    return [str(script), "{fd:qmp}"]


@contextlib.asynccontextmanager
async def launched(home: Path, kind: str) -> AsyncIterator[tuple[LocalHost, Program, int]]:
    """The program runs and has been heard; with the pid that its QEMU says it has."""
    async with LocalHost() as host:
        path = home / "qmp.sock"
        program = await host.launch(
            Launch(tuple(wrapper(home, kind)), {"qmp": path}), stderr=home / "log", node="a"
        )
        try:
            with await host.monitor(path, 10) as monitor:
                speaker = await host.speaker(monitor, 10)
                await program.answers(speaker)
                yield host, program, int(monitor.recv(64))
        finally:
            with contextlib.suppress(FencingFailed):
                await program.kill(10)


async def gone(home: Path) -> bool:
    """Nothing of it runs, a moment later too."""
    await asyncio.sleep(0.05)
    return not processes([home])


@pytest.mark.parametrize("kind", WRAPPERS)
async def test_the_process_that_answers_is_held_and_all_of_them_end(home: Path, kind: str) -> None:
    async with launched(home, kind) as (_, program, pid):
        assert program.identity == identity_of(pid)
        assert len(processes([home])) == WRAPPERS[kind][1]
        assert program.alive()
        proof = await program.kill(10)
        assert (proof.pid, proof.how) == (pid, "sigkill")
        assert not program.alive()
        assert await gone(home)


@pytest.mark.parametrize("kind", sorted(set(WRAPPERS) - {"exec", "daemon"}))
async def test_a_dead_wrapper_is_no_dead_qemu(home: Path, kind: str) -> None:
    async with launched(home, kind) as (_, program, pid):
        waiting = asyncio.create_task(program.wait())
        os.kill(program.leader.pid, signal.SIGKILL)
        await asyncio.sleep(0.1)
        assert program.alive() and not waiting.done()
        os.kill(pid, signal.SIGKILL)
        assert (await asyncio.wait_for(waiting, 10)).pid == pid
        await program.kill(10)
        assert await gone(home)


async def test_a_wrapper_that_starts_another_qemu_is_ended_with_it(home: Path) -> None:
    async with launched(home, "restarting") as (host, program, pid):
        os.kill(pid, signal.SIGKILL)
        assert (await program.wait()).pid == pid
        with await host.monitor(home / "qmp.sock", 10) as monitor:
            assert (await host.speaker(monitor, 10)).pid != pid  # there is a second one
        assert not program.alive()
        assert (await program.kill(10)).how == "already-dead"
        assert await gone(home)


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("dead", ["none", "wrapper", "qemu"])
async def test_another_supervisor_holds_the_same_processes(
    home: Path, kind: str, dead: str
) -> None:
    async with launched(home, kind) as (_, program, pid):
        identity, leader = program.identity, program.leader
        if dead == "wrapper" and identity != leader and program.leader.pid != pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(leader.pid, signal.SIGKILL)
        elif dead == "qemu":
            os.kill(pid, signal.SIGKILL)
            await program.wait()
        await asyncio.sleep(0.05)
        found = await adopt_program(identity, node="a", leader=leader, sockets=[home / "qmp.sock"])
        if found is not None:
            assert (found.identity, found.leader) == (identity, leader)
            assert found.alive() is (dead != "qemu")
            await found.kill(10)
        else:
            assert dead == "qemu"
        assert await gone(home)
        again = await adopt_program(identity, node="a", leader=leader, sockets=[home / "qmp.sock"])
        assert again is None


async def test_who_has_the_disks_open_is_the_qemu_though_another_speaks(home: Path) -> None:
    """A monitor may be served by a program between coloctl and QEMU."""

    disk = home / "disk.img"
    disk.touch()
    (home / "carrier.sh").write_text(
        f"#!/bin/sh\n{sys.executable} -S {home}/qemu.py $1 &\nexec 4>>{disk}\nwait\n"
    )
    (home / "carrier.sh").chmod(0o755)
    async with LocalHost() as host:
        path = home / "qmp.sock"
        argv = [str(home / "carrier.sh"), "{fd:qmp}"]
        program = await host.launch(Launch(tuple(argv), {"qmp": path}), stderr=home / "log")
        try:
            with await host.monitor(path, 10) as monitor:
                speaker = await host.speaker(monitor, 10)
                assert speaker != program.leader
                await program.answers(speaker, [disk])
                assert program.identity == program.leader
        finally:
            await program.kill(10)
        assert await gone(home)


async def test_a_stranger_who_answers_is_not_taken_for_the_qemu(home: Path) -> None:
    async with launched(home, "child") as (host, program, _), launched_stranger(home) as path:
        with await host.monitor(path, 10) as monitor:
            speaker = await host.speaker(monitor, 10)
        with pytest.raises(Unreachable, match="coloctl did not start it"):
            await program.answers(speaker)


@contextlib.asynccontextmanager
async def launched_stranger(home: Path) -> AsyncIterator[Path]:
    async with LocalHost() as host:
        path = home / "stranger.sock"
        argv = [sys.executable, "-S", str(home / "qemu.py"), "{fd:qmp}"]
        stranger = await host.launch(Launch(tuple(argv), {"qmp": path}), stderr=home / "log")
        try:
            yield path
        finally:
            await stranger.kill(10)


async def test_a_session_number_of_the_past_proves_nothing(home: Path) -> None:
    """Another program may lead a session of the same number long after the first has ended."""

    async with launched(home, "child") as (_, program, _):
        leader = program.leader
        before = Identity(leader.pid, leader.start_time - 1000)  # ten seconds earlier
        assert not ProcessTree(before, {}, "a").look()
        assert await adopt_program(before, node="a") is None
        assert len(processes([home])) == 2


async def test_a_launch_that_is_given_up_leaves_nothing(home: Path) -> None:
    async with LocalHost() as host:
        for kind in WRAPPERS:
            program = await host.launch(
                Launch(tuple(wrapper(home, kind)), {"qmp": home / "qmp.sock"}), stderr=home / "log"
            )
            end = time.monotonic() + 10
            while not any("qemu.py" in one for one in processes([home]).values()):
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            program.discard(5)
            assert await gone(home), kind


@pytest.mark.parametrize("kind", ["child", "own-session", "logged"])
def test_a_measured_qemu_behind_a_wrapper_ends(home: Path, kind: str) -> None:
    """It never says a word, so it is killed at the deadline, with all that the wrapper started."""
    (home / "qemu.py").write_text(
        f"import sys, time\nopen({str(home / 'ran')!r}, 'w').close()\ntime.sleep(300)\n"
    )
    binary = Path(wrapper(home, kind)[0])
    measured = accel.measure(binary, "tcg", start_deadline_s=1.0)
    assert measured.loop_s is None and (home / "ran").exists()
    assert not processes([home])


async def test_what_the_kernel_tells_of_sockets_and_files(home: Path) -> None:
    async with launched(home, "own-session") as (_, program, pid):
        path = home / "qmp.sock"
        inode = procfs.listeners([path])[path]
        assert procfs.listed([inode]) and not procfs.listed([1])
        holders = procfs.holding({procfs.socket_name(inode)})
        assert holders == {pid, program.leader.pid}
        log = home / "log"
        assert {pid, program.leader.pid} <= procfs.holding_file([log])
        path.rename(home / "elsewhere")  # the kernel still knows it by the name it was made by
        assert procfs.listeners([path]) == {path: inode}
        await program.kill(10)
        assert not procfs.listed([inode]) and not procfs.listeners([path])
