"""Install packet rules around the ports of one pair on one host: only its peer may use them.

Called by `host.local_access` in the namespace of the calling thread; `colo.guard` chooses the
ports. Installed before a QEMU listens, removed when no process of the pair runs.

Invariant: a packet to one of the ports passes only from the peer's address or this host's own. A
packet that this host sends to them passes only from a socket of this user. A pair has one table of
its own, which is removed as a whole, and no other rule is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

# Numbers from linux/netfilter/nf_tables.h, linux/netfilter.h and linux/in.h.
_META_SKUID = 10
_META_L4PROTO = 16
_NETWORK_HEADER = 1
_TRANSPORT_HEADER = 2
_EQUAL, _UNEQUAL = 0, 1
_NF_DROP = 0
_NF_ACCEPT = 1
_FAMILIES = {4: 2, 6: 10}
#: Where source and destination address begin in the header, and how long they are.
_ADDRESSES = {4: (12, 16, 4), 6: (8, 24, 16)}
_RECEIVED, _SENT = "received", "sent"

Expressions = list[Any]


@dataclass(frozen=True)
class GuardedPorts:
    """The guarded ports of one host: those of ``at``, for the host at ``peer``."""

    name: str  #: how the name of the table begins
    at: str
    peer: str
    tcp: Collection[int]
    udp: Collection[int]


def table_of(guarded: GuardedPorts) -> str:
    """Name the table: its content is part of its name, so that an equal one can stay."""
    said = repr((guarded.at, guarded.peer, sorted(guarded.tcp), sorted(guarded.udp), os.geteuid()))
    return f"{guarded.name}-{hashlib.blake2s(said.encode(), digest_size=4).hexdigest()}"


def install(guarded: GuardedPorts) -> None:
    """Guard the ports for the peer and this user, and remove other tables of that name.

    A table that is there already and complete stays as it is. Raises `OSError` where the kernel has
    no nftables, or gives no right to them.
    """
    from pyroute2.netlink.exceptions import NetlinkError  # takes 0.1 s
    from pyroute2.nftables.main import NFTables

    family = ipaddress.ip_address(guarded.at).version
    table, rules = table_of(guarded), list(_rules(guarded, family))
    try:
        with NFTables(nfgen_family=_FAMILIES[family]) as nft:
            if _ours(nft, family, guarded.name) == {table} and _count(nft, table) == len(rules):
                return
            remove(guarded.name)
            nft.table("add", name=table)
            for chain, hook in ((_RECEIVED, "input"), (_SENT, "output")):
                nft.chain("add", table=table, name=chain, hook=hook, type="filter",
                          policy=_NF_ACCEPT, priority=0)  # fmt: skip
            for chain, expressions in rules:
                nft.rule("add", table=table, chain=chain, expressions=expressions)
    except NetlinkError as error:
        with contextlib.suppress(OSError):
            remove(guarded.name)
        raise OSError(error.code, os.strerror(error.code)) from None


def remove(name: str) -> None:
    """Remove the rules whose name begins so, if there are any. Raises `OSError`."""
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.nftables.main import NFTables

    for family in _FAMILIES.values():
        try:
            with NFTables(nfgen_family=family) as nft:
                for table in _ours(nft, family, name):
                    nft.table("del", name=table)
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from None


def _ours(nft: Any, family: int, name: str) -> set[str]:
    """Return the tables whose name begins so."""
    tables = (
        str(one.get_attr("NFTA_TABLE_NAME"))
        for one in nft.get_tables()
        if one["nfgen_family"] in (family, _FAMILIES.get(family))
    )
    return {table for table in tables if table == name or table.startswith(f"{name}-")}


def _count(nft: Any, table: str) -> int:
    return sum(str(one.get_attr("NFTA_RULE_TABLE")) == table for one in nft.get_rules())


def _rules(guarded: GuardedPorts, family: int) -> Iterator[tuple[str, list[Expressions]]]:
    """Yield each rule with its chain; all of them drop."""
    source, destination, length = _ADDRESSES[family]

    def network(offset: int, address: str, how: int) -> Expressions:
        return [_loaded(_NETWORK_HEADER, offset, length), _compared(_packed(address), how)]

    both = [(socket.IPPROTO_TCP, port) for port in sorted(guarded.tcp)]
    both += [(socket.IPPROTO_UDP, port) for port in sorted(guarded.udp)]
    mine = struct.pack("=I", os.geteuid())
    for protocol, port in both:
        to_port = [
            [_meta(_META_L4PROTO), _compared(bytes([protocol]), _EQUAL)],
            [_loaded(_TRANSPORT_HEADER, 2, 2), _compared(struct.pack("!H", port), _EQUAL)],
        ]
        yield (
            _RECEIVED,
            [
                network(destination, guarded.at, _EQUAL),
                *to_port,
                network(source, guarded.peer, _UNEQUAL),
                # What this host sends to itself has passed the other chain.
                network(source, guarded.at, _UNEQUAL),
                _dropped(),
            ],
        )
        for address in (guarded.at, guarded.peer):
            yield (
                _SENT,
                [
                    network(destination, address, _EQUAL),
                    *to_port,
                    [_meta(_META_SKUID), _compared(mine, _UNEQUAL)],
                    _dropped(),
                ],
            )


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def _meta(key: int) -> dict[str, Any]:
    return _expression("meta", {"key": key, "dreg": 1})


def _loaded(base: int, offset: int, length: int) -> dict[str, Any]:
    return _expression("payload", {"dreg": 1, "base": base, "offset": offset, "len": length})


def _compared(value: bytes, how: int) -> dict[str, Any]:
    data = {"attrs": [("NFTA_DATA_VALUE", value)]}
    return _expression("cmp", {"sreg": 1, "op": how, "data": data})


def _dropped() -> Any:
    from pyroute2.nftables.expressions import verdict

    return verdict(_NF_DROP)


def _expression(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    from pyroute2.nftables.expressions import genex

    made: dict[str, Any] = genex(name, arguments)
    return made
