"""Write each packet between the guest and the client's machine to a file for packet analysers.

Called by `chaos.run.runner` where a capture is asked for; listens in a namespace of `lab.network`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from pathlib import Path

from coloctl.chaos.evidence.background import Background
from coloctl.chaos.evidence.lan import packet_socket
from coloctl.host.packet import ETH_P_ALL
from coloctl.lab import netns
from coloctl.lab.network import Lab

#: The switch's port towards the client.
DEVICE = "port-client"
#: Enough for headers and a redis command; a long run must not fill the disk.
BYTES_PER_PACKET, BYTES_MAX = 512, 256 << 20
#: Classic pcap, microseconds, Ethernet (LINKTYPE 1).
_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, BYTES_PER_PACKET, 1)


class Capture(Background):
    """Writes from its creation until the end of its ``with`` block."""

    def __init__(self, lab: Lab, path: Path) -> None:
        """Open the file and the socket; raises `LabError` without the lab's switch, `OSError`."""
        super().__init__("capture")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        self._file.write(_HEADER)
        self._packets = netns.inside(lab.lan, _packets)
        self.begin()

    def close(self) -> None:
        """See `Background.close`."""
        self._packets.close()
        self._file.close()

    def work(self) -> None:
        """See `Background.work`."""
        written = len(_HEADER)
        while not self.ended and written < BYTES_MAX:
            with contextlib.suppress(TimeoutError):
                frame = self._packets.recv(65536)
                kept, now = frame[:BYTES_PER_PACKET], time.time()
                micros = int(now % 1 * 1e6)
                self._file.write(struct.pack("<IIII", int(now), micros, len(kept), len(frame)))
                self._file.write(kept)
                written += 16 + len(kept)


def _packets() -> socket.socket:
    """Open a socket for both directions of that port, in the calling thread's namespace."""
    return packet_socket(lambda packets: packets.bind((DEVICE, ETH_P_ALL)))
