"""Read from the kernel whether data sent over TCP connections has been acknowledged.

Made by `host.local` for `ha.link`; `host.remote.watches` has those of another machine. The peer's
kernel acknowledges, not its program. A peer that is stopped, slow or starved does so too, until its
buffers are full; then it is probed and no data is sent again. So data that is sent again and again
without an answer is a matter of the network.

The messages are read by `host.netlink` and not by pyroute2: that can only list all connections of a
host, and takes 0.1 ms for each (measured with 12), in the loop that has to notice everything else.
Invariant: no call waits, and the socket answers for the namespace in which it was made.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from coloctl.host import netlink

# Numbers from linux/sock_diag.h, linux/inet_diag.h and net/tcp_states.h.
NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_INET_DIAG_INFO = 2
_TCP_ESTABLISHED = 1

_REQUEST = struct.Struct("=BBBxI48s")  # family, protocol, extensions, states, which connection
_FOUND = struct.Struct("=BBxx48s20x")  # family, state, which connection
_WHICH = struct.Struct("!HH16s16s")  # ports and addresses of both ends, ours first
#: Of `struct tcp_info`: its retransmissions, unacknowledged segments, bytes that were acknowledged
#: and that were received, segments received.
_INFO = struct.Struct("=2xB21xI92xQQ4xI")
_ANY = bytes(48)


@dataclass(frozen=True)
class TcpConnection:
    """One connection that stands, and what became of the data sent over it."""

    which: bytes  #: the same for as long as the connection stands, and no other's
    port: int  #: of the two ports the one that was asked for
    unacked: int  #: segments that were sent and are not acknowledged
    resent: int  #: how often in a row the oldest of them was sent again without an answer
    heard: int  #: segments that came in so far
    acked: int = 0  #: bytes that were sent and acknowledged so far
    received: int = 0  #: bytes of the peer's program that came in so far


class Deliveries(Protocol):
    """The TCP connections between two addresses, as a host's kernel knows them. Never waits."""

    def find(self) -> Sequence[TcpConnection]:
        """Find those that stand now."""
        ...

    def look(self) -> Sequence[TcpConnection]:
        """Return those of the last `find` that still stand; costs less."""
        ...

    def close(self) -> None:
        """Close the socket; the kernel is asked no more."""
        ...


class TcpDeliveries:
    """The connections between two addresses that have one of ``ports`` at either end.

    Where the kernel does not report them, there are none; no call raises an error of the socket.
    """

    def __init__(self, sock: socket.socket, at: str, peer: str, ports: Collection[int]) -> None:
        """Take ``sock`` over: a netlink socket for `NETLINK_SOCK_DIAG`, not blocking."""
        self._sock = sock
        self._family = socket.AF_INET if "." in at else socket.AF_INET6
        self._ends = (_packed(at), _packed(peer))
        self._ports = frozenset(ports)
        self._known: tuple[bytes, ...] = ()
        self._number = 0
        self._told = False

    def find(self) -> tuple[TcpConnection, ...]:
        """Find those that stand now; looks through all connections of the host."""
        found = tuple(self._asked(_ANY, netlink.REQUEST | netlink.DUMP))
        self._known = tuple(one.which for one in found)
        return found

    def look(self) -> tuple[TcpConnection, ...]:
        """Return those of the last `find` that still stand; costs a few microseconds each."""
        return tuple(one for which in self._known for one in self._asked(which, netlink.REQUEST))

    def close(self) -> None:
        """Close the socket; the kernel is asked no more."""
        self._sock.close()

    def tells(self) -> bool:
        """Return whether the kernel answers at all."""
        self.find()
        return self._told

    def _asked(self, which: bytes, flags: int) -> Iterator[TcpConnection]:
        """Yield the kernel's answer. Sending the question makes it, so it is there at once."""
        self._number += 1
        states, extensions = 1 << _TCP_ESTABLISHED, 1 << (_INET_DIAG_INFO - 1)
        body = _REQUEST.pack(self._family, socket.IPPROTO_TCP, extensions, states, which)
        with contextlib.suppress(OSError):
            self._sock.send(netlink.framed(_SOCK_DIAG_BY_FAMILY, flags, self._number, body))
            while True:
                for kind, number, message in netlink.messages(self._sock.recv(netlink.CHUNK)):
                    if number != self._number:  # an answer that was not read to its end
                        continue
                    self._told |= kind == netlink.DONE
                    if kind in (netlink.ERROR, netlink.DONE):
                        return
                    if (one := self._read(message)) is not None:
                        yield one
                    if which != _ANY:
                        return

    def _read(self, message: bytes) -> TcpConnection | None:
        _, state, which = _FOUND.unpack_from(message)
        here, there, at, peer = _WHICH.unpack_from(which)
        port = next((port for port in (there, here) if port in self._ports), None)
        if state != _TCP_ESTABLISHED or port is None or (at, peer) != self._ends:
            return None
        for kind, value in netlink.attributes(message[_FOUND.size :]):
            if kind == _INET_DIAG_INFO and len(value) >= _INFO.size:
                resent, unacked, acked, received, heard = _INFO.unpack_from(value)
                return TcpConnection(which, port, unacked, resent, heard, acked, received)
        return None


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed.ljust(16, b"\0")
