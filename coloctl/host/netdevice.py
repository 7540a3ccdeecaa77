"""Find network devices, addresses and routes by netlink, and change a device.

Called by `host.maketap`, by `host.guard` for the device of an address, and for taps by
`host.resource_use`, with a socket that `host.local` keeps; `host.netlink` frames the messages.

Invariant: a socket answers for the network namespace in which it was made, so one that is made in a
call answers for that of the calling thread.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from coloctl.host.netlink import (
    ACK,
    CHUNK,
    DONE,
    DUMP,
    ERROR,
    REQUEST,
    attribute,
    attributes,
    framed,
    messages,
    require_done,
    string,
)

# Numbers from linux/rtnetlink.h, linux/if_link.h and linux/if_addr.h.
_GET_LINK, _SET_LINK, _GET_ADDRESS, _GET_ROUTE = 18, 19, 22, 26
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_CARRIER = 18, 20, 33
_IFLA_INFO_KIND = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_SRC, _RTA_OIF = 1, 2, 4

_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, which of them
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, bits of both ends, 5 more, flags
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

#: The kernel answers while it takes the message. Seconds.
_ANSWER_WAIT_S = 2.0
LOOPBACK = "lo"
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class NetDevice:
    """A network device as the kernel describes it."""

    name: str
    index: int
    mtu: int
    alias: str
    kind: str  #: such as bridge or tun; "" for hardware
    master: int  #: the index of the device that it is a port of, 0 without one
    carrier: bool


def links() -> socket.socket:
    """Make a socket that answers for the calling thread's network namespace."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    sock.settimeout(_ANSWER_WAIT_S)
    return sock


def find(sock: socket.socket, name: str) -> NetDevice | None:
    """Find the device of that name; None where there is none. Raises `OSError`."""
    return _found(sock, 0, string(_IFLA_IFNAME, name))


def mark_and_join(
    sock: socket.socket, index: int, *, alias: str, mac: bytes, mtu: int, bridge: int
) -> None:
    """Give a device its alias, MAC address and MTU, and make it a port of the bridge.

    Raises `OSError`; a part may be done then.
    """
    wanted = (
        attribute(_IFLA_ADDRESS, mac)
        + attribute(_IFLA_MTU, struct.pack("=I", mtu))
        + string(_IFLA_IFALIAS, alias)
        + attribute(_IFLA_MASTER, struct.pack("=I", bridge))
    )
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + wanted
    for _ in _asked(sock, _SET_LINK, ACK, body):
        pass


def arrives_at(at: str, peer: str) -> str | None:
    """Find the device by which packets of ``peer`` come to the address ``at`` of this namespace.

    That is the loopback device where both are here, and otherwise the device that has ``at``, if
    the route to ``peer`` leaves by it. None where the kernel routes in another way: then packets
    may come by any device.
    """
    version = ipaddress.ip_address(at).version
    if ipaddress.ip_address(peer).version != version:
        return None
    with links() as sock:
        try:
            leaves, owners = _route(sock, version, at, peer), _owners(sock, version, at)
            device = None if leaves is None else _found(sock, leaves, b"")
        except OSError:
            return None
    if device is None or (device.name != LOOPBACK and device.index not in owners):
        return None
    return device.name


def _route(sock: socket.socket, version: int, at: str, peer: str) -> int | None:
    """Return the index of the device by which packets from ``at`` to ``peer`` leave."""
    ends = [ipaddress.ip_address(one).packed for one in (peer, at)]
    bits = len(ends[0]) * 8
    body = _ROUTE.pack(_FAMILIES[version], bits, bits, 0, 0, 0, 0, 0, 0)
    body += attribute(_RTA_DST, ends[0]) + attribute(_RTA_SRC, ends[1])
    for answer in _asked(sock, _GET_ROUTE, 0, body):
        values = dict(attributes(answer[_ROUTE.size :]))
        if _RTA_OIF in values:
            return _number(values[_RTA_OIF])
    return None


def _owners(sock: socket.socket, version: int, at: str) -> set[int]:
    """Return the indexes of the devices that have the address."""
    packed, owners = ipaddress.ip_address(at).packed, set()
    body = _ADDRESS.pack(_FAMILIES[version], 0, 0, 0, 0)
    for answer in _asked(sock, _GET_ADDRESS, DUMP, body):
        values = dict(attributes(answer[_ADDRESS.size :]))
        if values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS)) == packed:
            owners.add(_ADDRESS.unpack_from(answer)[4])
    return owners


def _found(sock: socket.socket, index: int, wanted: bytes) -> NetDevice | None:
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + wanted
    try:
        (answer,) = _asked(sock, _GET_LINK, 0, body)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    values = dict(attributes(answer[_LINK.size :]))
    info = dict(attributes(values.get(_IFLA_LINKINFO, b"")))
    return NetDevice(
        name=_text(values.get(_IFLA_IFNAME)),
        index=_LINK.unpack_from(answer)[2],
        mtu=_number(values.get(_IFLA_MTU)),
        alias=_text(values.get(_IFLA_IFALIAS)),
        kind=_text(info.get(_IFLA_INFO_KIND)),
        master=_number(values.get(_IFLA_MASTER)),
        carrier=values.get(_IFLA_CARRIER, b"")[:1] == b"\1",
    )


def _asked(sock: socket.socket, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """Yield the bodies of the kernel's answers; raises `OSError` for a refusal."""
    asked = next(_NUMBERS) & 0x7FFFFFFF
    sock.send(framed(kind, REQUEST | flags, asked, body))
    while True:
        ours = False
        for answer, number, content in messages(sock.recv(CHUNK)):
            if number != asked:  # of a question that was given up
                continue
            ours = True
            if answer == DONE:
                return
            if answer == ERROR:
                require_done(content)
                return
            yield content
        if ours and not flags:
            return


def _number(value: bytes | None) -> int:
    return 0 if value is None else int(struct.unpack_from("=I", value)[0])


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")
