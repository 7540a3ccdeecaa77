"""Watch a tap for the first TCP connection, or the first frame at all, from outside the guest.

Called by `host.local`; `chaos.evidence.lan` and `host.beacon` filter with it.
`colo.first_connection` makes a checkpoint at that moment. Such a checkpoint carries the secrets
that TCP timestamps and sequence numbers depend on to the secondary. A guest that sends a SYN, its
own or the answer to a client's, has drawn them.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from coloctl.errors import PreconditionFailed, Unreachable
from coloctl.host.ready import until_readable
from coloctl.host.tap import missing

ETH_P_ALL = 0x0003
SO_ATTACH_FILTER = 26

# Classic BPF operations (linux/filter.h): load half, byte, byte at X; X = 4 * header length; tests.
_LDH, _LDB, _LDB_X, _LDX_IHL = 0x28, 0x30, 0x50, 0xB1
LD_WORD, JEQ, _JSET, RET = 0x20, 0x15, 0x45, 0x06

#: Accepts Ethernet frames whose IPv4 or IPv6 packet is a TCP segment with SYN set: operation,
#: jump if true, jump if false (both relative), operand. Extension headers are not walked through.
SYN_FILTER = (
    (_LDH, 0, 0, 12),  # 0  EtherType
    (JEQ, 0, 4, 0x86DD),  # 1  IPv6, else 6
    (_LDB, 0, 0, 20),  # 2  next header
    (JEQ, 0, 11, 6),  # 3  TCP, else drop
    (_LDB, 0, 0, 67),  # 4  TCP flags
    (_JSET, 8, 9, 0x02),  # 5  SYN
    (JEQ, 0, 8, 0x0800),  # 6  IPv4, else drop
    (_LDB, 0, 0, 23),  # 7  protocol
    (JEQ, 0, 6, 6),  # 8  TCP, else drop
    (_LDH, 0, 0, 20),  # 9  fragment offset
    (_JSET, 4, 0, 0x1FFF),  # 10 a later fragment has no TCP header: drop
    (_LDX_IHL, 0, 0, 14),  # 11
    (_LDB_X, 0, 0, 27),  # 12 TCP flags
    (_JSET, 0, 1, 0x02),  # 13 SYN
    (RET, 0, 0, 96),  # 14 accept; this many bytes are kept
    (RET, 0, 0, 0),  # 15 drop
)

#: Accepts every frame but reverse ARP, which QEMU itself sends for a guest that has moved.
FRAME_FILTER = ((_LDH, 0, 0, 12), (JEQ, 1, 0, 0x8035), (RET, 0, 0, 96), (RET, 0, 0, 0))

Filter = tuple[tuple[int, int, int, int], ...]


class SynWatch:
    """A `FirstConnection` over a packet socket. The socket's buffer bounds what it holds."""

    def __init__(
        self, packets: socket.socket, tap: str, host: str, accept: Filter = SYN_FILTER
    ) -> None:
        """Begin to watch. ``packets`` comes from the tap's namespace and is not bound.

        Raises `PreconditionFailed` when there is no such device.
        """
        self._packets = packets
        self._tap = tap
        self._host = host
        self._seen = False
        packets.setblocking(False)
        attach_filter(packets, accept)
        try:
            packets.bind((tap, ETH_P_ALL))
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise missing(tap, host) from None
            raise PreconditionFailed(f"Cannot watch {tap} on {host}: {error.strerror}.") from None

    async def wait(self) -> None:
        """Wait until the guest has sent what is watched for; raises `Unreachable` when the tap went
        away.
        """
        while not self._seen:
            await until_readable(self._packets.fileno())
            try:
                _, address = self._packets.recvfrom(96)
                # What goes to the guest leaves the host through the tap.
                self._seen = address[2] != socket.PACKET_OUTGOING
            except OSError as error:
                # The socket says once that the tap went down, and sees frames again once it is up.
                if error.errno != errno.ENETDOWN or not self._packets.getsockname()[0]:
                    raise Unreachable(f"The tap {self._tap} on {self._host} went away.") from None


class FrameWatch(SynWatch):
    """A `FirstPacket` over a packet socket."""

    def __init__(self, packets: socket.socket, tap: str, host: str) -> None:
        super().__init__(packets, tap, host, FRAME_FILTER)


def attach_filter(packets: socket.socket, accept: Filter = SYN_FILTER) -> None:
    """Limit what the socket receives to what ``accept`` lets through, and nothing else."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in accept)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(accept), ctypes.addressof(buffer))
    packets.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
