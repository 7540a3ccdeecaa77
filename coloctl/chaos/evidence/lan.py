"""Record which node's frames reach the guest's LAN: each with its port and time.

Started by `chaos.run.environment` for every run; its socket is that of `chaos.evidence.capture`;
listens in a namespace of `lab.network`. A packet socket in the switch's namespace sees the frames
of both hosts in one order, stamped by the kernel. Two ports that send by turns are two primaries.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Sequence

from coloctl.chaos.evidence.background import Background
from coloctl.chaos.evidence.records import FrameRun
from coloctl.host.packet import ETH_P_ALL, Filter, attach_filter
from coloctl.lab import netns
from coloctl.lab.network import Lab

SO_TIMESTAMPNS = 35
#: The switch's port towards each node.
PORTS = {"port-a": "a", "port-b": "b"}
_ENDS_WITHIN_S = 0.2


class LanWatch(Background):
    """Watches from its creation until the end of its ``with`` block, and fills `frames`."""

    def __init__(self, lab: Lab, mac: str) -> None:
        """Open the socket; raises `LabError` if the lab's switch is not there."""
        super().__init__("lan-watch")
        self.frames: list[FrameRun] = []
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._packets = netns.inside(lab.lan, lambda: _packets(self._mac))
        self.begin()

    def close(self) -> None:
        """See `Background.close`."""
        self._packets.close()

    def work(self) -> None:
        """See `Background.work`."""
        while not self.ended:
            with contextlib.suppress(TimeoutError, OSError):
                frame, extra, _, address = self._packets.recvmsg(64, 64)
                node = PORTS.get(address[0])
                if node is None or address[2] == socket.PACKET_OUTGOING:
                    continue
                # What came before the filter was in place is still in the queue.
                if frame[6:12] == self._mac:
                    self._note(node, _stamp(extra))

    def _note(self, node: str, at_s: float) -> None:
        last = self.frames[-1] if self.frames else None
        if last is not None and last.node == node:
            self.frames[-1] = FrameRun(node, last.first_s, at_s, last.frames + 1)
        else:
            self.frames.append(FrameRun(node, at_s, at_s, 1))


def _packets(mac: bytes) -> socket.socket:
    """Open a socket of the calling thread's namespace for frames from that address."""

    def prepare(packets: socket.socket) -> None:
        # Not bound: a socket of all devices keeps the order in which their frames came.
        packets.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        attach_filter(packets, _only_from(mac))

    return packet_socket(prepare)


def packet_socket(prepare: Callable[[socket.socket], None]) -> socket.socket:
    """Open a prepared socket for each frame of the calling thread's namespace; a read ends soon."""
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    try:
        prepare(packets)
        packets.settimeout(_ENDS_WITHIN_S)
    except BaseException:
        packets.close()
        raise
    return packets


def _only_from(mac: bytes) -> Filter:
    """Build the filter for a source address, which is bytes 6 to 11 of an Ethernet frame."""
    head, rest = struct.unpack("!IH", mac)
    return (
        (0x20, 0, 0, 6),  # load the first four bytes of the source
        (0x15, 0, 3, head),
        (0x28, 0, 0, 10),  # and the last two
        (0x15, 0, 1, rest),
        (0x06, 0, 0, 64),  # accept
        (0x06, 0, 0, 0),  # drop
    )


def _stamp(extra: Sequence[tuple[int, int, bytes]]) -> float:
    """Convert the kernel's stamp to the monotonic clock; return now if there is none."""
    now = time.monotonic()
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = map(float, struct.unpack("ll", data[:16]))
            return now - (time.time() - (seconds + nanoseconds / 1e9))
    return now
