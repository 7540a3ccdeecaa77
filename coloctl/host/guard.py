"""Install packet rules around the ports of one pair on one host: only its peer may use them.

Called by `host.local_access` in the namespace of the calling thread; `colo.guard` chooses the
ports and `host.nft` changes the tables. Installed before a QEMU listens, removed when no process
of the pair runs.

Invariant: a packet to one of the ports passes only from the peer's address or this host's own, and
only by the device on which the kernel expects the peer: who has forged the peer's address on
another network of this machine gets nowhere. Where the kernel routes the peer by a device that has
not the address (addresses on the loopback device, routes of several networks), any device passes. A
packet that this host sends to them passes only from a socket of this user, or of the user as which
its QEMU runs. A pair has one table of
its own, which is removed as a whole, and no other rule is touched.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from coloctl.host import netdevice, nft

# Numbers from linux/netfilter/nf_tables.h.
_META_IIFNAME = 6
_META_SKUID = 10
_META_L4PROTO = 16
_NETWORK_HEADER = 1
_TRANSPORT_HEADER = 2
#: Where source and destination address begin in the header, and how long they are.
_ADDRESSES = {4: (12, 16, 4), 6: (8, 24, 16)}
_IFNAMSIZ = 16
_RECEIVED, _SENT = "received", "sent"


@dataclass(frozen=True)
class GuardedPorts:
    """The guarded ports of one host: those of ``at``, for the host at ``peer``."""

    name: str  #: how the name of the table begins
    at: str
    peer: str
    tcp: Collection[int]
    udp: Collection[int]
    #: A user whose QEMU sends to the TCP ports too, beside this one; None: this one alone.
    user: int | None = None


def table_of(guarded: GuardedPorts, device: str | None) -> str:
    """Name the table: its content is part of its name, so that an equal one can stay."""
    ports = (guarded.at, guarded.peer, sorted(guarded.tcp), sorted(guarded.udp), device)
    said = repr((*ports, os.geteuid(), *([] if guarded.user is None else [guarded.user])))
    return f"{guarded.name}-{hashlib.blake2s(said.encode(), digest_size=4).hexdigest()}"


def install(guarded: GuardedPorts) -> None:
    """Guard the ports for the peer and this user, and remove other tables of that name.

    A table that is there already and complete stays as it is. Raises `OSError` where the kernel has
    no nftables, or gives no right to them; what was there stays then.
    """
    version = ipaddress.ip_address(guarded.at).version
    device = netdevice.arrives_at(guarded.at, guarded.peer)
    family, name = nft.FAMILIES[version], table_of(guarded, device)
    rules = list(_rules(guarded, version, device))
    there = _ours(family, guarded.name)
    if there != {name} or nft.count_rules(family, name) != len(rules):
        chains = ((_RECEIVED, nft.Hook.RECEIVED), (_SENT, nft.Hook.SENT))
        nft.change(family, there, nft.RuleTable(name, chains, rules))
    for other in set(nft.FAMILIES.values()) - {family}:
        nft.change(other, _ours(other, guarded.name))


def remove(name: str) -> None:
    """Remove the rules whose name begins so, if there are any. Raises `OSError`."""
    for family in nft.FAMILIES.values():
        nft.change(family, _ours(family, name))


def _ours(family: int, name: str) -> set[str]:
    """Return the tables whose name begins so."""
    return {table for table in nft.tables(family) if table == name or table.startswith(f"{name}-")}


def _rules(guarded: GuardedPorts, version: int, device: str | None) -> Iterator[nft.Rule]:
    """Yield each rule; all of them drop."""
    expected = [] if device is None else sorted({device, netdevice.LOOPBACK})
    source, destination, length = _ADDRESSES[version]

    def network(offset: int, address: str, *, equal: bool) -> list[bytes]:
        packed = ipaddress.ip_address(address).packed
        return [nft.payload(_NETWORK_HEADER, offset, length), nft.compare(packed, equal=equal)]

    both = [(socket.IPPROTO_TCP, port) for port in sorted(guarded.tcp)]
    both += [(socket.IPPROTO_UDP, port) for port in sorted(guarded.udp)]
    users = [os.geteuid(), *([] if guarded.user is None else [guarded.user])]
    for protocol, port in both:
        to_port = [
            nft.meta(_META_L4PROTO),
            nft.compare(bytes([protocol]), equal=True),
            nft.payload(_TRANSPORT_HEADER, 2, 2),
            nft.compare(struct.pack("!H", port), equal=True),
        ]
        yield nft.Rule(
            _RECEIVED,
            [
                *network(destination, guarded.at, equal=True),
                *to_port,
                *network(source, guarded.peer, equal=False),
                # What this host sends to itself has passed the other chain.
                *network(source, guarded.at, equal=False),
                nft.drop(),
            ],
        )
        if expected:
            yield nft.Rule(
                _RECEIVED,
                [
                    *network(destination, guarded.at, equal=True),
                    *to_port,
                    nft.meta(_META_IIFNAME),
                    *(
                        nft.compare(name.encode().ljust(_IFNAMSIZ, b"\0"), equal=False)
                        for name in expected
                    ),
                    nft.drop(),
                ],
            )
        for address in (guarded.at, guarded.peer):
            yield nft.Rule(
                _SENT,
                [
                    *network(destination, address, equal=True),
                    *to_port,
                    nft.meta(_META_SKUID),
                    # One of another user than each of these; the beacon is this user's alone.
                    *(
                        nft.compare(struct.pack("=I", user), equal=False)
                        for user in (users if protocol == socket.IPPROTO_TCP else users[:1])
                    ),
                    nft.drop(),
                ],
            )
