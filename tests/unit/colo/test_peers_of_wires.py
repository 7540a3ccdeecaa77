"""Each wire of a pair ends in its other QEMU: what two looks at two kernels can show in between."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from support.fakes import FakeHost, fake_vm, make_spec

from coloctl.clock import Deadline
from coloctl.colo import peers
from coloctl.errors import ReplicationError
from coloctl.host.access import Caller
from coloctl.host.identity import Identity
from coloctl.host.records import Friends
from coloctl.model.strangers import Stranger
from coloctl.model.wires import Address, Endpoint, Wires

pytestmark = pytest.mark.unit

wires_of = peers.wires_of
WIRES = Wires(make_spec(), Path("/run/coloctl/web"))
OURS, THEIRS = Endpoint("10.66.0.1", 40001), Endpoint("10.66.0.9", 40002)


class Kernel(FakeHost):
    """Shows connections by their ends; each look of the client's host takes one of ``looks``."""

    def __init__(self, looks: Sequence[Friends], connected: Sequence[Endpoint]) -> None:
        super().__init__("a", [])
        self.looks, self.connected = list(looks), list(connected)
        self.cut: list[Endpoint] = []

    async def calls(self, client: Identity, at: Address) -> Friends:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    async def callers(self, server: Identity, at: Address, friends: Friends) -> Sequence[Caller]:
        return [Caller(str(one), friend=one in friends.ends) for one in self.connected]

    async def hang_up(
        self, server: Identity, at: Address, only: Collection[str] | None = None
    ) -> int:
        before = len(self.connected)
        cut = [one for one in self.connected if only is None or str(one) in only]
        self.connected = [one for one in self.connected if one not in cut]
        self.cut += cut
        return before - len(self.connected)


async def required(host: Kernel) -> list[Stranger]:
    away: list[Stranger] = []
    async with fake_vm("a", []) as primary, fake_vm("b", []) as secondary:
        primary.host = secondary.host = host
        await peers.require(WIRES, primary, secondary, Deadline(10), away.append)
    return away


async def test_a_client_that_connects_between_two_looks_is_no_stranger() -> None:
    early, late = Friends(None), Friends(None, frozenset({OURS}))
    host = Kernel([early, late], [OURS])
    assert await required(host) == []
    assert host.connected == [OURS]


async def test_a_stranger_beside_the_client_is_cut_off_and_reported() -> None:
    host = Kernel([Friends(None, frozenset({OURS}))], [OURS, THEIRS])
    (away,) = await required(host)
    assert str(THEIRS) in str(away)
    assert host.connected == [OURS]


async def test_a_client_that_connects_while_qemu_is_asked_is_not_taken_for_one_that_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut off, it would never notice: the secondary's QEMU reads nothing from that connection."""
    host = Kernel([Friends(None), Friends(None, frozenset({OURS}))], [])

    async def connected(wire: peers.ExpectedConnection) -> bool:
        if wire.chardev and not host.connected:
            host.connected = [OURS]
        return True

    monkeypatch.setattr(peers, "_connected", connected)
    monkeypatch.setattr(peers, "wires_of", lambda *all: list(wires_of(*all))[2:])
    assert await required(host) == []
    assert (host.connected, host.cut) == ([OURS], [])


async def test_a_client_that_connects_while_a_stranger_leaves_is_not_taken_for_it() -> None:
    class Changing(Kernel):
        """The stranger has gone and the client has come when the server is asked again."""

        async def callers(
            self, server: Identity, at: Address, friends: Friends
        ) -> Sequence[Caller]:
            if not self.looks[1:]:
                self.connected = [OURS]
            return await super().callers(server, at, friends)

    none = Friends(None)
    host = Changing([none, none, Friends(None, frozenset({OURS}))], [THEIRS])
    assert await required(host) == []
    assert (host.connected, host.cut) == ([OURS], [])


async def test_a_wire_to_which_nothing_connects_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "CONNECT_WAIT_S", 0.01)
    with pytest.raises(ReplicationError, match="nothing is connected to it"):
        await required(Kernel([Friends(None)], []))
