"""Send numbered datagrams between two hosts and receive the peer's, without waiting.

Made by `host.local` for `ha.heartbeat`, and held by `host.agent.session` for a client. Two beacons,
one per host of a pair, show at once when the link between them is cut in one direction or both;
QEMU's connections would show it only when they are used. A beacon has no task: its holder calls
`beat` at every beat. On one host the two ends are a pair of unix sockets.

Invariants: no time of one machine is compared with a time of another. Datagrams of other senders
change nothing and cost nothing: the kernel passes those of the peer's address, port and session
only, and each bears a code that takes this watch's key to make. An answer of the peer's kernel
counts by the datagram that it quotes, with its code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import secrets
import socket
import struct
import time

from coloctl.errors import PreconditionFailed
from coloctl.host.packet import JEQ, LD_WORD, RET, Filter, attach_filter
from coloctl.model.wires import Endpoint

#: Session of the sender, number, the highest number it has heard from the other end, when it sent
#: this by its own clock, when that highest number was sent by the other end's clock, and how long
#: the sender had it (nanoseconds; the last two are 0 before the first); its code follows.
_FORMAT = struct.Struct("!8sQQQQQ")
_CODE_BYTES = 16
_LENGTH = _FORMAT.size + _CODE_BYTES
#: Datagrams read per beat; a peer sends one, so more are old.
_DRAIN_MAX = 32
_SO_TIMESTAMPNS = 35
_PRIORITY = 6  # the highest that needs no privilege (socket(7))
_TIMESPEC = struct.Struct("qq")
#: The kernel's filter of a socket for UDP sees the header first, bytes.
_UDP_HEADER = 8
#: A datagram that a "port unreachable" quotes begins there: after the headers of IPv4, ICMP, IPv4
#: and UDP (20, 8, 20, 8), or of ICMPv6, IPv6 and UDP (8, 40, 8), none of which has options here.
_QUOTED = 56
_ICMP_MAX = 1500
#: The protocol that carries such answers, by address family.
ICMP = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
#: An error that an answer of the network left at the socket is reported by the next call, which
#: does nothing else: it is made again.
_SENDS = 3
#: A datagram that seems to have waited for longer in the socket is not believed, nanoseconds: the
#: wall clock was set.
_WAITED_MAX_NS = 1_000_000_000


def new_key() -> bytes:
    """Draw the key that both ends of one watch share."""
    return secrets.token_bytes(32)


def unix_beacons() -> tuple[DatagramBeacon, DatagramBeacon]:
    """Make both ends of a beacon on one host, without a port; no other process can send to them."""
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    key = new_key()
    return DatagramBeacon(one, key), DatagramBeacon(two, key)


def udp_beacon(
    sock: socket.socket,
    at: Endpoint,
    peer: Endpoint,
    key: bytes,
    host: str,
    *,
    refusals: socket.socket | None = None,
) -> DatagramBeacon:
    """Make one end at ``at``; raises `PreconditionFailed` when ``host`` does not have that free.

    ``refusals`` receives all ICMP messages; without it the kernel's own note of a refusal counts.
    """
    # Past the memory and disk traffic of the same network, where a queue of ours has bands.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _PRIORITY)
    try:
        sock.bind((at.address, at.port))
        # From here on the kernel drops what comes from anywhere else.
        sock.connect((peer.address, peer.port))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is in use" if taken else f"cannot be had: {error.strerror}"
        raise PreconditionFailed(
            f"UDP port {at} on {host}, needed for heartbeats, {why}.",
            hint="set replication.base_port to a free range of 100 ports",
        ) from None
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        while True:  # what came in between; no more can come of it than the buffer holds
            sock.recv(1)
    return DatagramBeacon(sock, key, refusals)


class DatagramBeacon:
    """One end of the link. Datagrams of other sessions, of an earlier supervisor, are ignored.

    None is accepted before `meet`. ``delay_s`` is half of the last round trip, None before the
    first; ``lost`` counts those of the peer that never came, ``refused`` how often the peer's
    kernel answered that the port is closed.
    """

    def __init__(
        self, sock: socket.socket, key: bytes, refusals: socket.socket | None = None
    ) -> None:
        """Begin a session. ``sock`` is connected to the other end, which has the same ``key``.

        ``refusals`` is taken over as well.
        """
        self._sock = sock
        self._refusals = refusals
        self._answered = 0  # the highest number of ours that the peer's kernel refused
        self._key = key
        self._number = 0
        self._peer_session = b""
        self._heard = 0  # the highest number that came from the peer
        self._confirmed = 0  # the highest number of ours that the peer has heard
        self._echo_ns = 0  # when the peer sent what was heard last, by its clock
        self._came_ns = 0  # when that came, by ours
        self.session = secrets.token_bytes(8)
        self.delay_s: float | None = None
        self.lost = 0
        self.refused = 0
        self.reported_ms: float | None = None
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        if refusals is not None:
            # The kernel drops every message that does not quote a datagram of this session.
            attach_filter(refusals, _of_session(self.session, _QUOTED))

    def beat(self) -> bool:
        """Receive what came, send one datagram; return whether both directions carry.

        True when a datagram of the peer came since the last call, and one that confirms a newer one
        of ours. An error of the network is silence.
        """
        heard, confirmed = self._heard, self._confirmed
        for _ in range(_DRAIN_MAX):
            try:
                data, ancillary, _, _ = self._sock.recvmsg(_LENGTH + 1, 64)
            except BlockingIOError:
                break
            except OSError as error:  # the network says that the peer does not listen, or did not
                self._note(error)
                continue
            self._hear(data, ancillary)
        self._read_refusals()
        self._number += 1
        now_ns = time.monotonic_ns()
        held_ns = now_ns - self._came_ns if self._came_ns else 0
        beat = _FORMAT.pack(self.session, self._number, self._heard, now_ns, self._echo_ns, held_ns)
        for _ in range(_SENDS):
            try:
                self._sock.send(beat + self._code(beat))
                break
            except OSError as error:  # a link that is down, or the note of an earlier answer
                self._note(error)
        return self._heard > heard and self._confirmed > confirmed

    def _note(self, error: OSError) -> None:
        """Count an answer of the peer's kernel, where it cannot be read: any sender can forge it.

        The answer reports that no program has the port.
        """
        if self._refusals is None:
            self.refused += error.errno == errno.ECONNREFUSED

    def _read_refusals(self) -> None:
        """Count the answers that quote a datagram of ours: its code is known to no other sender.

        Each quotes a newer one than the last: one that was seen on its way proves nothing later.
        """
        for _ in range(_DRAIN_MAX if self._refusals is not None else 0):
            try:
                message = self._refusals.recv(_ICMP_MAX) if self._refusals is not None else b""
            except OSError:
                return
            beat = _quoted(message, self._refusals)
            if beat[: len(self.session)] == self.session and self._is_ours(beat):
                number = _FORMAT.unpack_from(beat)[1]
                self.refused += self._answered < number <= self._number
                self._answered = max(self._answered, min(number, self._number))

    def _is_ours(self, datagram: bytes) -> bool:
        beat, code = datagram[: _FORMAT.size], datagram[_FORMAT.size :]
        return len(datagram) == _LENGTH and hmac.compare_digest(code, self._code(beat))

    def _hear(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        if not self._is_ours(data):
            return
        session, number, confirmed, sent_ns, echo_ns, held_ns = _FORMAT.unpack_from(data)
        if session != self._peer_session or number <= self._heard:
            return
        if self._heard:
            self.lost += number - self._heard - 1
        self._heard = number
        self._confirmed = max(self._confirmed, confirmed)
        self._echo_ns, self._came_ns = sent_ns, _came_ns(ancillary)
        if echo_ns:
            self.delay_s = max(0, self._came_ns - echo_ns - held_ns) / 2e9

    def _code(self, beat: bytes) -> bytes:
        return hashlib.blake2b(beat, key=self._key, digest_size=_CODE_BYTES).digest()

    def meet(self, session: bytes) -> None:
        """Accept only the beacon with that ``session`` from now on.

        A sender that forges the peer's address and port does not know it, unless it sees what the
        peer sends. The kernel drops what such a sender sends before it fills the socket.
        """
        self._peer_session = session
        if self._sock.family != socket.AF_UNIX and len(session) == 8:
            attach_filter(self._sock, _of_session(session, _UDP_HEADER))

    def close(self) -> None:
        """Close the sockets; the port is free then."""
        self._sock.close()
        if self._refusals is not None:
            self._refusals.close()


def _of_session(session: bytes, at: int) -> Filter:
    """Return a filter that accepts what has ``session`` at byte ``at``."""
    first, second = struct.unpack("!II", session)
    return (
        (LD_WORD, 0, 0, at),
        (JEQ, 0, 3, first),
        (LD_WORD, 0, 0, at + 4),
        (JEQ, 0, 1, second),
        (RET, 0, 0, 0xFFFFFFFF),
        (RET, 0, 0, 0),
    )


def _quoted(message: bytes, sock: socket.socket | None) -> bytes:
    """Return the datagram that a "port unreachable" quotes; empty for any other message.

    A raw socket for IPv4 receives the packet with its header, one for IPv6 without.
    """
    if sock is not None and sock.family == socket.AF_INET:
        kind, start = (3, 3), 20
    else:
        kind, start = (1, 4), 0
    unreachable = tuple(message[start : start + 2]) == kind
    return message[_QUOTED : _QUOTED + _LENGTH] if unreachable else b""


def _came_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return when a datagram came, monotonic: the kernel stamps it by the wall clock.

    It has waited in the socket since. A wall clock that was set meanwhile makes that no time.
    """
    now_ns = time.monotonic_ns()
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack(value[: _TIMESPEC.size])
            waited_ns: int = time.time_ns() - (seconds * 1_000_000_000 + nanoseconds)
            if 0 < waited_ns < _WAITED_MAX_NS:
                return now_ns - waited_ns
    return now_ns
