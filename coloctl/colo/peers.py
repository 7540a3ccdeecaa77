"""Require that each wire of a pair ends in the other QEMU of that pair.

Called by `colo.protect` once the wires are connected, and again before the pair counts as
protected; asks the hosts through `vm` what the kernel shows. A chardev server takes one client,
and any process can be the first. A stranger that came first would hold the slot, the comparison
would receive nothing, and the pair would report that it is protected.

Invariant: a stranger is cut off and reported before `require` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import not_

from coloctl.clock import Deadline
from coloctl.errors import ReplicationError
from coloctl.host.access import Caller
from coloctl.model.strangers import Stranger
from coloctl.model.wires import Address, SocketFile, Wires
from coloctl.qmp import command as qmp
from coloctl.tasks import side_by_side
from coloctl.vm import VM

#: A secondary whose connection was refused tries again after 1 s; room for several tries. Seconds.
CONNECT_WAIT_S = 10.0
#: The questions of three looks, one after the other.
_TRIPS = 6
#: Between two looks, seconds: only the act waits.
AGAIN_S = 0.05

#: The room of a unix socket on the way to the secondary's filters, bytes. QEMU writes to it
#: from its main loop and waits there while it is full, and a unix socket has room for 200 kB by
#: default, which is less than a hundred full frames.
MIRROR_BYTES = 4 << 20

#: Called with each wire from which connections were cut off.
TurnedAway = Callable[[Stranger], None]


@dataclass(frozen=True)
class ExpectedConnection:
    """One wire: the QEMU that listens, the one that has to be connected, and where."""

    name: str
    server: VM
    client: VM
    at: Address
    chardev: str = ""  #: the server's id of it, where it is one


def wires_of(wires: Wires, primary: VM, secondary: VM) -> Iterator[ExpectedConnection]:
    """List the wires between two QEMUs of a pair."""
    yield ExpectedConnection("the disks", secondary, primary, wires.exports(secondary.node))
    for i, nic in enumerate(wires.spec.nics):
        suffix = "" if i == 0 else f"-n{i}"
        mirror, compare = wires.mirror(primary.node, i), wires.compare(primary.node, i)
        yield ExpectedConnection(
            f"what {nic.id} receives", primary, secondary, mirror, f"mirror0{suffix}"
        )
        yield ExpectedConnection(
            f"what {nic.id} sends", primary, secondary, compare, f"compare1{suffix}"
        )


async def require(
    wires: Wires, primary: VM, secondary: VM, deadline: Deadline, turned_away: TurnedAway
) -> None:
    """Wait until every wire ends in the right QEMU and in no other process.

    A stranger is cut off and reported. Raises `ReplicationError`, which names the wire and the
    process that holds it.
    """
    way_s = max(vm.host.reach.trips_s(_TRIPS) for vm in (primary, secondary))
    within = Deadline(deadline.at_most(CONNECT_WAIT_S + way_s))
    await side_by_side(
        *(_require(wire, within, turned_away) for wire in wires_of(wires, primary, secondary))
    )


async def _require(wire: ExpectedConnection, within: Deadline, turned_away: TurnedAway) -> None:
    """Wait until one wire ends in the right QEMU; raises `ReplicationError`."""
    # The connections are the kernel's, and it sends no event when they change.
    why = await within.poll(partial(_wrong, wire, turned_away), AGAIN_S, done=not_)
    if why:
        raise ReplicationError(
            f"The wire for {wire.name} at {wire.at} does not lead to node "
            f"{wire.client.node}'s QEMU: {why}.",
            stage="protect",
            hint=f"see who is connected there, with `{_look(wire.at)}` on that host",
        )
    if isinstance(wire.at, SocketFile) and wire.chardev.startswith("mirror0"):
        await wire.server.host.widen(wire.server.process.identity, wire.at, MIRROR_BYTES)


async def _wrong(wire: ExpectedConnection, turned_away: TurnedAway) -> str:
    """Describe what is wrong with a wire just now, empty: nothing. Cuts off strangers."""
    host, server = wire.server.host, wire.server.process.identity
    callers = await _callers(wire)
    if callers is None:
        return "" if await _connected(wire) else "nothing is connected to it"
    if unknown := _unknown(callers):
        # The client may have connected after its own host was asked: it is no stranger then. So a
        # stranger is one that the server had accepted before the client's host was asked again.
        callers = await _callers(wire) or ()
        strangers = [peer for peer in _unknown(callers) if peer in unknown]
        if not strangers:
            return "" if callers and not _unknown(callers) else "its connections change"
        await host.hang_up(server, wire.at, strangers)
        who = ", ".join(strangers)
        turned_away(Stranger(wire.name, str(wire.at), who))
        return f"{who} was connected to it"
    if callers:
        return ""
    if not wire.chardev or not await _connected(wire):
        return "nothing is connected to it"
    # QEMU does not read from some of its chardevs, so it does not notice that a client has left.
    # The right client may have connected since the callers were listed: its connection stands, and
    # the secondary would never notice that it was cut, for it reads nothing from that one either.
    await host.hang_up(server, wire.at, ())
    return "a client that has left holds it"


async def _callers(wire: ExpectedConnection) -> Sequence[Caller] | None:
    """List the connections to the server, marked by those of its client; None: unknown."""
    friends = await wire.client.host.calls(wire.client.process.identity, wire.at)
    if friends is None:
        return None
    server = wire.server.process.identity
    return await wire.server.host.callers(server, wire.at, friends)


def _unknown(callers: Sequence[Caller]) -> list[str]:
    return [one.peer for one in callers if not one.friend]


async def _connected(wire: ExpectedConnection) -> bool:
    """Return whether QEMU itself reports a connection; of an NBD server it cannot be asked."""
    if not wire.chardev:
        return True
    listed = await wire.server.execute(qmp.query_chardev())
    names = {str(one["label"]): str(one["filename"]) for one in listed}
    return not names.get(wire.chardev, "disconnected:").startswith("disconnected:")


def _look(at: Address) -> str:
    return f"ss -xp src {at}" if isinstance(at, SocketFile) else f"ss -tnp sport = {at.port}"
