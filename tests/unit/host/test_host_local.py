"""The local host: sockets handed over, channels, ports, helper programs, nothing leaked."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from coloctl.errors import DeadlineMissed, PreconditionFailed, SpecError, Unreachable
from coloctl.host import Endpoint, LocalHost, channel_pair, late_ends, launch, open_host
from coloctl.host.process import read_stat
from coloctl.model.launch import Launch

pytestmark = pytest.mark.unit

GREETER = """
import socket, sys, time
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    listener.accept()[0].send(b"hello")
"""


@contextmanager
def no_fd_leak() -> Iterator[None]:
    before = sorted(Path("/proc/self/fd").iterdir())
    yield
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def runs(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state != "Z"


async def until(true: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


async def test_launched_program_owns_a_socket_that_listened_before_it(tmp_path: Path) -> None:
    async with LocalHost() as host:
        path = tmp_path / "qmp.sock"
        process = await host.launch(
            Launch((sys.executable, "-S", "-c", GREETER, "{fd:qmp}"), {"qmp": path}),
            stderr=tmp_path / "log",
        )
        try:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with await host.monitor(path, 5) as sock:
                loop = asyncio.get_running_loop()
                assert await asyncio.wait_for(loop.sock_recv(sock, 16), 60) == b"hello"
            with pytest.raises(PreconditionFailed, match="already listens"):
                await host.launch(Launch(("true",), {"qmp": path}), stderr=tmp_path / "log")
            assert path.exists()
        finally:
            await process.kill(5)
        with pytest.raises(Unreachable, match="No process answers"):
            await host.monitor(path, 5)


async def test_stale_socket_file_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    stale, file = tmp_path / "stale.sock", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    file.write_text("precious")
    async with LocalHost() as host:
        process = await host.launch(Launch(("true",), {"m": stale}), stderr=tmp_path / "log")
        assert (await process.wait()).exit_code == 0
        with pytest.raises(PreconditionFailed, match="it is not a socket"):
            await host.launch(
                Launch(("true",), {"a": tmp_path / "new", "m": file}), stderr=tmp_path / "log"
            )
    assert file.read_text() == "precious"
    assert not (tmp_path / "new").exists()


async def test_long_socket_path_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 108)
    async with LocalHost() as host:
        with pytest.raises(PreconditionFailed, match="can have 107") as caught:
            await host.launch(Launch(("true",), {"m": path}), stderr=tmp_path / "log")
        assert "COLOCTL_STATE_DIR" in (caught.value.hint or "")
        with pytest.raises(PreconditionFailed, match="can have 107"):
            await host.monitor(path, 1)


async def test_monitor_that_takes_no_connection_is_unreachable(tmp_path: Path) -> None:
    path = tmp_path / "full.sock"
    async with LocalHost() as host:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(0)
            first = await host.monitor(path, 1)
            with first, pytest.raises(Unreachable, match="took no connection"):
                await host.monitor(path, 0.05)
        with pytest.raises(Unreachable, match="No process answers"):
            await host.monitor(tmp_path / "none.sock", 1)


@pytest.mark.parametrize("nodelay", [True, False])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_channel_is_a_blocking_stream_with_nodelay_as_asked(
    address: str, nodelay: bool
) -> None:
    async with LocalHost() as one, LocalHost() as two:
        try:
            ends = await channel_pair(one, two, Endpoint(address, 0), nodelay=nodelay, deadline_s=5)
        except PreconditionFailed:
            if address == "::1":
                pytest.skip("no IPv6 here")
            raise
        with ends[0] as near, ends[1] as far:
            for end in (near, far):
                assert os.get_blocking(end.fileno())
                option = end.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert bool(option) is nodelay
            os.write(near.fileno(), b"there")
            assert os.read(far.fileno(), 16) == b"there"
            os.write(far.fileno(), b"back")
            assert os.read(near.fileno(), 16) == b"back"
            assert near.socket.getpeername() == far.socket.getsockname()
        assert near.fileno() == far.fileno() == -1


async def test_channel_turns_strangers_away() -> None:
    async with LocalHost() as host:
        with closing(await host.listen(Endpoint("127.0.0.1", 0))) as listener:
            at = listener.at
            with socket.create_connection((at.address, at.port)) as stranger:
                far = await host.connect(at, nodelay=True, deadline_s=5)
                assert far.local is not None
                near = await listener.accept(far.local, nodelay=True, deadline_s=5)
                with near, far:
                    assert near.socket.getpeername() == far.socket.getsockname()
                    assert near.local == at
                    assert stranger.recv(1) == b""


async def test_channel_on_a_busy_port_names_it() -> None:
    async with LocalHost() as host:
        with taken_port() as port, no_fd_leak():
            with pytest.raises(PreconditionFailed, match=f"127.0.0.1:{port}.*in use") as caught:
                await channel_pair(
                    host, host, Endpoint("127.0.0.1", port), nodelay=True, deadline_s=5
                )
            assert "base_port" in (caught.value.hint or "")


@pytest.mark.parametrize("address", ["192.0.2.1", "a.example"])
async def test_channel_at_an_address_that_is_not_ours(address: str) -> None:
    async with LocalHost() as host:
        with pytest.raises(PreconditionFailed, match=address):
            await channel_pair(host, host, Endpoint(address, 0), nodelay=True, deadline_s=5)


async def test_unix_channels_are_connected() -> None:
    async with LocalHost() as host:
        one, two = await host.unix_channels()
    with one, two:
        assert os.get_blocking(one.fileno())
        assert one.local is None
        os.write(one.fileno(), b"x")
        assert os.read(two.fileno(), 1) == b"x"


async def test_ports_in_use_sees_listeners_and_only_where_they_collide() -> None:
    async with LocalHost() as host:
        with taken_port() as port:
            assert port in await host.ports_in_use("127.0.0.1")
            assert port in await host.ports_in_use("0.0.0.0")
            assert port not in await host.ports_in_use("127.0.0.2")
        with socket.socket() as everywhere:
            everywhere.bind(("0.0.0.0", 0))
            everywhere.listen()
            port = everywhere.getsockname()[1]
            assert port in await host.ports_in_use("127.0.0.2")
            assert port not in await host.ports_in_use("::1")
        assert port not in await host.ports_in_use("127.0.0.2")


async def test_run_answers_with_code_and_output() -> None:
    async with LocalHost() as host:
        done = await host.run(["sh", "-c", "echo out; echo err >&2; exit 3"], deadline_s=10)
        assert (done.code, done.stdout, done.stderr) == (3, "out\n", "err\n")
        killed = await host.run(["sh", "-c", "kill -9 $$"], deadline_s=10)
        assert killed.code == -signal.SIGKILL
        with pytest.raises(PreconditionFailed, match="qemu-imgg") as caught:
            await host.run(["qemu-imgg", "info"], deadline_s=10)
        assert caught.value.hint


@pytest.mark.parametrize("how", ["late", "cancelled"])
async def test_run_that_is_not_waited_for_is_killed_with_its_children(
    tmp_path: Path, how: str
) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 300 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait"

    async with LocalHost() as host:
        running = asyncio.create_task(
            host.run(["sh", "-c", script], deadline_s=1 if how == "late" else 60)
        )
        await until(pids.exists)
        if how == "cancelled":
            running.cancel()
        await asyncio.wait([running])
        assert running.cancelled() is (how == "cancelled")
        if how == "late":
            assert isinstance(running.exception(), DeadlineMissed)

    await until(lambda: not any(map(runs, map(int, pids.read_text().split()))))


@pytest.mark.parametrize("how", ["late", "cancelled", "before it was held"])
async def test_a_program_that_outlives_its_kill_is_waited_for_when_the_host_is_closed(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A kernel that is busy with a disk ends a process late; here it gets its signals late."""
    sent: list[int] = []
    begun, go_on = threading.Event(), threading.Event()
    start_captured, at_last = launch.start_captured, os.killpg

    def later(process: int, signum: int) -> None:
        sent.append(process)
        threading.Timer(0.3, at_last, [process, signum]).start()

    def started(argv: Sequence[str], stdin: bytes) -> launch.CapturedProgram:
        program = start_captured(argv, stdin)
        begun.set()
        go_on.wait(30)
        return program

    if how == "before it was held":
        monkeypatch.setattr(launch, "start_captured", started)
    monkeypatch.setattr(os, "killpg", later)
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
    monkeypatch.setattr(late_ends, "REAP_WAIT_S", 0.01)
    monkeypatch.setattr(launch, "DISCARD_WAIT_S", 0.01)
    async with LocalHost() as host:
        running = asyncio.create_task(
            host.run(["sleep", "300"], deadline_s=0.1 if how == "late" else 60)
        )
        if how == "cancelled":
            await asyncio.sleep(0.1)
        elif how == "before it was held":
            await until(begun.is_set)
        if how != "late":
            running.cancel()
        await asyncio.wait([running])
        go_on.set()
        assert running.cancelled() is (how != "late")
        if how == "late":
            assert isinstance(running.exception(), DeadlineMissed)
    assert len(sent) == 1
    assert not Path(f"/proc/{sent[0]}").exists()  # ended, and reaped


async def test_nothing_is_leaked(tmp_path: Path) -> None:
    async def round_trip() -> None:
        async with LocalHost() as host:
            process = await host.launch(
                Launch(
                    (sys.executable, "-S", "-c", GREETER, "{fd:qmp}"),
                    {"qmp": tmp_path / "qmp.sock"},
                ),
                stderr=tmp_path / "log",
            )
            again = await host.adopt(process.identity)
            assert again is not None
            waiting = asyncio.create_task(again.wait())
            (await host.monitor(tmp_path / "qmp.sock", 5)).close()
            await host.run(["true"], deadline_s=10)
            for end in await channel_pair(
                host, host, Endpoint("127.0.0.1", 0), nodelay=True, deadline_s=5
            ):
                end.close()
            with pytest.raises(PreconditionFailed):
                await host.launch(Launch(("true",)), stderr=tmp_path)
            await process.kill(5)
            await waiting
            again.close()

    await round_trip()
    with no_fd_leak():
        for _ in range(3):
            await round_trip()


async def test_network_devices_that_are_no_taps() -> None:
    async with LocalHost() as host:
        assert await host.tap_is_up("no-such-tap") is None
        with pytest.raises(PreconditionFailed, match="no tap no-such-tap"):
            await host.tap("no-such-tap", up=False)
        with pytest.raises(PreconditionFailed, match="no tap no-such-tap"):
            await host.check_tap("no-such-tap")
        with pytest.raises(PreconditionFailed, match="is not a tap"):
            await host.check_tap("lo")
        with pytest.raises(PreconditionFailed, match="1 to 15 bytes"):
            await host.check_tap("a-name-that-is-too-long")


@pytest.mark.parametrize("spec", ["", "ssh", "ssh:b", "ssh://-b", "netns", "local:x"])
def test_unknown_kind_of_host(spec: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_host(spec)
    assert "netns:NAME" in (caught.value.hint or "") or "ssh://root@hv2" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["", "a/b", ".."])
def test_name_that_no_namespace_can_have(name: str) -> None:
    with pytest.raises(PreconditionFailed, match="cannot be a namespace's name"):
        open_host(f"netns:{name}")


def test_unknown_namespace_points_to_the_lab() -> None:
    with no_fd_leak(), pytest.raises(PreconditionFailed, match="nope") as caught:
        open_host("netns:nope")
    assert "coloctl lab up" in (caught.value.hint or "")
