"""Namespaces as hosts: everything happens inside them, and the caller never moves."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from pyroute2 import IPRoute

from coloctl.errors import PreconditionFailed, Unreachable
from coloctl.ha.link import RESENT, Silences
from coloctl.host import Endpoint, Host, NetnsHost, Process, channel_pair, open_host, tail
from coloctl.host.delivery import TcpConnection
from coloctl.host.launch import discard
from coloctl.lab import netns
from coloctl.lab.link import LinkEnd
from coloctl.model.launch import Launch

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

T = TypeVar("T")

#: A QEMU as far as its tap is concerned: opens it, says so, sends each line (hex) as a frame.
TAP_OWNER = """
import fcntl, struct, sys, os
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x1002))
print("attached", flush=True)
fifo = open(sys.argv[2])
for line in fifo:
    try:
        os.write(fd, bytes.fromhex(line))
        print("sent", flush=True)
    except OSError as error:
        print("refused", error.errno, flush=True)
"""


@dataclass(frozen=True)
class Pair:
    """Two namespaces: a wire from 10.99.0.1 in ``a`` to 10.99.0.2 in ``b``, a tap in ``a``."""

    a: str
    b: str


def remove(namespace: str) -> None:
    with netns.exclusive():
        netns.remove(namespace)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    names = Pair(f"t-{os.getpid()}-a", f"t-{os.getpid()}-b")
    with ExitStack() as undo:
        for name in (names.a, names.b):
            with netns.exclusive():
                netns.create(name, lambda: None)
            undo.callback(remove, name)
        with IPRoute(netns=names.a) as a, IPRoute(netns=names.b) as b:
            peer = {"ifname": "wire", "net_ns_fd": names.b}
            a.link("add", ifname="wire", kind="veth", peer=peer)
            a.link("add", ifname="tap-a", kind="tuntap", mode="tap")
            for end, address in ((a, "10.99.0.1"), (b, "10.99.0.2")):
                wire = end.link_lookup(ifname="wire")[0]
                end.addr("add", index=wire, address=address, prefixlen=24)
                end.link("set", index=wire, state="up")
                end.link("set", index=end.link_lookup(ifname="lo")[0], state="up")
        yield names


async def ask(namespace: str, device: str, act: Callable[[IPRoute, int], T]) -> T:
    """What ``act`` says of the device; netlink has its own event loop, so a thread holds it."""

    def asked() -> T:
        with IPRoute(netns=namespace) as ip:
            return act(ip, ip.link_lookup(ifname=device)[0])

    return await asyncio.to_thread(asked)


async def is_up(namespace: str, device: str) -> bool:
    return bool(await ask(namespace, device, lambda ip, i: ip.get_links(i)[0]["flags"] & 1))


async def set_link(namespace: str, device: str, state: str) -> None:
    await ask(namespace, device, lambda ip, i: ip.link("set", index=i, state=state))


async def neighbour(namespace: str, device: str, act: str, address: str) -> None:
    """An answer that nobody gives: frames for ``address`` go to a card that is not there."""
    entry = {"dst": address, "lladdr": "02:00:00:00:00:99", "state": "permanent"}
    await ask(namespace, device, lambda ip, i: ip.neigh(act, ifindex=i, **entry))


async def until(true: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def both(pair: Pair) -> AsyncIterator[tuple[NetnsHost, NetnsHost]]:
    async with NetnsHost(pair.a) as a, NetnsHost(pair.b) as b:
        yield a, b


async def line_count(path: Path, lines: int) -> list[str]:
    await until(lambda: len(tail(path, lines + 1).splitlines()) >= lines)
    return path.read_text().splitlines()


class TapOwner:
    """A program that holds the tap, as QEMU does."""

    def __init__(self, process: Process, log: Path, fifo: Path) -> None:
        self.process = process
        self.log = log
        self._fifo = fifo
        self._lines = 1

    async def send(self, frame: bytes) -> str:
        """What became of the frame: ``sent`` or ``refused ERRNO``."""
        with self._fifo.open("a") as fifo:
            print(frame.hex(), file=fifo)
        self._lines += 1
        return (await line_count(self.log, self._lines))[-1]


@asynccontextmanager
async def tap_owner(host: Host, tap: str, tmp_path: Path) -> AsyncIterator[TapOwner]:
    log, fifo = tmp_path / "owner.log", tmp_path / "fifo"
    os.mkfifo(fifo)
    keep_open = os.open(fifo, os.O_RDWR)
    process = await host.launch(
        Launch((sys.executable, "-c", TAP_OWNER, tap, str(fifo))), stderr=log
    )
    try:
        assert await line_count(log, 1) == ["attached"]
        yield TapOwner(process, log, fifo)
    finally:
        discard(process)  # type: ignore[arg-type]
        os.close(keep_open)


def ipv4(protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    length = 20 + len(options)
    header = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x40 | length // 4, 0, length + len(payload), 1, fragment, 64, protocol, 0),
        *(socket.inet_aton("10.77.0.10"), socket.inet_aton("10.77.0.2")),
    )
    return ethernet(0x0800, header + options + payload)


def ipv6(next_header: int, payload: bytes) -> bytes:
    header = struct.pack("!IHBB", 6 << 28, len(payload), next_header, 64) + bytes(32)
    return ethernet(0x86DD, header + payload)


def ethernet(kind: int, payload: bytes) -> bytes:
    return b"\xff" * 6 + bytes.fromhex("525400123456") + struct.pack("!H", kind) + payload


def tcp(flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", 40000, 6379, 1, 0, 5 << 4, flags, 1000, 0, 0)


SYN, ACK, PSH = 0x02, 0x10, 0x08


async def test_programs_run_inside_and_the_caller_stays_outside(pair: Pair, tmp_path: Path) -> None:
    outside = Path("/proc/self/ns/net").readlink()
    inside = Path(f"/run/netns/{pair.a}").stat().st_ino
    async with open_host(f"netns:{pair.a}") as host:
        assert host.name == f"netns:{pair.a}"
        done = await host.run(["readlink", "/proc/self/ns/net"], deadline_s=10)
        assert done.stdout.strip() == f"net:[{inside}]"
        async with host.converse(["readlink", "/proc/self/ns/net"]) as program:
            assert await program.hear(10) == f"net:[{inside}]"
        process = await host.launch(Launch(("sleep", "300")), stderr=tmp_path / "log")
        try:
            assert Path(f"/proc/{process.identity.pid}/ns/net").stat().st_ino == inside
            with pytest.raises(PreconditionFailed):
                await host.check_tap("lo")
            assert Path("/proc/self/ns/net").readlink() == outside
            pool_thread = Path("/proc/thread-self/ns/net")
            assert await asyncio.to_thread(pool_thread.readlink) == outside
            assert (await process.kill(5)).how == "sigkill"
        finally:
            discard(process)


async def test_closed_host_leaves_no_thread_and_no_descriptor(pair: Pair) -> None:
    async def use() -> None:
        async with open_host(f"netns:{pair.a}") as host:
            await host.ports_in_use("0.0.0.0")
            await host.tap("tap-a", up=True)
            async with host.first_connection("tap-a"):
                pass
            await host.check_tap("tap-a")
            await host.run(["true"], deadline_s=10)

    def open_files() -> list[Path]:
        return sorted(Path("/proc/self/fd").iterdir())

    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("netns:")]

    await use()
    before = open_files()
    for _ in range(3):
        await use()
    assert not threads()
    assert open_files() == before


async def test_channel_crosses_two_namespaces_with_nodelay_on_both_ends(pair: Pair) -> None:
    async with both(pair) as (a, b):
        near, far = await channel_pair(a, b, Endpoint("10.99.0.1", 0), nodelay=True, deadline_s=5)
        with near, far:
            for end in (near, far):
                assert end.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert os.get_blocking(end.fileno())
            assert near.socket.getsockname()[0] == "10.99.0.1"
            assert far.socket.getsockname()[0] == "10.99.0.2"
            os.write(far.fileno(), b"x")
            assert os.read(near.fileno(), 1) == b"x"


async def test_channel_over_a_cut_wire_is_unreachable_in_time(pair: Pair) -> None:
    async with both(pair) as (a, b):

        async def connect(deadline_s: float) -> None:
            for end in await channel_pair(
                a, b, Endpoint("10.99.0.1", 0), nodelay=True, deadline_s=deadline_s
            ):
                end.close()

        await set_link(pair.b, "wire", "down")
        try:
            with pytest.raises(Unreachable, match="Network is unreachable"):
                await connect(0.3)
        finally:
            await set_link(pair.b, "wire", "up")
        await neighbour(pair.a, "wire", "replace", "10.99.0.2")
        try:
            with pytest.raises(Unreachable, match=r"within 0\.3 s"):
                await connect(0.3)
        finally:
            await neighbour(pair.a, "wire", "del", "10.99.0.2")
        await connect(5)


async def test_the_kernel_tells_a_cut_connection_from_a_peer_that_does_not_read(pair: Pair) -> None:
    listen, at = Endpoint("10.99.0.2", 9199), "10.99.0.1"

    async with both(pair) as (host_a, host_b):
        there, here = await channel_pair(host_b, host_a, listen, nodelay=True, deadline_s=5)
        known = await host_a.deliveries(at, listen.address, {listen.port})
        assert known is not None
        end = LinkEnd(pair.b, "wire")
        with there, here, closing(known):

            def sent() -> TcpConnection:
                (one,) = known.find()
                return one

            here.socket.sendall(b"well")
            await until(lambda: not sent().unacked)
            silences = Silences()
            await asyncio.to_thread(end.drop)
            try:
                here.socket.sendall(b"lost")
                await until(lambda: silences.see(known.look(), 5.0)[0] > 0)
                assert sent().resent >= RESENT
            finally:
                await asyncio.to_thread(end.deliver)
            await until(lambda: not sent().unacked)
            assert silences.see(known.look(), 5.0) == (0.0, 0)
            here.socket.setblocking(False)
            with pytest.raises(BlockingIOError):  # until the peer has no room for more
                while True:
                    here.socket.send(bytes(65536))
                    await asyncio.sleep(0.001)
            for _ in range(150):  # longer than it took to see the cut
                assert silences.see(known.look(), 5.0) == (0.0, 0)
                await asyncio.sleep(0.005)


async def test_beacons_notice_a_cut_in_either_direction_and_its_healing(pair: Pair) -> None:
    at = {"a": Endpoint("10.99.0.1", 9197), "b": Endpoint("10.99.0.2", 9197)}
    key = bytes(32)

    async with both(pair) as (host_a, host_b):
        a = await host_a.beacon(at["a"], at["b"], key, 20)
        b = await host_b.beacon(at["b"], at["a"], key, 20)
        with closing(a), closing(b):
            a.meet(b.session)
            b.meet(a.session)

            async def beats(times: int) -> list[tuple[bool, bool]]:
                """Each way from one beat to the next a datagram has had time to arrive."""
                answers = []
                for _ in range(times):
                    await asyncio.sleep(0.02)
                    answers.append((a.beat(), b.beat()))
                return answers

            async def whole() -> None:
                async with asyncio.timeout(60):
                    while (await beats(1))[0] != (True, True):
                        pass

            await whole()
            for end in (LinkEnd(pair.a, "wire"), LinkEnd(pair.b, "wire")):
                await asyncio.to_thread(end.drop)
                await beats(2)  # what was on its way
                assert await beats(5) == [(False, False)] * 5
                await asyncio.to_thread(end.deliver)
                await whole()
            await set_link(pair.a, "wire", "down")
            await beats(2)
            assert await beats(5) == [(False, False)] * 5
            await set_link(pair.a, "wire", "up")
            await whole()


async def test_ports_are_those_of_the_namespace(pair: Pair) -> None:
    async with both(pair) as (a, b):
        with await a.make_socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("10.99.0.1", 9123))
            listener.listen()
            assert await a.ports_in_use("10.99.0.1") == {9123}
            assert await a.ports_in_use("127.0.0.1") == set()
            assert await b.ports_in_use("0.0.0.0") == set()
            with pytest.raises(PreconditionFailed, match=r"10\.99\.0\.1:9123 on netns:"):
                await channel_pair(a, b, Endpoint("10.99.0.1", 9123), nodelay=True, deadline_s=5)


async def test_tap_down_is_a_fence(pair: Pair, tmp_path: Path) -> None:
    async with open_host(f"netns:{pair.a}") as host:
        assert await host.tap_is_up("tap-a") is not None
        async with tap_owner(host, "tap-a", tmp_path) as owner:
            frame = ipv4(6, tcp(ACK))
            await host.tap("tap-a", up=True)
            assert await is_up(pair.a, "tap-a")
            assert await owner.send(frame) == "sent"
            await host.tap("tap-a", up=False)
            assert not await is_up(pair.a, "tap-a")
            assert (await owner.send(frame)).startswith("refused")
            took = []
            for _ in range(20):
                await host.tap("tap-a", up=True)
                start = time.perf_counter()
                await host.tap("tap-a", up=False)
                took.append((time.perf_counter() - start) * 1000)
            print(f"tap down: p50 {statistics.median(took):.2f} ms, max {max(took):.2f} ms")


async def test_check_tap_says_who_is_in_the_way(pair: Pair, tmp_path: Path) -> None:
    async with both(pair) as (a, b):
        await a.check_tap("tap-a")
        with pytest.raises(PreconditionFailed, match="no tap tap-a on netns:"):
            await b.check_tap("tap-a")
        assert await b.tap_is_up("tap-a") is None
        with pytest.raises(PreconditionFailed, match="is not a tap"):
            await a.check_tap("wire")
        async with tap_owner(a, "tap-a", tmp_path) as owner:
            with pytest.raises(PreconditionFailed, match="in use by another process"):
                await a.check_tap("tap-a")
            await owner.process.kill(5)
        await a.check_tap("tap-a")


QUIET = {
    "segment without SYN": ipv4(6, tcp(ACK | PSH)),
    "UDP whose bytes look like SYN": ipv4(17, tcp(SYN)),
    "later fragment": ipv4(6, tcp(SYN), fragment=100),
    "ARP": ethernet(0x0806, bytes(46)),
    "IPv6 segment without SYN": ipv6(6, tcp(ACK)),
    "IPv6 UDP": ipv6(17, tcp(SYN)),
    "runt": ethernet(0x0800, b"\x45"),
}
LOUD = {
    "SYN": ipv4(6, tcp(SYN)),
    "SYN and ACK": ipv4(6, tcp(SYN | ACK)),
    "SYN behind IP options": ipv4(6, tcp(SYN), options=b"\x01" * 8),
    "SYN over IPv6": ipv6(6, tcp(SYN)),
}


@pytest.mark.parametrize("frame", LOUD.values(), ids=LOUD.keys())
async def test_first_connection_out_of_the_guest(pair: Pair, tmp_path: Path, frame: bytes) -> None:
    async with open_host(f"netns:{pair.a}") as host:
        await host.tap("tap-a", up=True)
        async with (
            tap_owner(host, "tap-a", tmp_path) as owner,
            host.first_connection("tap-a") as first,
        ):
            for quiet in QUIET.values():
                assert await owner.send(quiet) == "sent"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(first.wait(), 0.05)
            assert await owner.send(frame) == "sent"
            await asyncio.wait_for(first.wait(), 60)
            await asyncio.wait_for(first.wait(), 60)


async def test_first_connection_into_the_guest_after_the_tap_was_down(
    pair: Pair, tmp_path: Path
) -> None:
    net = {"address": "10.98.0.1", "prefixlen": 24}

    async with NetnsHost(pair.a) as host:
        await host.tap("tap-a", up=False)
        await ask(pair.a, "tap-a", lambda ip, i: ip.addr("add", index=i, **net))
        async with (
            tap_owner(host, "tap-a", tmp_path) as owner,
            host.first_connection("tap-a") as first,
        ):
            waiting = asyncio.create_task(first.wait())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await host.tap("tap-a", up=True)
            await neighbour(pair.a, "tap-a", "replace", "10.98.0.2")
            with await host.make_socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.connect_ex(("10.98.0.2", 6379))
                await asyncio.sleep(0.05)
                assert not waiting.done(), "the client's SYN proves nothing of the guest"
                assert await owner.send(LOUD["SYN and ACK"]) == "sent"
                await asyncio.wait_for(waiting, 60)
        await ask(pair.a, "tap-a", lambda ip, i: ip.addr("del", index=i, **net))


async def test_first_connection_over_a_tap_that_goes_away(pair: Pair) -> None:
    tap = {"ifname": "tap-gone", "kind": "tuntap", "mode": "tap"}

    async with NetnsHost(pair.a) as host:
        await ask(pair.a, "lo", lambda ip, _: ip.link("add", **tap))
        await host.tap("tap-gone", up=True)
        async with host.first_connection("tap-gone") as first:
            waiting = asyncio.create_task(first.wait())
            await asyncio.sleep(0)
            await ask(pair.a, "tap-gone", lambda ip, i: ip.link("del", index=i))
            with pytest.raises(Unreachable, match="tap-gone"):
                await asyncio.wait_for(waiting, 60)
        with pytest.raises(PreconditionFailed, match="no tap tap-gone"):
            async with host.first_connection("tap-gone"):
                pass


def test_file_that_is_no_namespace() -> None:
    left_over = Path(f"/run/netns/t-{os.getpid()}-file")
    left_over.parent.mkdir(exist_ok=True)
    left_over.touch()
    try:
        with pytest.raises(PreconditionFailed, match="left-over file"):
            NetnsHost(left_over.name)
    finally:
        left_over.unlink()
