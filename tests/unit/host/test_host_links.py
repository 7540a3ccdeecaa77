"""A road between hosts is tried: what that proves, what is said when it fails; nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from coloctl.clock import Deadline
from coloctl.errors import PreconditionFailed, Unreachable
from coloctl.host import Endpoint, LocalHost, carries
from coloctl.host.channel import both_ways

pytestmark = pytest.mark.unit

GREETING = b"NBDMAGICIHAVEOPT\x00\x03"


@contextlib.contextmanager
def listener() -> Iterator[tuple[socket.socket, Endpoint]]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock, Endpoint(*sock.getsockname())


async def test_a_road_that_carries_leaves_its_port_free() -> None:
    with listener() as (_, at):
        pass
    async with LocalHost() as one, LocalHost() as two:
        for _ in range(3):  # at once: nothing of the last try is in the way
            await carries(one, two, at, deadline_s=5)
        assert at.port not in await one.ports_in_use(at.address)


async def test_a_port_that_somebody_has_is_no_matter_of_the_link() -> None:
    async with LocalHost() as host:
        with listener() as (_, at), pytest.raises(PreconditionFailed, match="in use"):
            await carries(host, host, at, deadline_s=5)


async def test_an_end_that_is_closed_carries_nothing() -> None:
    async with LocalHost() as host:
        one, two = await host.unix_channels()
    with one:
        two.close()
        with pytest.raises(Unreachable, match="unix pair"):
            await both_ways(one, two, Deadline(5))


async def test_a_channel_receives_what_was_sent_and_the_end() -> None:
    async with LocalHost() as host:
        one, two = await host.unix_channels()
    with one:
        with two:
            with pytest.raises(Unreachable, match=r"first end within 0\.01 s"):
                await one.receive(1, 0.01)
            await two.send(b"x" * 10, 5)
            assert await one.receive(4, 5) == b"xxxx"
        assert await one.receive(100, 5) == b"x" * 6
        assert os.get_blocking(one.fileno())


@pytest.mark.parametrize("said", [GREETING, GREETING[:5], b""])
async def test_a_server_is_heard_as_far_as_it_speaks(said: bytes) -> None:
    async with LocalHost() as host:
        with listener() as (sock, at):
            heard = asyncio.create_task(host.hear(at, len(GREETING), deadline_s=5))
            sock.setblocking(False)
            taken, _ = await asyncio.get_running_loop().sock_accept(sock)
            with taken:
                taken.sendall(said)
            assert await heard == said


async def test_a_server_that_stays_silent_is_named() -> None:
    async with LocalHost() as host:
        with listener() as (_, at), pytest.raises(Unreachable, match="No data came") as no:
            await host.hear(at, 18, deadline_s=0.05)
        assert str(at) in no.value.message


async def test_a_port_where_nobody_listens_is_named() -> None:
    with listener() as (_, at):
        pass
    async with LocalHost() as host:
        with pytest.raises(Unreachable, match=f"No connection to {at}: "):
            await host.hear(at, 18, deadline_s=5)
