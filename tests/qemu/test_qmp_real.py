"""QMP against real QEMU: every binary at hand, and a main loop that really hangs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.merging import until_nodes_gone

from coloctl import paths
from coloctl.clock import Deadline
from coloctl.errors import CommandRefused, OutcomeUnknown, Unreachable
from coloctl.lab import qemu
from coloctl.model.dialect import ReturnPath
from coloctl.model.qapi import RunState
from coloctl.model.wires import Endpoint
from coloctl.qmp import command as qmp
from coloctl.qmp import dialect, wait
from coloctl.qmp import schema as qmp_schema
from coloctl.qmp.command import Command
from coloctl.qmp.monitor import Monitor
from coloctl.qmp.sequence import Step, run
from coloctl.qmp.session import Event, Session

pytestmark = pytest.mark.qemu

NONE = ("-machine", "none")
FIRMWARE = ("-machine", "pc", "-accel", "tcg", "-m", "64")

DIALECTS = {
    "7.2": (ReturnPath.FORBIDDEN, "reconnect"),
    "10.0": (ReturnPath.FORBIDDEN, "reconnect-ms"),
    "11.1": (ReturnPath.REQUIRED, "reconnect-ms"),
}


@pytest.fixture
def build(qemu_build: qemu.Build) -> qemu.Build:
    """Each QEMU of the matrix in its turn."""
    return qemu_build


@contextmanager
def launched(
    build: qemu.Build, folder: Path, *argv: str
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, socket.socket]]]:
    """A QEMU with a command and a rescue monitor, and our ends of both; killed at the end."""
    with ExitStack() as stack:
        ours: dict[str, socket.socket] = {}
        args = [
            str(build.binary),
            *argv,
            "-S",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ]
        fds = []
        for name in ("qmp", "rescue"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(folder / name))
            listener.listen()
            ours[name] = stack.enter_context(socket.socket(socket.AF_UNIX))
            ours[name].connect(str(folder / name))
            fds.append(listener.fileno())
            chardev = f"socket,id={name},fd={listener.fileno()},server=on,wait=off"
            args += ["-chardev", chardev, "-mon", f"chardev={name},mode=control"]
        process = subprocess.Popen(args, pass_fds=fds, stdin=subprocess.DEVNULL)
        try:
            yield process, ours
        finally:
            process.kill()
            process.wait()


def play(
    build: qemu.Build,
    folder: Path,
    argv: tuple[str, ...],
    body: Callable[[Monitor, subprocess.Popen[bytes]], Awaitable[None]],
) -> None:
    """Runs ``body`` with a monitor on a fresh QEMU."""

    async def whole() -> None:
        with launched(build, folder, *argv) as (process, ours):
            sockets = (ours["qmp"], ours["rescue"])
            async with await Monitor.open("a", *sockets, deadline_s=20) as monitor:
                await body(monitor, process)

    asyncio.run(asyncio.wait_for(whole(), 60))


def test_the_dialect_is_what_the_binary_does(build: qemu.Build, tmp_path: Path) -> None:
    async def body(monitor: Monitor, _: subprocess.Popen[bytes]) -> None:
        before = await monitor.execute(qmp.query_migrate_capabilities())
        found = await dialect.discover(monitor, 20)
        assert (found.return_path, found.reconnect) == DIALECTS[build.name]
        assert found.x_colo
        assert found.version.startswith(build.name)
        assert await monitor.execute(qmp.query_migrate_capabilities()) == before
        await monitor.execute(qmp.migrate_set_capabilities(found.capabilities()))

    play(build, tmp_path, NONE, body)


def test_the_stored_schema_is_what_the_binary_says(build: qemu.Build, tmp_path: Path) -> None:
    stored = qmp_schema.load(paths.data_dir("qmp_schemas") / f"qemu-{build.name}.json")

    async def body(monitor: Monitor, _: subprocess.Popen[bytes]) -> None:
        found = await dialect.learn_schema(monitor, 20)
        required = qmp_schema.load_required(paths.data_dir("qmp_schemas") / "required.toml")
        assert qmp_schema.required_missing(found, required) == []
        if found.qemu != stored.qemu:
            pytest.skip(f"stored from {stored.qemu}, here is {found.qemu}")
        assert qmp_schema.diff(stored, found) == []

    play(build, tmp_path, NONE, body)


def test_every_query_is_answered(build: qemu.Build, tmp_path: Path) -> None:
    queries: list[Command] = [
        function(oob=False) if name == "query_yank" else function()
        for name, function in inspect.getmembers(qmp, inspect.isfunction)
        if name.startswith("query_")
    ]
    assert len(queries) > 10

    async def body(monitor: Monitor, _: subprocess.Popen[bytes]) -> None:
        for query in queries:
            await monitor.execute(query, 20)

    play(build, tmp_path, FIRMWARE, body)


def test_events_come_once_with_qemus_time(build: qemu.Build, tmp_path: Path) -> None:
    async def body(monitor: Monitor, _: subprocess.Popen[bytes]) -> None:
        with monitor.listen() as stream:
            before = time.time()
            steps = [Step(qmp.cont()), Step(qmp.stop()), Step(qmp.query_yank())]
            assert (await run(steps, monitor, deadline=Deadline(20))).ok
            events = [await stream.next(20) for _ in ("RESUME", "STOP")]
            assert [event.name for event in events] == ["RESUME", "STOP"]
            assert before - 0.001 <= events[0].at_s <= events[1].at_s <= time.time() + 0.001
            await monitor.execute(qmp.quit())
            assert (await stream.next(20)).name == "SHUTDOWN"
            with pytest.raises(Unreachable):
                await stream.next(20)

    play(build, tmp_path, FIRMWARE, body)


async def test_both_monitors_tell_the_same_events_in_one_order(
    build: qemu.Build, tmp_path: Path
) -> None:
    """`qmp.event_merge` rests on that: an event has one timestamp, whoever is told of it."""

    async def body(ours: dict[str, socket.socket]) -> None:
        heard: dict[str, list[Event]] = {"qmp": [], "rescue": []}
        async with contextlib.AsyncExitStack() as stack:
            command, rescue = [
                await stack.enter_async_context(
                    await Session.open(
                        ours[name], name=name, oob=name == "rescue", deadline_s=20,
                        on_event=heard[name].append,
                    )
                )
                for name in heard
            ]  # fmt: skip
            for _ in range(5):
                for do in (qmp.cont(), qmp.system_reset(), qmp.stop()):
                    await command.execute(do, 20)
            await rescue.execute(qmp.query_yank(), 20)
        one, two = ([(e.name, e.at_s, e.data) for e in told] for told in heard.values())
        assert one == two
        assert len(one) >= 10

    with launched(build, tmp_path, *FIRMWARE) as (_, ours):
        await asyncio.wait_for(body(ours), 60)


def test_a_descriptor_reaches_qemu(build: qemu.Build, tmp_path: Path) -> None:
    async def body(monitor: Monitor, _: subprocess.Popen[bytes]) -> None:
        pairs = {f"end{n}": socket.socketpair() for n in range(4)}
        try:
            theirs = {name: pair[1].fileno() for name, pair in pairs.items()}
            await run(
                [Step(qmp.getfd(n)) for n in theirs], monitor, deadline=Deadline(20), fds=theirs
            )
            for name, (mine, given) in pairs.items():
                given.close()
                address = {"type": "fd", "data": {"str": name}}
                backend = {"type": "socket", "data": {"addr": address, "server": False}}
                await monitor.execute(qmp.chardev_add(name, backend))
                await monitor.execute(qmp.chardev_remove(name))
                mine.settimeout(20)
                assert mine.recv(1) == b"", f"{name} was not the descriptor of that name"
        finally:
            for pair in pairs.values():
                for end in pair:
                    end.close()

    play(build, tmp_path, NONE, body)


def test_a_descriptor_that_does_not_come_is_refused(build: qemu.Build, tmp_path: Path) -> None:
    async def body(monitor: Monitor, _: subprocess.Popen[bytes]) -> None:
        with pytest.raises(CommandRefused):
            await monitor.execute(qmp.getfd("mig"))

    play(build, tmp_path, NONE, body)


def test_a_frozen_qemu_hangs_nobody_and_thaws_usable(build: qemu.Build, tmp_path: Path) -> None:
    async def body(monitor: Monitor, process: subprocess.Popen[bytes]) -> None:
        os.kill(process.pid, signal.SIGSTOP)
        try:
            for call in (monitor.execute(qmp.cont(), 0.1), monitor.rescue(qmp.query_yank(), 0.1)):
                with pytest.raises(OutcomeUnknown):
                    await call
        finally:
            os.kill(process.pid, signal.SIGCONT)
        state = await wait.until_runstate(monitor, {RunState.RUNNING}, 20)
        assert state is RunState.RUNNING
        assert await monitor.rescue(qmp.query_yank(), 20)

    play(build, tmp_path, FIRMWARE, body)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        return int(chosen.getsockname()[1])


async def serve_disk(monitor: Monitor, port: int) -> None:
    """The QEMU of ``monitor`` exports an empty disk as parent0."""
    disk = {"driver": "null-co", "node-name": "parent0", "size": 1 << 20, "read-zeroes": True}
    steps = [
        Step(qmp.blockdev_add(disk)),
        Step(qmp.nbd_server_start(Endpoint("127.0.0.1", port))),
        Step(qmp.block_export_add("exp0", "parent0", "parent0")),
    ]
    await run(steps, monitor, deadline=Deadline(20))


def nbd_client(port: int) -> dict[str, object]:
    server = {"type": "inet", "host": "127.0.0.1", "port": str(port)}
    return {"driver": "nbd", "node-name": "nbd0", "server": server, "export": "parent0"}


def test_the_rescue_frees_a_main_loop_that_waits_for_a_frozen_peer(
    build: qemu.Build, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()

    async def body(monitor: Monitor, _: subprocess.Popen[bytes]) -> None:
        with launched(build, folders[1], *NONE) as (peer, ours):
            port = free_port()
            async with await Monitor.open("b", ours["qmp"], ours["rescue"], deadline_s=20) as other:
                await serve_disk(other, port)
                await monitor.execute(qmp.blockdev_add(nbd_client(port)))
                os.kill(peer.pid, signal.SIGSTOP)
                write = {"command-line": 'qemu-io nbd0 "write 0 512"'}
                with pytest.raises(OutcomeUnknown):
                    await monitor.execute(Command("human-monitor-command", write), 0.3)
                with pytest.raises(OutcomeUnknown):
                    await monitor.execute(qmp.query_status(), 0.3)
                instance = {"type": "block-node", "node-name": "nbd0"}
                assert instance in await monitor.rescue(qmp.query_yank(), 20)
                await monitor.rescue(qmp.yank([instance]), 20)
                steps = [Step(qmp.query_status()), Step(qmp.blockdev_del("nbd0"))]
                assert (await run(steps, monitor, deadline=Deadline(20))).ok
                await until_nodes_gone(monitor, ["nbd0"], 20)

    play(build, folders[0], FIRMWARE, body)


def test_a_killed_qemu_is_noticed_by_all(build: qemu.Build, tmp_path: Path) -> None:
    async def body(monitor: Monitor, process: subprocess.Popen[bytes]) -> None:
        os.kill(process.pid, signal.SIGSTOP)
        waiting = asyncio.create_task(monitor.execute(qmp.cont(), 20))
        await asyncio.sleep(0.05)
        process.kill()
        with pytest.raises(OutcomeUnknown):
            await waiting
        await asyncio.wait_for(monitor.closed(), 20)
        with pytest.raises(Unreachable):
            await monitor.execute(qmp.cont(), 20)

    play(build, tmp_path, FIRMWARE, body)


def test_a_second_client_of_one_monitor_is_told_why(build: qemu.Build, tmp_path: Path) -> None:
    async def body(_: Monitor, __: subprocess.Popen[bytes]) -> None:
        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
            one.connect(str(tmp_path / "qmp"))
            two.connect(str(tmp_path / "rescue"))
            with pytest.raises(Unreachable) as caught:
                await Monitor.open("a", one, two, deadline_s=0.3)
            assert caught.value.hint

    play(build, tmp_path, NONE, body)


def test_a_monitor_opens_whatever_the_guest_does_meanwhile(
    build: qemu.Build, tmp_path: Path
) -> None:
    """Resets come by the thousand: about one connection in thirty begins with such an event."""
    reset = b"\xb0\x06\xba\xf9\x0c\xee"  # mov al, 6; mov dx, 0xcf9; out dx, al
    firmware = tmp_path / "reset.bin"
    firmware.write_bytes((bytes(0xFFF0) + reset).ljust(0x10000, b"\0"))

    async def body(monitor: Monitor, _: subprocess.Popen[bytes]) -> None:
        await monitor.execute(qmp.cont())
        await monitor.aclose()
        for _n in range(300):
            ours = socket.socket(socket.AF_UNIX)
            ours.connect(str(tmp_path / "qmp"))
            async with await Session.open(
                ours, name="a", oob=True, deadline_s=20, on_event=lambda _: None
            ) as session:
                assert session.greeting

    play(build, tmp_path, ("-machine", "q35", "-accel", "tcg", "-bios", str(firmware)), body)
