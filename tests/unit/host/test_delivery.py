"""What this kernel says of connections of its own, on the loopback device."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from coloctl.host.delivery import TcpDeliveries
from coloctl.host.local import LocalHost

pytestmark = pytest.mark.unit


@contextmanager
def connected(address: str = "127.0.0.1") -> Iterator[tuple[int, socket.socket, socket.socket]]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as server,
        socket.create_connection(server.getsockname()[:2]) as near,
    ):
        far, _ = server.accept()
        with far:
            yield server.getsockname()[1], near, far


@contextmanager
def asking(address: str, port: int) -> Iterator[TcpDeliveries]:
    async def ask() -> TcpDeliveries | None:
        async with LocalHost() as host:
            return await host.deliveries(address, address, {port})

    known = asyncio.run(ask())
    assert known is not None
    with closing(known):
        yield known


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_both_ends_of_a_connection_are_found_and_looked_at_until_they_close(address: str) -> None:
    with connected(address) as (port, near, far), asking(address, port) as known:
        before = {one.which: one.heard for one in known.find()}
        assert len(before) == 2
        for end in (near, far):
            end.sendall(b"well")
        for one in known.look():
            assert (one.port, one.resent) == (port, 0)
            assert one.heard > before[one.which]
        near.close()
        assert known.look() == ()
        assert known.find() == ()


def test_connections_of_others_are_not_its_business() -> None:
    with connected() as (port, _, _), asking("127.0.0.1", port + 1) as known:
        assert known.find() == ()
    with connected() as (port, _, _), asking("127.0.0.2", port) as known:
        assert known.find() == ()


def test_a_kernel_that_does_not_tell_knows_of_no_connection() -> None:
    with connected() as (port, _, _):
        wrong = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        wrong.setblocking(False)
        with closing(TcpDeliveries(wrong, "127.0.0.1", "127.0.0.1", {port})) as known:
            assert not known.tells()
            assert known.find() == known.look() == ()
