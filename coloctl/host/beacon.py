"""A beacon on the replication network: numbered datagrams out, the peer's in, nothing waited for.

Two beacons, one per host of a pair, tell at once when the link between them is cut in one direction
or both; the connections of QEMU would tell only when they are used. A beacon has no task: whoever
holds it calls `beat` at every beat of the heart.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import struct
import time

from coloctl.errors import PreconditionFailed
from coloctl.host.base import Endpoint
from coloctl.host.watching import Beacon

#: Session of the sender, number, the highest number it has heard from the other end, and its wall
#: clock in nanoseconds.
_FORMAT = struct.Struct("!8sQQQ")
#: Datagrams read per beat; a peer sends one, so more are old or nobody's.
_DRAIN_MAX = 32
_SO_TIMESTAMPNS = 35
_PRIORITY = 6  # the highest that needs no privilege (socket(7))
_TIMESPEC = struct.Struct("qq")


class UdpBeacon:
    """One end of the link. What other sessions sent, an earlier supervisor's say, is not heard."""

    def __init__(self, sock: socket.socket, at: Endpoint, peer: Endpoint, host: str) -> None:
        """Bound to ``at``; raises `PreconditionFailed` when that cannot be had on ``host``."""
        self._sock = sock
        self._peer = (peer.address, peer.port)
        self._number = 0
        self._peer_session = b""
        self._heard = 0  # the highest number that came from the peer
        self._confirmed = 0  # the highest number of ours that the peer has heard
        self.session = secrets.token_bytes(8)
        self.delay_s: float | None = None
        self.lost = 0
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        # Past the memory and disk traffic of the same network, where a queue of ours has bands.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _PRIORITY)
        try:
            sock.bind((at.address, at.port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "is in use" if taken else f"cannot be had: {error.strerror}"
            raise PreconditionFailed(
                f"UDP port {at} on {host}, needed for heartbeats, {why}.",
                hint="set replication.base_port to a free range of 100 ports",
            ) from None

    def beat(self) -> bool:
        """A datagram was sent, or the network said no; answers whether both directions carry."""
        heard, confirmed = self._heard, self._confirmed
        for _ in range(_DRAIN_MAX):
            try:
                data, ancillary, _, _ = self._sock.recvmsg(_FORMAT.size, 64)
            except OSError:  # nothing there, or the network says that the peer does not listen
                break
            self._hear(data, ancillary)
        self._number += 1
        # A link that is down may say so here; its silence is what counts.
        with contextlib.suppress(OSError):
            beat = _FORMAT.pack(self.session, self._number, self._heard, time.time_ns())
            self._sock.sendto(beat, self._peer)
        return self._heard > heard and self._confirmed > confirmed

    def _hear(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        if len(data) != _FORMAT.size:
            return
        session, number, confirmed, sent_ns = _FORMAT.unpack(data)
        if session != self._peer_session or number <= self._heard:
            return
        if self._heard:
            self.lost += number - self._heard - 1
        self._heard = number
        self._confirmed = max(self._confirmed, confirmed)
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC.unpack(value[: _TIMESPEC.size])
                self.delay_s = max(0.0, seconds - sent_ns / 1e9 + nanoseconds / 1e9)

    def meet(self, peer: Beacon) -> None:
        """Only ``peer`` is heard from now on."""
        self._peer_session = peer.session

    def close(self) -> None:
        """The port is free."""
        self._sock.close()
