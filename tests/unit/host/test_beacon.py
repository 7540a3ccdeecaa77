"""Beacons on loopback addresses: what is heard, and what is not."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing

import pytest
from support.smallpair import own_net

from coloctl.errors import PreconditionFailed
from coloctl.host import Endpoint, open_host
from coloctl.host.beacon import unix_beacons
from coloctl.host.local import LocalHost
from coloctl.host.watching import Beacon

pytestmark = pytest.mark.unit

#: Addresses that no other run has, on a port that no pair of these tests uses otherwise.
PORT = 23097
NET = own_net()
KEY = bytes(range(32))
A, B = Endpoint(f"{NET}.251", PORT), Endpoint(f"{NET}.252", PORT)


@asynccontextmanager
async def beacons(host: LocalHost) -> AsyncIterator[tuple[Beacon, Beacon]]:
    with (
        closing(await host.beacon(A, B, KEY, 20)) as a,
        closing(await host.beacon(B, A, KEY, 20)) as b,
    ):
        a.meet(b.session)
        b.meet(a.session)
        yield a, b


def play(story: Callable[[LocalHost], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with open_host("local") as host:
            await story(host)

    asyncio.run(asyncio.wait_for(whole(), 20))


def lively(a: Beacon, b: Beacon) -> bool:
    """Both beat, a few times; whether both found the link whole at the end."""
    for _ in range(4):
        answers = a.beat(), b.beat()
    return all(answers)


def test_both_hear_each_other_at_every_beat() -> None:
    async def story(host: LocalHost) -> None:
        async with beacons(host) as (a, b):
            assert not a.beat(), "nobody can have been heard yet"
            assert lively(a, b)
            assert a.delay_s is not None
            assert 0 <= a.delay_s < 20

    play(story)


def test_one_whose_datagrams_get_lost_knows_it_although_it_hears() -> None:
    async def story(host: LocalHost) -> None:
        nowhere = Endpoint(f"{NET}.250", PORT)
        with (
            closing(await host.beacon(A, nowhere, KEY, 20)) as a,
            closing(await host.beacon(B, A, KEY, 20)) as b,
        ):
            a.meet(b.session)
            b.meet(a.session)
            for _ in range(4):
                assert (a.beat(), b.beat()) == (False, False)

    play(story)


def test_what_an_earlier_supervisor_sent_is_not_heard() -> None:
    async def story(host: LocalHost) -> None:
        async with beacons(host) as (a, b):
            assert lively(a, b)
        # The old b sends on, and nobody else does.
        with (
            closing(await host.beacon(B, A, KEY, 20)) as old,
            closing(await host.beacon(A, B, KEY, 20)) as a,
        ):
            a.meet(b.session)
            for _ in range(4):
                old.beat()
                assert not a.beat()

    play(story)


def test_who_has_not_the_key_is_not_heard() -> None:
    """It has the peer's own address and port, and says what the peer would say."""

    async def story(host: LocalHost) -> None:
        forger = closing(await host.beacon(B, A, bytes(32), 20))
        with forger as b, closing(await host.beacon(A, B, KEY, 20)) as a:
            a.meet(b.session)
            b.meet(a.session)
            for _ in range(4):
                assert (b.beat(), a.beat()) == (False, False)
            assert a.lost == 0

    play(story)


def test_a_flood_from_elsewhere_never_reaches_the_socket() -> None:
    """Between any two beats come more datagrams than the socket has room for."""

    async def story(host: LocalHost) -> None:
        async with beacons(host) as (a, b):
            assert lively(a, b)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder:
                flooder.bind((f"{NET}.250", 0))
                for size in range(10):
                    for _ in range(2000):
                        flooder.sendto(bytes(size * 10), (A.address, A.port))
                    answers = a.beat(), b.beat()
                    assert all(answers), "one beat is enough: nothing was in the way"
            assert (a.lost, b.lost) == (0, 0)

    play(story)


def test_a_flood_under_the_peers_address_and_port_never_fills_the_socket() -> None:
    """Who cannot see what the peer sends does not know its session."""

    async def story(host: LocalHost) -> None:
        with closing(await host.beacon(A, B, KEY, 20)) as a:
            with closing(await host.beacon(B, A, KEY, 20)) as b:
                a.meet(b.session)
                b.meet(a.session)
                assert lively(a, b)
                assert a.beat()  # it has read what b sent last
                session = b.session
            sock = a._sock  # type: ignore[attr-defined]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
                forger.bind((B.address, B.port))
                forger.connect((A.address, A.port))
                for size in range(100):
                    forger.send(bytes(size))
                    forger.send(session[:7] + bytes(73))
                assert not select.select([sock], [], [], 0)[0]
                forger.send(session + bytes(56))
                assert select.select([sock], [], [], 5)[0], "who has seen it gets this far"
                assert not a.beat()

    play(story)


def test_datagrams_that_get_lost_are_counted_by_whom_they_were_for() -> None:
    async def story(host: LocalHost) -> None:
        async with beacons(host) as (a, b):
            assert lively(a, b)
            a.beat()
            for _ in range(5000):  # more than the socket has room for
                b.beat()
            assert (a.lost, b.lost) == (0, 0), "nobody can know yet"
            for _ in range(20):  # it reads some of them at each beat
                a.beat()
            assert lively(a, b)
            assert a.lost > 0
            assert b.lost == 0

    play(story)


def test_both_ends_on_one_host_hear_each_other_without_a_port() -> None:
    one, two = unix_beacons()
    with closing(one), closing(two):
        one.meet(two.session)
        two.meet(one.session)
        assert not one.beat()
        assert lively(one, two)


@pytest.mark.parametrize("ahead_s", [-3600, 0, 3600])
def test_the_delay_is_no_difference_between_the_clocks_of_two_machines(
    monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    """Each end sees its own clock; the peer's began at another moment."""
    monotonic_ns, ahead_ns = time.monotonic_ns, [0]
    base_ns = 7200 * 10**9  # a clock does not begin before 0
    monkeypatch.setattr(time, "monotonic_ns", lambda: base_ns + monotonic_ns() + ahead_ns[0])
    one, two = unix_beacons()
    with closing(one), closing(two):
        one.meet(two.session)
        two.meet(one.session)
        delays_s: list[tuple[float | None, float | None]] = []
        for _ in range(6):
            ahead_ns[0] = 0
            one.beat()
            time.sleep(0.03)  # the other end looks later, and so does this one
            ahead_ns[0] = ahead_s * 10**9
            two.beat()
            time.sleep(0.03)
            delays_s.append((one.delay_s, two.delay_s))
        for of_one in zip(*delays_s, strict=True):
            known = [delay_s for delay_s in of_one if delay_s is not None]
            assert min(known) >= 0
            # A busy machine may hold one of them up, not all.
            assert min(known) < 0.025, "the wait in a socket is no part of it"


@pytest.mark.parametrize("set_s", [-3600, 3600])
def test_a_wall_clock_that_is_set_makes_no_delay(
    monkeypatch: pytest.MonkeyPatch, set_s: int
) -> None:
    time_ns = time.time_ns
    one, two = unix_beacons()
    with closing(one), closing(two):
        one.meet(two.session)
        two.meet(one.session)
        assert lively(one, two)
        monkeypatch.setattr(time, "time_ns", lambda: time_ns() + set_s * 10**9)
        assert lively(one, two)
        for beacon in (one, two):
            assert beacon.delay_s is not None and 0 <= beacon.delay_s < 60


def test_a_peer_that_is_not_there_is_silence_and_its_kernel_answers() -> None:
    async def story(host: LocalHost) -> None:
        async with beacons(host) as (a, b):
            assert lively(a, b)
            assert (a.refused, b.refused) == (0, 0)
            b.close()
            a.beat()
            assert not any(a.beat() for _ in range(5))
            assert a.refused > 0

    play(story)


def test_a_taken_port_is_named() -> None:
    async def story(host: LocalHost) -> None:
        in_use = pytest.raises(PreconditionFailed, match=f"UDP port {A} on local.* in use")
        with closing(await host.beacon(A, B, KEY, 20)), in_use:
            await host.beacon(A, B, KEY, 20)
        with pytest.raises(PreconditionFailed, match="cannot be had"):
            await host.beacon(Endpoint("198.51.100.7", PORT), B, KEY, 20)

    play(story)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets are root's")


def unreachable(quoted: bytes) -> bytes:
    """A "port unreachable" of b's kernel for a datagram of a's, which holds ``quoted``."""
    length = 8 + len(quoted)
    udp = struct.pack("!HHHH", A.port, B.port, length, 0) + quoted
    address = socket.inet_aton
    ip = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + length, 1, 0, 64, socket.IPPROTO_UDP, 0),
        *(address(A.address), address(B.address)),
    )
    body = ip + udp
    words = struct.pack("!BBHI", 3, 3, 0, 0) + body + b"\0" * (len(body) % 2)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHI", 3, 3, ~(total + (total >> 16)) & 0xFFFF, 0) + body


@needs_root
@pytest.mark.parametrize("knows", ["ports", "session", "old datagram"])
def test_a_forged_refusal_is_none(knows: str) -> None:
    """It takes the code of a datagram that was not refused yet."""

    async def story(host: LocalHost) -> None:
        async with beacons(host) as (a, b):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as seen:
                b.close()
                seen.bind((B.address, B.port))  # takes what a sends, so that no kernel refuses it
                seen.settimeout(20)
                a.beat()
                old = seen.recv(200)
            for _ in range(20):  # the port is closed: the kernel refuses newer ones
                a.beat()
                if a.refused:
                    break
                await asyncio.sleep(0.01)
            assert a.refused
            forged = {"ports": bytes(64), "session": old[:8] + bytes(56), "old datagram": old}
            refused = a.refused
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
                held.bind((B.address, B.port))
                while a.beat() or a.refused > refused:  # answers that were on their way
                    refused = a.refused
                with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
                    for _ in range(5):
                        raw.sendto(unreachable(forged[knows]), (A.address, 0))
                        a.beat()
                assert a.refused == refused

    play(story)


@needs_root
def test_a_beat_is_sent_though_a_forged_refusal_came_first() -> None:
    async def story(host: LocalHost) -> None:
        async with beacons(host) as (a, b):
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
                for _ in range(5):
                    raw.sendto(unreachable(bytes(64)), (A.address, 0))
                    assert lively(a, b)
            assert a.refused == 0

    play(story)
