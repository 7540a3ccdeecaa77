"""What every host does, whatever kind it is: a test per promise of `host.base.Host`.

A module that runs them has a fixture ``host`` and imports all names of this one. ``tmp_path`` is a
folder of the host's machine, so the other end of a connection must be under this kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coloctl.errors import (
    DeadlineMissed,
    FencingFailed,
    LaunchError,
    PreconditionFailed,
    Unreachable,
)
from coloctl.host.access import Caller
from coloctl.host.base import Host, Process
from coloctl.host.channel import carries, channel_pair
from coloctl.host.guard import GuardedPorts
from coloctl.host.identity import Identity
from coloctl.host.process import identity_of
from coloctl.host.records import Contact, DeathProof, Stray
from coloctl.model.launch import Launch, TapOrder
from coloctl.model.observation import Life
from coloctl.model.wires import Endpoint, SocketFile
from coloctl.procfs import boot_id, machine_id, read_stat

LONG_S = 30.0
SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(1000)")
BUSY = (sys.executable, "-S", "-c", "while True: pass")

#: Greets, then answers each line with its length; writes into descriptors that come with it.
MONITOR = """
import array, socket, sys, os
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    sock = listener.accept()[0]
    sock.sendall(b"hello\\n")
    while True:
        data, notes, _, _ = sock.recvmsg(65536, 64)
        if not data:
            break
        numbers = array.array("i")
        for _, _, raw in notes:
            numbers.frombytes(raw)
        for number in numbers:
            os.write(number, b"from the QEMU")
            os.close(number)
        sock.sendall(b"%d %d\\n" % (len(data), len(numbers)))
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root's capabilities")


def runs(pid: int) -> bool:
    found = read_stat(pid)
    return found is not None and found.state != "Z"


async def until(true: Callable[[], object], within_s: float = LONG_S) -> None:
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110  # the answer may come from pushes
            await asyncio.sleep(0.005)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def listening() -> Iterator[tuple[socket.socket, Endpoint]]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock, Endpoint(*sock.getsockname())


@contextlib.asynccontextmanager
async def launched(host: Host, folder: Path, argv: tuple[str, ...] = SLEEPER):  # type: ignore[no-untyped-def]
    """A program, which is killed at the end; with a socket where it asks for one."""
    sockets = {"qmp": folder / "qmp.sock"} if "{fd:qmp}" in argv else {}
    process = await host.launch(Launch(argv, sockets), stderr=folder / "log", node="b")
    try:
        yield process
    finally:
        await process.kill(LONG_S)
        process.close()


async def monitored(host: Host, folder: Path) -> tuple[Process, socket.socket]:
    """A program that serves a monitor, and a connection to that."""
    argv = (sys.executable, "-S", "-c", MONITOR, "{fd:qmp}")
    program = Launch(argv, {"qmp": folder / "qmp.sock"})
    process = await host.launch(program, stderr=folder / "log", node="b")
    return process, await host.monitor(folder / "qmp.sock", LONG_S)


async def line_of(sock: socket.socket) -> bytes:
    loop, line = asyncio.get_running_loop(), b""
    async with asyncio.timeout(LONG_S):
        while not line.endswith(b"\n"):
            more = await loop.sock_recv(sock, 1)
            assert more, f"the monitor hung up after {line!r}"
            line += more
    return line


# -- the host itself


async def test_a_host_describes_its_machine(host: Host) -> None:
    await host.ready(LONG_S)
    assert (host.machine.boot_id, host.machine.machine_id) == (boot_id(), machine_id())
    assert host.machine.euid == os.geteuid()
    assert host.machine.pair_dir("web") == host.machine.state_dir / "web"
    assert host.reach.contact in (Contact.HERE, Contact.CONNECTED) and not host.reach.out
    assert host.name


async def test_a_program_of_coloctl_runs_there(host: Host) -> None:
    await host.ready(LONG_S)
    argv = [*host.machine.programs, "coloctl.host.records"]
    assert (await host.run(argv, deadline_s=LONG_S)).code == 0


# -- processes


async def test_a_launched_process_is_watched_to_its_death(host: Host, tmp_path: Path) -> None:
    async with launched(host, tmp_path) as process:
        assert process.argv == SLEEPER and process.node == "b"
        assert process.leader == process.identity == identity_of(process.identity.pid)
        await until(lambda: process.life() is Life.ALIVE and process.cpu_s() is not None)
        os.kill(process.identity.pid, signal.SIGSTOP)
        await until(lambda: process.life() is Life.STOPPED)
        assert process.alive()
        waiting = asyncio.create_task(process.wait())
        before_s = time.monotonic()
        os.kill(process.identity.pid, signal.SIGKILL)
        death = await asyncio.wait_for(waiting, LONG_S)
        assert (death.pid, death.exit_code) == (process.identity.pid, -signal.SIGKILL)
        assert before_s - 0.1 <= death.at_s <= time.monotonic()
        await until(lambda: process.life() is Life.DEAD)
        assert not process.alive() and process.cpu_s() is None
        assert (await process.wait()).exit_code == -signal.SIGKILL


async def test_a_process_is_ended_with_a_proof(host: Host, tmp_path: Path) -> None:
    async with launched(host, tmp_path) as process:
        proof = await process.terminate(LONG_S)
        assert isinstance(proof, DeathProof)
        assert (proof.pid, proof.how) == (process.identity.pid, "sigterm")
        assert (await process.kill(LONG_S)).how == "already-dead"
        await until(lambda: process.life() is Life.DEAD)
    async with launched(host, tmp_path) as process:
        os.kill(process.identity.pid, signal.SIGSTOP)
        assert (await process.kill(LONG_S)).how == "sigkill"


async def test_what_cannot_be_launched_is_refused(host: Host, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="/nowhere/qemu could not be started") as raised:
        await host.launch(Launch(("/nowhere/qemu", "-x")), stderr=tmp_path / "log", node="b")
    assert raised.value.argv == ("/nowhere/qemu", "-x") and raised.value.node == "b"
    with pytest.raises(PreconditionFailed, match="Cannot write"):
        await host.launch(Launch(SLEEPER), stderr=tmp_path / "none" / "log")


@needs_root
async def test_a_program_runs_as_another_user_and_gives_its_files_back(host: Host) -> None:
    if (other := await host.account("61234")) is None:
        pytest.skip("this user namespace has not every user")
    with tempfile.TemporaryDirectory(prefix="conformance-", dir="/tmp") as made:
        folder, image = Path(made, "web", "b"), Path(made, "disk.qcow2")
        Path(made).chmod(0o755)
        image.write_bytes(b"disk")
        await host.make_private(folder)
        argv = ("/bin/sleep", "1000")
        program = Launch(argv, {"qmp": folder / "qmp.sock"}, account=other, owned=(image,))
        process = await host.launch(program, stderr=folder / "qemu.log", node="b")
        try:
            assert (process.identity.uid, image.stat().st_uid) == (61234, 61234)
            sockets = tuple(program.sockets.values())
            assert sockets[0] in await host.holders(sockets)
        finally:
            await process.kill(LONG_S)
            process.close()
        await host.sweep(folder)
        assert image.stat().st_uid == 0
        with pytest.raises(PreconditionFailed, match="61234 cannot reach"):
            Path(made).chmod(0o700)
            await host.launch(program, stderr=folder / "qemu.log", node="b")
        assert image.stat().st_uid == 0


async def test_a_process_is_adopted_by_its_identity(host: Host, tmp_path: Path) -> None:
    async with launched(host, tmp_path) as process:
        identity: Identity = process.identity
        adopted = await host.adopt(identity, node="b", leader=process.leader)
        assert adopted is not None and adopted.identity == identity and adopted.node == "b"
        await until(lambda: adopted.life() is Life.ALIVE)
        known = host.known(identity, node="b")
        await until(lambda: known.life() is Life.ALIVE)
        known.close()
        proof = await host.kill(identity, node="b", deadline_s=LONG_S)
        assert proof.how == "sigkill"
        assert (await asyncio.wait_for(adopted.wait(), LONG_S)).pid == identity.pid
        adopted.close()
    assert await host.adopt(identity, node="b") is None
    gone = host.known(identity, node="b")
    assert (await asyncio.wait_for(gone.wait(), LONG_S)).pid == identity.pid
    assert not gone.alive()
    assert (await host.kill(identity, node="b", deadline_s=LONG_S)).how == "identity-gone"


async def test_a_case_of_doubt_is_no_death(host: Host) -> None:
    elsewhere = Identity(os.getpid(), 1, machine="f" * 32)
    with pytest.raises(PreconditionFailed, match="another machine"):
        await host.adopt(elsewhere, node="b")
    with pytest.raises(FencingFailed) as raised:
        await host.kill(elsewhere, node="b", deadline_s=LONG_S)
    assert raised.value.node == "b"


async def test_threads_and_console_are_watched(host: Host, tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    async with launched(host, tmp_path, BUSY) as process:
        process.watch(threads=[process.identity.pid])
        process.watch(console=console)
        await until(lambda: (process.worked() or _NEVER).threads and process.worked())
        before = process.worked()
        assert before is not None and before.at_s <= time.monotonic()
        await until(lambda: (process.worked() or _NEVER).threads[0][0] > before.threads[0][0])
        assert process.console_bytes() == 0
        console.write_bytes(b"login: ")
        await until(lambda: process.console_bytes() == 7)


class _NEVER:
    threads = ((0.0, 0.0),)


# -- monitors and descriptors


async def test_a_monitor_shows_its_process_and_carries_both_ways(
    host: Host, tmp_path: Path
) -> None:
    process, monitor = await monitored(host, tmp_path)
    try:
        with monitor:
            assert stat.S_IMODE((tmp_path / "qmp.sock").stat().st_mode) == 0o600
            assert await host.speaker(monitor, LONG_S) == process.identity
            assert await line_of(monitor) == b"hello\n"
            await process.answers(process.identity)
            await asyncio.get_running_loop().sock_sendall(monitor, b"1234567")
            assert await line_of(monitor) == b"7 0\n"
            held = await host.holders([tmp_path / "qmp.sock", tmp_path / "none.sock"])
            assert held == {tmp_path / "qmp.sock": (Stray(process.identity, incoming=False),)}
            stranger = identity_of(os.getpid())
            assert stranger is not None
            with pytest.raises(Unreachable, match="coloctl did not start it"):
                await process.answers(stranger)
            await process.kill(LONG_S)
            assert await asyncio.get_running_loop().sock_recv(monitor, 1) == b""
    finally:
        await process.kill(LONG_S)
        process.close()
    with pytest.raises(Unreachable, match="No process answers"):
        await host.monitor(tmp_path / "qmp.sock", LONG_S)


async def test_a_channel_is_passed_to_a_process(host: Host, tmp_path: Path) -> None:
    process, monitor = await monitored(host, tmp_path)
    one, two = await host.unix_channels()
    try:
        with monitor, one, two:
            assert one.local is None and one.fileno() >= 0 and one.description
            await line_of(monitor)
            # One byte: a longer write may arrive in pieces, the descriptor with the last of them.
            socket.send_fds(monitor, [b"g"], [one.fileno()])
            assert await line_of(monitor) == b"1 1\n"
            assert await two.receive(13, LONG_S) == b"from the QEMU"
            one.close()
            assert one.fileno() == -1
            assert await two.receive(1, LONG_S) == b""
    finally:
        await process.kill(LONG_S)
        process.close()


async def test_a_scratch_is_written_by_a_process_and_digested(host: Host, tmp_path: Path) -> None:
    process, monitor = await monitored(host, tmp_path)
    scratch = await host.scratch()
    try:
        with monitor:
            await line_of(monitor)
            socket.send_fds(monitor, [b"g"], [scratch.fileno()])
            await line_of(monitor)
            key = secrets.token_bytes(16)
            digests = await scratch.digests(13, 5, key)
            assert len(digests) == 3 * 16
            assert digests == await scratch.digests(13, 5, key)
            assert digests != await scratch.digests(13, 5, secrets.token_bytes(16))
            with pytest.raises(PreconditionFailed, match="wrote 13 bytes of its memory, not 14"):
                await scratch.digests(14, 5, key)
    finally:
        scratch.close()
        await process.kill(LONG_S)
        process.close()


# -- links


async def test_channels_connect_two_ends(host: Host) -> None:
    at = Endpoint("127.0.0.1", 0)
    one, two = await channel_pair(host, host, at, nodelay=True, deadline_s=LONG_S)
    with one, two:
        await one.send(b"there", LONG_S)
        assert await two.receive(5, LONG_S) == b"there"
        await two.send(b"back", LONG_S)
        assert await one.receive(4, LONG_S) == b"back"
        with pytest.raises(Unreachable, match=r"No data came over the connection .* within 0.05 s"):
            await one.receive(1, 0.05)
    await carries(host, host, at, deadline_s=LONG_S)
    with listening() as (_, taken):
        with pytest.raises(PreconditionFailed, match="is in use by another process"):
            await host.listen(taken)
        assert taken.port in await host.ports_in_use("127.0.0.1")
    with pytest.raises(Unreachable, match="No connection to"):
        await host.connect(taken, nodelay=True, deadline_s=LONG_S)
    with pytest.raises(PreconditionFailed, match=r"has no address 192\.0\.2\.1"):
        await host.listen(Endpoint("192.0.2.1", 0))


async def test_a_greeting_is_read(host: Host) -> None:
    with listening() as (sock, at):
        asking = asyncio.create_task(host.hear(at, 5, deadline_s=LONG_S))
        with (await asyncio.to_thread(sock.accept))[0] as accepted:
            accepted.sendall(b"NBDMAGIC")
            assert await asking == b"NBDMA"
        with pytest.raises(Unreachable, match="No data came from"):
            await host.hear(at, 5, deadline_s=0.1)


async def test_connections_of_friends_and_strangers_are_told_apart(
    host: Host, tmp_path: Path
) -> None:
    me = identity_of(os.getpid())
    assert me is not None
    with contextlib.ExitStack() as stack:
        sock, at = stack.enter_context(listening())
        friend, late = (
            stack.enter_context(socket.create_connection((at.address, at.port))) for _ in range(2)
        )
        with sock.accept()[0]:
            friends = await host.calls(me, at)
            if friends is None:
                pytest.skip("this user may not look at the sockets of processes")
            assert {Endpoint(*one.getsockname()) for one in (friend, late)} <= friends.ends
            with sock.accept()[0] as accepted:
                await host.widen(me, at, 1 << 20)
                seen = await host.callers(me, at, friends)
                assert seen is not None and len(seen) == 2
                assert all(isinstance(one, Caller) and one.friend for one in seen)
                assert await host.hang_up(me, at, ()) == 0
                assert await host.hang_up(me, at, [seen[0].peer]) == 1
                assert await host.hang_up(me, at) == 1
                assert accepted.recv(1) == b""
    path = SocketFile(tmp_path / "none.sock")
    found = await host.calls(me, path)
    assert found is not None and await host.callers(me, path, found) == ()


async def test_two_beacons_hear_each_other(host: Host) -> None:
    ends = [Endpoint("127.0.0.1", port) for port in udp_ports(2)]
    key = secrets.token_bytes(32)
    one = await host.beacon(ends[0], ends[1], key, 20)
    two = await host.beacon(ends[1], ends[0], key, 20)
    try:
        with pytest.raises(PreconditionFailed, match="needed for heartbeats, is in use"):
            await host.beacon(ends[0], ends[1], key, 20)
        one.meet(two.session)
        two.meet(one.session)
        seen = set[bool | None]()
        for _ in range(500):
            seen |= {one.beat()}
            two.beat()
            if True in seen:
                break
            await asyncio.sleep(0.02)
        assert True in seen and one.delay_s is not None
        two.close()
        await until(lambda: one.beat() is False and one.refused > 0)
    finally:
        one.close()
        two.close()
    again = await host.beacon(ends[0], ends[1], key, 20)
    again.close()


def udp_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            sock.bind(("127.0.0.1", 0))
            found.append(int(sock.getsockname()[1]))
        return found


async def test_deliveries_show_the_connections(host: Host) -> None:
    with contextlib.ExitStack() as stack:
        sock, at = stack.enter_context(listening())
        one = stack.enter_context(socket.create_connection((at.address, at.port)))
        with sock.accept()[0]:
            watch = await host.deliveries(at.address, at.address, [at.port])
            if watch is None:
                pytest.skip("this kernel does not report connections")
            try:
                await until(watch.find)
                before = watch.find()
                assert {found.port for found in before} == {at.port}
                one.sendall(b"x" * 1000)
                heard = max(found.heard for found in before)
                await until(lambda: any(found.heard > heard for found in watch.look()))
            finally:
                watch.close()


# -- taps and packet rules


async def test_a_tap_that_is_missing(host: Host) -> None:
    assert await host.tap_is_up("none0") is None
    with pytest.raises(PreconditionFailed, match="none0"):
        await host.check_tap("none0")
    with pytest.raises(PreconditionFailed, match="none0"):
        await host.tap("none0", up=False)
    order = TapOrder("none1", "none0", "a test", vnet_header=True)
    for asked in (host.tap_room, host.make_tap):
        with pytest.raises(PreconditionFailed, match="There is no bridge none0 on"):
            await asked(order)
    assert await host.remove_tap("none1", "a test") is True
    with pytest.raises(PreconditionFailed, match=r"none0|No right"):
        async with host.first_packet("none0"):
            raise AssertionError("a device that is not there was watched")


@needs_root
async def test_the_first_connection_is_seen(host: Host) -> None:
    with listening() as (_, at):
        async with host.first_connection("lo") as first, host.first_packet("lo") as packet:
            with socket.create_connection((at.address, at.port)):
                await asyncio.wait_for(first.wait(), LONG_S)
                await asyncio.wait_for(packet.wait(), LONG_S)
                await asyncio.wait_for(first.wait(), LONG_S)


@needs_root
async def test_ports_are_guarded_and_unguarded(host: Host) -> None:
    name = f"coloctl-test-{os.getpid()}"
    port = free_port()
    guarded = GuardedPorts(name, "127.0.0.1", "127.0.0.2", tcp=[port], udp=[])
    try:
        await host.guard(guarded)
    except PreconditionFailed as error:
        pytest.skip(error.message)
    await host.guard(guarded)
    await host.unguard(name)
    await host.unguard(name)


# -- files


async def test_files_are_written_and_read(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    assert await host.read_file(file, 10) is None
    with pytest.raises(PreconditionFailed):
        await host.write_durably(file, b"\0whole\xff")
    await host.write_durably(file, b"\0whole\xff", make_folder=True)
    assert await host.read_file(file, 10) == b"\0whole\xff" == file.read_bytes()
    with pytest.raises(PreconditionFailed, match="file"):
        await host.read_file(file, 3)
    assert await host.exchange(file, b"another", b"new") is False
    assert await host.exchange(file, b"\0whole\xff", b"new") is True
    assert await host.exchange(tmp_path / "claim", None, b"first") is True
    assert await host.exchange(tmp_path / "claim", None, b"second") is False
    await host.put(tmp_path / "some" / "plugin.so", b"\x7fELF", 0o700)
    assert stat.S_IMODE((tmp_path / "some" / "plugin.so").stat().st_mode) == 0o700


async def test_a_disk_is_identified(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    absent = await host.identify(image)
    assert not absent.present and absent.key == f"file:{image}"
    image.write_bytes(bytes(1000))
    there = await host.identify(image)
    assert there.present and there.mark and there.rest.startswith("1000 ")
    assert await host.image_user(image) is None
    assert await host.still_held(images=[image], taps=["none0"]) == ()
    assert await host.tap_held("none0") in {True, False}


async def test_logs_are_read_in_pieces(host: Host, tmp_path: Path) -> None:
    log = tmp_path / "qemu.log"
    assert await host.read_tail(log) == ""
    assert (await host.read_log(log, 0, 100)).data == b""
    log.write_bytes(b"one\ntwo\nthree\n")
    assert await host.read_tail(log, 2) == "two\nthree"
    piece = await host.read_log(log, 4, 3)
    assert (piece.begin, piece.data, piece.size) == (4, b"two", 14)
    piece = await host.read_log(log, 99, 100)
    assert (piece.begin, piece.data) == (0, log.read_bytes())
    await host.keep_bounded([log, tmp_path / "none.log"])
    assert log.read_bytes() == b"one\ntwo\nthree\n"


async def test_programs_and_folders(host: Host, tmp_path: Path) -> None:
    shell = await host.which("sh")
    assert shell is not None and await host.usable(shell, os.X_OK) == ""
    assert await host.which("no-such-program") is None
    assert await host.usable(tmp_path / "none", os.R_OK) == "No such file or directory"
    root = await host.account("root")
    assert root is not None and (root.name, root.uid, root.gid) == ("root", 0, 0)
    assert await host.account("no-such-user") is None
    before = await host.fingerprint(shell)
    assert before and before == await host.fingerprint(shell)
    await host.make_private(tmp_path / "web" / "b")
    assert stat.S_IMODE((tmp_path / "web" / "b").stat().st_mode) == 0o700
    for name in ("qemu.log", "qmp.sock"):
        (tmp_path / "web" / "b" / name).write_text("")
    await host.sweep(tmp_path / "web" / "b")
    assert [one.name for one in (tmp_path / "web" / "b").iterdir()] == ["qemu.log"]
    await host.sweep(tmp_path / "web" / "b", logs=True)
    assert not (tmp_path / "web" / "b").exists()
    (tmp_path / "web").chmod(0o777)
    with pytest.raises(PreconditionFailed, match="can be written by others"):
        await host.make_private(tmp_path / "web")
    async with host.workspace("conformance-") as folder:
        assert folder.name.startswith("conformance-")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "draft").write_text("")
    await until(lambda: not folder.exists())


# -- programs


async def test_a_program_runs_to_its_end(host: Host, tmp_path: Path) -> None:
    done = await host.run(["cat"], deadline_s=LONG_S, stdin=b"as it is")
    assert (done.code, done.stdout, done.stderr) == (0, "as it is", "")
    done = await host.run(["sh", "-c", "echo no >&2; exit 3"], deadline_s=LONG_S)
    assert (done.code, done.stdout, done.stderr) == (3, "", "no\n")
    with pytest.raises(PreconditionFailed, match="/nowhere/tool could not be started"):
        await host.run(["/nowhere/tool"], deadline_s=LONG_S)
    note = tmp_path / "pid"
    slow = ["sh", "-c", f"echo $$ > {note}; sleep 1000"]
    with pytest.raises(DeadlineMissed, match=r"did not end within 0\.3 s and was killed"):
        await host.run(slow, deadline_s=0.3)
    await until(lambda: not runs(int(note.read_text())))


async def test_a_conversation(host: Host, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    text = f"echo $$ > {note}; while read line; do echo $line again; test $line = end && break; "
    async with host.converse(["sh", "-c", f"{text} done; echo over >&2"]) as talk:
        await talk.say("once", LONG_S)
        assert await talk.hear(LONG_S) == "once again"
        with pytest.raises(DeadlineMissed):
            await talk.hear(0.05)
        await talk.say("end", LONG_S)
        assert await talk.hear(LONG_S) == "end again"
        assert await talk.hear(LONG_S) is None
        assert talk.last_words() == "over\n"
    async with host.converse(["sh", "-c", f"echo $$ > {note}; echo up; sleep 1000"]) as talk:
        assert await talk.hear(LONG_S) == "up"
        pid = int(note.read_text())
    await until(lambda: not runs(pid))
    with pytest.raises(PreconditionFailed, match="/nowhere/tool could not be started"):
        async with host.converse(["/nowhere/tool"]):
            raise AssertionError("a program that is not there was started")
