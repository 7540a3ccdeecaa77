"""Cut single ports in silence, by nftables: a host drops what it receives for them.

Called by `lab.link`.

Invariant: every cut is a table of its own, so it goes as a whole, and no other rules change.
Packets that an end sends are never refused, because the sender would notice.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.expressions import genex, verdict
from pyroute2.nftables.main import NFTables

from coloctl.errors import LabError
from coloctl.lab import netns

_PREFIX = "coloctl"
_CHAIN = "received"
# Numbers from linux/netfilter/nf_tables.h, linux/netfilter.h and linux/in.h.
_META_IIFNAME = 6
_META_L4PROTO = 16
_TRANSPORT_HEADER = 2
_NF_DROP = 0
_NF_ACCEPT = 1
_NFPROTO_IPV4 = 2
_TCP = 6
_UDP = 17
_NAME_BYTES = 16  # IFNAMSIZ

Expressions = list[dict[str, Any]]


def close(
    namespace: str, device: str, service: str, *, tcp: Iterable[int], udp: Iterable[int]
) -> None:
    """Drop all that comes in through the device, from or to one of the ports.

    Raises `LabError` when the kernel has no nftables.
    """
    table = _table(device, service)
    ports = [*((_TCP, port) for port in tcp), *((_UDP, port) for port in udp)]

    def work() -> None:
        with NFTables(nfgen_family=_NFPROTO_IPV4) as nft:
            _drop(nft, {table} & _tables(nft))
            nft.table("add", name=table)
            nft.chain(
                "add",
                table=table,
                name=_CHAIN,
                hook="input",
                type="filter",
                policy=_NF_ACCEPT,
                priority=0,
            )
            for protocol, port in ports:
                for offset in (0, 2):  # the port it comes from, the port it goes to
                    rule = _rule(device, protocol, offset, port)
                    nft.rule("add", table=table, chain=_CHAIN, expressions=rule)

    _inside(namespace, work)


def open_again(namespace: str, device: str, service: str | None = None) -> None:
    """Remove that cut of the device, or every one; fine when there was none."""

    def work() -> None:
        with NFTables(nfgen_family=_NFPROTO_IPV4) as nft:
            ours = {name for name in _tables(nft) if name.startswith(_table(device, ""))}
            _drop(nft, ours if service is None else ours & {_table(device, service)})

    _inside(namespace, work)


def _table(device: str, service: str) -> str:
    return f"{_PREFIX}:{device}:{service}"


def _tables(nft: Any) -> set[str]:
    try:
        return {str(table.get_attr("NFTA_TABLE_NAME")) for table in nft.get_tables()}
    except (NetlinkError, OSError):
        return set()  # a kernel without nftables holds no table


def _drop(nft: Any, tables: Iterable[str]) -> None:
    for name in tables:
        nft.table("del", name=name)


def _rule(device: str, protocol: int, offset: int, port: int) -> list[Expressions]:
    return [
        [genex("meta", {"key": _META_IIFNAME, "dreg": 1}), _equals(_padded(device))],
        [genex("meta", {"key": _META_L4PROTO, "dreg": 1}), _equals(bytes([protocol]))],
        [
            genex("payload", {"dreg": 1, "base": _TRANSPORT_HEADER, "offset": offset, "len": 2}),
            _equals(struct.pack("!H", port)),
        ],
        verdict(_NF_DROP),
    ]


def _padded(device: str) -> bytes:
    return device.encode().ljust(_NAME_BYTES, b"\0")


def _equals(value: bytes) -> dict[str, Any]:
    data = {"attrs": [("NFTA_DATA_VALUE", value)]}
    expression: dict[str, Any] = genex("cmp", {"sreg": 1, "op": 0, "data": data})
    return expression


def _inside(namespace: str, work: Any) -> None:
    def explained() -> None:
        try:
            work()
        except (NetlinkError, OSError) as error:
            number = error.code if isinstance(error, NetlinkError) else error.errno
            lacking = number in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENOENT)
            raise LabError(
                f"The kernel refused to cut or open ports in {namespace}: {error}.",
                hint="the kernel lacks nftables: `modprobe nf_tables`" if lacking else None,
            ) from None

    netns.inside(namespace, explained)
